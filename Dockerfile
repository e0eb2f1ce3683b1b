# A worker's image. Give it your own graphs by building on it: COPY your package, change the command.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY checkpoint checkpoint
COPY scheduler scheduler
COPY workers workers
COPY console console
RUN pip install '.[cli,fast]' && rm -rf /src

WORKDIR /app
COPY examples examples
ENV PYTHONPATH=/app
RUN useradd --system --uid 10001 everstep
USER everstep

STOPSIGNAL SIGTERM
CMD ["everstep", "--help"]
