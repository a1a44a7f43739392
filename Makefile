# Two commands matter: `make demo` and `make test`. Both make their own environment in .venv, from the lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test lint format bench faults localisation shortcuts lock clean

help:
	@echo "make demo    set up, and run the whole job on a data set of its own (two minutes after the downloads)"
	@echo "make test    set up, and run the tests"
	@echo "make lint    style, types"
	@echo "make format  rewrite the sources in the house style"
	@echo "make bench   set up, and measure programs and jobs against the forward pass and other tools (about an hour);"
	@echo "             BENCH='program job' for some parts, BENCH=--quick to see that it works"
	@echo "make faults  set up, and kill, starve and mislead jobs on purpose (about an hour); FAULTS='kill --rounds 5' for a part,"
	@echo "             FAULTS=--quick to see that it works"
	@echo "make localisation  pointing game and energy in box of every method on the demo (a quarter of an hour)"
	@echo "make shortcuts     whether the audit finds the demo's watermark, and nothing else, for 20 seeds (half an hour)"
	@echo "make lock    pin the dependencies anew (needs uv)"
	@echo "make clean   remove what make made"
	@echo "PYTHON=python3.12 make ... chooses the interpreter (3.10 to 3.13)"

demo: $(VENV)/.run
	$(BIN)/beamcam demo --output demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks.bench $(BENCH)

faults: $(VENV)/.dev
	$(BIN)/python -m tests.faults $(FAULTS)

localisation: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/localisation.py

shortcuts: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks.shortcuts

lock:
	infra/lock.sh

clean:
	rm -rf $(VENV) demo artifacts build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "beamcam needs Python 3.10 to 3.13, and $(PYTHON) is `$(PYTHON) --version`: PYTHON=python3.12 make ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The project itself comes last, without its dependencies (the lock has them) and without a build environment of its own
# (setuptools is in the lock), so that nothing is fetched that is not pinned.
$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(PIP) install --require-hashes -r requirements-dev.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@ $(VENV)/.run

# The tools that we compare with ask for other versions of what they share with us: all of it is pinned, and their word
# is not taken (infra/bench-overrides.txt).
$(VENV)/.bench: requirements-bench.lock pyproject.toml | $(VENV)/bin/python
	$(PIP) install --no-deps --require-hashes -r requirements-bench.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@ $(VENV)/.dev $(VENV)/.run
