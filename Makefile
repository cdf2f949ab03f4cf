# Two commands on a fresh machine with Python 3.11: `make demo` and `make test`. Each alone is enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SPEC := pyproject.toml constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable
# Byte code by all cores, where pip uses one. Some packages bring files for other versions of Python, which nothing imports.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

BENCH := .venv-bench

.PHONY: demo test check format help clean bench-env

help:
	@echo "make demo    run the whole path on real game play; the page is shards/demo/report.html"
	@echo "make test    lint, types, import contract and tests"
	@echo "make bench-env  install the peers of tools/bench in an environment of their own: several GB"
	@echo "make format  rewrite the sources in the project's format"
	@echo "make clean   remove the virtual environment and the demo's data"

demo: $(VENV)/.ready
	$(BIN)/vidbrain demo

test: $(VENV)/.ready-test
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/check

check: test

format: $(VENV)/.ready-test
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

# The peers pin other versions than the project, so they never share its environment.
bench-env: $(BENCH)/.ready

$(BENCH)/.ready: tools/bench/peers.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --requirement tools/bench/peers.txt
	touch $@

clean:
	rm -rf $(VENV) shards/demo

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vidbrain needs Python 3.11 or newer; give one: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# What `make test` installs is enough for `make demo` too.
$(VENV)/.ready: $(BIN)/python $(SPEC)
	$(INSTALL) '.[retro]'
	$(COMPILE)
	touch $@

$(VENV)/.ready-test: $(BIN)/python $(SPEC)
	$(INSTALL) '.[retro,doom,test]'
	$(COMPILE)
	touch $(VENV)/.ready $@
