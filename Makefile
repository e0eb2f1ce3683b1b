# A fresh machine needs python3 (3.11 or newer, with venv) and make; no Docker, no root.
# Another Python: make test PYTHON=python3.13 (before .venv is made).

PYTHON ?= python3
VENV := .venv
# Tests mostly wait, so a few more processes than cores.
JOBS ?= 4
BIN := $(VENV)/bin
CODE := $(wildcard checkpoint scheduler workers console tests examples bench)

# Bytecode is kept: tests start hundreds of interpreters, which would compile all of it anew each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo check audit test test-compiled soak bench bench-compiled peers dev compiled

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.runtime ## the tour: graphs on three workers, one of which gets killed
	$(BIN)/everstep demo

check: $(VENV)/.dev ## what needs no running: style, types, imports, secrets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/secrets.py

audit: $(VENV)/.dev ## known holes in what is installed here; needs a vulnerability database to be reached
	test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet pip-audit; }
	$(BIN)/python -m pip freeze --exclude-editable | $(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r /dev/stdin

test: $(VENV)/.dev ## all tests but soak, on the server that the run's seed chooses
	$(BIN)/pytest -m "not soak" -n $(JOBS) --dist worksteal

# What a step goes through, and stories beside LangGraph. All that there is: make test-compiled TESTS=tests
TESTS ?= $(patsubst %,tests/test_%.py,bench called channels company_faults differential effects faults_kill faults_zombie \
	functional hostile_keys in_place leading loading plain plan traces worker)

test-compiled: $(VENV)/.compiled ## tests of a step's path on the compiled package
	$(COMPILED)/bin/pytest -m "not soak" -n $(JOBS) --dist worksteal $(TESTS)

# What measures runs alone, everything else side by side. A part: make soak SOAK=tests/test_chaos.py, or
# SOAK='tests/test_chaos.py -k kill'. A trial in a tenth of the time, that leaves the results as they are:
# make soak EVERSTEP_SOAK_SHARE=0.1 EVERSTEP_SOAK_RESULTS=/tmp/trial
MEASURED := tests/test_chaos.py tests/test_crowd.py
EVERSTEP_SOAK_RESULTS ?= bench/results/soak
LONG := EVERSTEP_SOAK_RESULTS=$(EVERSTEP_SOAK_RESULTS) $(BIN)/pytest -m soak -o faulthandler_timeout=0 --durations=50

soak: $(VENV)/.dev ## the long tests, on every server found: about 35 minutes on 2 idle cores; makes docs/RELIABILITY.md
	failed=0; \
	$(LONG) $(or $(SOAK),$(MEASURED)) || failed=$$?; \
	$(if $(SOAK),,$(LONG) tests $(MEASURED:%=--ignore=%) -n $(JOBS) --dist worksteal || failed=$$?;) \
	$(BIN)/python -m bench.reliability; exit $$failed

BENCH = bench --results bench/results $(if $(wildcard $(VENV)/peers/bin/python),--peers $(VENV)/peers/bin/python)

bench: $(VENV)/.dev ## speed, beside a bare loop and the peers of `make peers`; writes bench/results
	$(BIN)/everstep $(BENCH)

bench-compiled: $(VENV)/.compiled ## the same of the compiled package
	$(COMPILED)/bin/everstep $(BENCH)

peers: $(VENV)/.dev ## what `make bench` compares with, in an environment of its own
	test -x $(VENV)/peers/bin/python || $(PYTHON) -m venv $(VENV)/peers
	$(VENV)/peers/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)/peers/bin/python -m pip install --quiet --group bench

compiled: $(VENV)/.compiled ## .venv/compiled: the package as a compiled wheel; needs a C compiler and Python's headers

dev: $(VENV)/.dev ## make .venv with everything for work on the code

# A stamp is older than pyproject.toml exactly when what it stands for has to be done again.
$(VENV)/.runtime: pyproject.toml
	$(call venv)
	$(BIN)/python -m pip install --quiet -e '.[embedded,cli,fast]'
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(call venv)
	$(BIN)/python -m pip install --quiet -e . --group dev
	@touch $(VENV)/.runtime $@

# The wheel is made anew when any source has changed.
COMPILED := $(VENV)/compiled
$(VENV)/.compiled: pyproject.toml hatch_build.py $(shell find $(wildcard checkpoint scheduler workers console examples) -name '*.py' -o -name '*.lua' -o -name '*.html')
	test -x $(COMPILED)/bin/python || $(PYTHON) -m venv $(COMPILED)
	$(COMPILED)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	rm -rf $(COMPILED)/dist
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=true $(COMPILED)/bin/python -m pip wheel --quiet --no-deps --wheel-dir $(COMPILED)/dist .
	$(COMPILED)/bin/python -m pip install --quiet --group test $(COMPILED)/dist/*.whl
	$(COMPILED)/bin/python -m pip install --quiet --no-deps --force-reinstall $(COMPILED)/dist/*.whl
	@touch $@

# Makes .venv unless one is there (uv's has no pip, it gets one); pip 25.1 is the first that knows --group.
define venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "everstep needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1). Try: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1 || \
	$(PYTHON) -m venv --clear $(VENV) || { \
	echo "no .venv could be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
endef
