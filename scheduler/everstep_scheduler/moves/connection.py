"""Every Redis client of everstep is made here, with explicit settings.

redis-py resends commands by itself, stops at 100 connections and times out blocking pops; ours resend nothing, so that
a lost reply is seen, and each caller decides. Errors of the server become `ServerError`s that say what to do.
"""

from __future__ import annotations

import random
import re
import shlex
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any, TypeVar

import redis
from redis import DriverInfo
from redis.backoff import NoBackoff
from redis.connection import parse_url  # pyright: ignore[reportUnknownVariableType]
from redis.retry import Retry

from everstep_checkpoint.errors import CorruptEntry, InvalidInput, ServerError, ServerFull, ServerUnavailable

DEFAULT_URL = "redis://127.0.0.1:6379/0"
LOCAL, PORT = "127.0.0.1", 6379
CONNECT_S = 5.0
ANSWER_S = 10.0
ANSWER_LEAST_S = 1.0
BACKOFF_MAX_S = 1.0

Client = redis.Redis
T = TypeVar("T")
# What a server answers while the same command will pass later, without anybody changing our side of it.
_TRANSIENT = (
    "LOADING",
    "READONLY",
    "BUSY",
    "MASTERDOWN",
    "MISCONF",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "OOM",
    "NOREPLICAS",
    "UNBLOCKED",
)


def connect(url: str, *, block_s: float = 0.0, connections: int = 512, answer_s: float | None = None) -> Client:
    """A client for `url` that never resends. Raises InvalidInput for what is no URL of a Redis.

    `block_s`: the longest server-side block that it will be used for.
    `answer_s`: how long an answer may take beyond that (10 s); whoever is silent for longer is taken for gone."""
    try:
        return _made(url, block_s, connections, answer_s)
    except ValueError as error:
        raise InvalidInput(
            f"{redacted(url)!r} is no URL of a Redis: {error}", fix="redis://host:6379/0, rediss://... or unix:///path"
        ) from None


def _made(url: str, block_s: float, connections: int, answer_s: float | None) -> Client:
    untyped: Any = redis.Redis  # its keyword arguments have no types
    client: Client = untyped.from_url(
        url,
        protocol=2,
        decode_responses=False,
        socket_timeout=(ANSWER_S if answer_s is None else answer_s) + block_s,
        socket_connect_timeout=CONNECT_S,
        health_check_interval=0,
        max_connections=connections,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        driver_info=_driver(),
        **({} if url.startswith("unix") else {"socket_keepalive": True}),
    )
    return client


@cache
def _driver() -> DriverInfo:
    """How we are named in `CLIENT LIST`. Once a process: redis-py looks its own version up for each connection, which
    reads a file."""
    return DriverInfo().add_upstream_driver("everstep", version("everstep"))


def answer_s(lease_ms: int) -> float:
    """How long whoever renews leases waits for an answer, in seconds: a renewal that is lost in silence leaves time for
    the next."""
    return min(ANSWER_S, max(ANSWER_LEAST_S, lease_ms / 3000))


def redacted(url: str) -> str:
    """The URL without its password, wherever it stands in it, for people."""
    shown = re.sub(r"//([^:/]*):.*@", r"//\1:***@", url)
    return re.sub(r"([?&](?:password|ssl_password)=)[^&]*", r"\1***", shown)


def error_code(error: redis.RedisError) -> str:
    """The word that an error reply began with: redis-py takes those that it knows out of the text."""
    code: str | None = getattr(error, "status_code", None)
    return code or str(error).partition(" ")[0]


def is_hopeless(error: ServerError) -> bool:
    """Does the server refuse the command for what it is, so that the same one will be refused again?"""
    cause = error.__cause__
    return isinstance(cause, redis.ResponseError) and error_code(cause) in ("ERR", "EVERSTEP", "WRONGTYPE")


def redis_cli(url: str, *words: str) -> str:
    """The line that asks the server at `url` with redis-cli, to be pasted into a shell. A password is never in it."""
    try:
        said: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:  # no URL of a Redis: whoever connects says so
        said = {}
    options = ["redis-cli"]
    if "path" in said:
        options += ["-s", str(said["path"])]
    if (host := said.get("host", LOCAL)) not in (LOCAL, "localhost"):
        options += ["-h", str(host)]
    if (port := said.get("port", PORT)) != PORT:
        options += ["-p", str(port)]
    if url.startswith("rediss"):
        options += ["--tls"]
        files = {"--cacert": "ssl_ca_certs", "--cert": "ssl_certfile", "--key": "ssl_keyfile"}
        options += [word for option, name in files.items() if name in said for word in (option, str(said[name]))]
    if said.get("username"):
        options += ["--user", str(said["username"])]
    if said.get("password"):
        options += ["--askpass"]
    if said.get("db"):
        options += ["-n", str(said["db"])]
    return " ".join([*options[:1], *map(shlex.quote, options[1:]), *map(shlex.quote, words)])


def server_error(error: redis.RedisError, url: str = "") -> ServerError | CorruptEntry:
    """What a redis-py error means for our user, with the way out."""
    text, code = str(error), error_code(error)
    where = f" at {redacted(url)}" if url else ""
    if code == "OOM":
        return ServerFull(
            f"Redis{where} has reached maxmemory",
            fix="free memory or raise maxmemory; runs go on by themselves",
        )
    if isinstance(error, redis.AuthenticationError) or code in ("NOAUTH", "WRONGPASS", "NOPERM"):
        return ServerUnavailable(f"Redis{where} refuses the login: {text}", fix="check user and password in the URL")
    if "specified in XADD" in text:
        return CorruptEntry(
            "something that is not everstep's stands at the end of a thread's log, which takes no entry behind it",
            fix="`everstep doctor` names it; `everstep recover --thread THREAD` shows how to cut it off",
        )
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return ServerUnavailable(
            f"Redis{where} does not answer: {text.rstrip('.')}",
            fix=f"check that it runs (`{redis_cli(url, 'ping')}`) and that the URL is right; "
            "`everstep dev` brings a Redis along",
        )
    return ServerUnavailable(
        f"Redis{where} refused a command: {text}", fix="`everstep doctor` shows the server's state"
    )


@contextmanager
def translated(url: str = "") -> Generator[None]:
    """Errors of redis-py leave as ours."""
    try:
        yield
    except redis.RedisError as error:
        raise server_error(error, url) from error


def patiently(
    action: Callable[[], T],
    stopped: Callable[[], bool],
    said: Callable[[str], None] | None = None,
    *,
    first_s: float = 0.02,
) -> T:
    """Do `action` until Redis lets it pass: the reconnect loop.

    Waits out ServerUnavailable and ServerFull; raises them once `stopped()`. Other errors are raised at once.
    """
    delay, told = first_s, 0.0
    while True:
        try:
            return action()
        except (ServerUnavailable, ServerFull) as error:
            if stopped():
                raise
            if said is not None and time.monotonic() - told > 5:
                told = time.monotonic()
                said(f"{error.what}; trying again")
        time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
        delay = min(delay * 2, BACKOFF_MAX_S)


def server_run_id(client: Client) -> str:
    """The id that a server takes anew at each start."""
    asked: Any = client
    info: dict[str, Any] = asked.info("server")
    return str(info.get("run_id", ""))
