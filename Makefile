# Two commands. Each makes .venv on first use; Python 3.10 or newer and a C++20 compiler are all they need.
#   make compare    every rung against the reference, and timed; ARGS="--shapes 64x128x256" passes options on
#   make test       style checks and the whole test suite
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
CPP_FILES = $(shell find kernels ref tests -name '*.cu' -o -name '*.cuh' -o -name '*.hpp')

.PHONY: compare test

compare: $(VENV)/installed
	$(BIN)/python -m gemm_ladder compare $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/python -m pytest -n 2

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --editable '.[test]'
	touch $@
