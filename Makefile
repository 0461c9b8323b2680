# The two commands that matter: `make demo` and `make test`. Everything lives in .venv; nothing is installed elsewhere.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# the distributions beside the core, each in its own folder
PARTS  := export plugins/zoo-timm plugins/zoo-classic plugins/zoo-segment plugins/zoo-detect plugins/zoo-gan
READY  := $(VENV)/.ready
# two processes, a test file to each: the fixtures of a file are made once
PYTEST_ARGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-gpu lint lock bench clean

help:
	@echo "make demo       fine-tune, export, verify and run a network on handwritten digits"
	@echo "make test       all tests"
	@echo "make test-fast  the tests that take less than 20 seconds each"
	@echo "make test-gpu   the tests that need an NVIDIA GPU and TensorRT"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the side-by-side measurements of benchmarks/"
	@echo "make lock       resolve the dependencies anew into requirements.lock"
	@echo "make clean      remove .venv and what was built"

setup: $(READY)

$(READY): requirements.lock pyproject.toml $(PARTS:%=%/pyproject.toml)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e . $(PARTS:%=-e %)
	touch $(READY)

demo: setup
	$(BIN)/zoo demo

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: setup
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

# TensorRT itself is the machine's own: pip install tensorrt, or JetPack's
test-gpu: setup
	$(BIN)/python -m pytest -m gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

lock:
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate --upgrade --no-emit-package edgezoo $(patsubst %,--no-emit-package %,zoo-export $(notdir $(filter plugins/%,$(PARTS)))) \
	  --all-extras --group dev -o requirements.lock pyproject.toml $(PARTS:%=%/pyproject.toml)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
