# make setup      a virtual environment in .venv with medfl and its tools
# make demo       one small federation from start to report, in runs/demo
# make test       everything but the slow acceptance tests
# make test-slow  the slow acceptance tests
# make test-flower the tests over Flower, in an environment of its own (.venv-flower)
# make lint       style, types and the direction of imports
# make bench      measure speed
# make protocol   generate the messages of coordinator and site anew from medfl.proto
# make docs       build the documentation into site/
# make clean      remove what the targets above made, except finished runs
#
# PYTHON chooses the interpreter of a new environment: make setup PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FLOWER := .venv-flower
DEMO := runs/demo

# tests are single-threaded: two files at a time, those that may take longest first (tests/conftest.py)
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

# nothing is written to the home folder; files that can be made again lie beside the runs
export MEDFL_CACHE ?= $(CURDIR)/runs/.cache
export MPLCONFIGDIR ?= $(CURDIR)/runs/.cache/matplotlib
# albumentations asks the network for a newer version unless told not to
export NO_ALBUMENTATIONS_UPDATE := 1

.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-flower lint bench protocol docs clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	@touch $@

# Flower's pins do not fit beside medfl's tools
$(FLOWER)/.installed: pyproject.toml constraints-flower.txt
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-flower.txt \
		-e '.[flower,grpc,he]' 'transformers<5'
	@touch $@

demo: setup
	@if [ -e $(DEMO) ] && [ ! -e runs/.demo ]; then \
		echo "$(DEMO) was not made by 'make demo': move it away first" >&2; exit 1; fi
	@rm -rf $(DEMO) && mkdir -p runs && touch runs/.demo
	$(BIN)/medfl simulate configs/pneumonia.yaml --out $(DEMO)
	@echo "open $(DEMO)/report.html in a browser"

test: export OMP_NUM_THREADS = 1
test: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: export OMP_NUM_THREADS = 1
test-slow: setup
	$(BIN)/python -m pytest $(PARALLEL) -m slow --durations=40

# minutes of Flower's own waiting: not a part of test-slow
test-flower: export OMP_NUM_THREADS = 1
test-flower: setup $(FLOWER)/.installed
	$(BIN)/python -m pytest tests/integration/test_flower.py tests/integration/test_flower_quickstarts.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

# the tests' own options skip benchmarks, so they are replaced here
bench: export OMP_NUM_THREADS = 1
bench: setup
	$(BIN)/python -m pytest tests/benchmarks -o addopts="--import-mode=importlib" --benchmark-only

# the compiler's version decides which protobuf can read its output: 1.76 writes for 6.31 and later
PROTOCOL := medfl/transport/protocol
protocol:
	rm -rf build/protocol-env
	$(PYTHON) -m venv build/protocol-env
	build/protocol-env/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==1.76.0
	build/protocol-env/bin/python -m grpc_tools.protoc -I $(PROTOCOL) \
		--python_out=$(PROTOCOL) --pyi_out=$(PROTOCOL) $(PROTOCOL)/medfl.proto
	rm -rf build/protocol-env

docs: $(VENV)/.docs-installed
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(FLOWER) site build dist medfl.egg-info runs/.cache .benchmarks .hypothesis
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find medfl tests -name __pycache__ -type d -prune -exec rm -rf {} +
