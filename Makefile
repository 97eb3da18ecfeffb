# `make quickstart` and `make test` need python3 (3.11 or newer, with venv), a C++ compiler and the
# Python headers; `stillhouse doctor` says which of them is missing.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stillhouse
DOCS_STAMP := $(VENV)/.stillhouse-docs
TRL_STAMP := build/trl/.stillhouse
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: help quickstart test check lint format slow chaos nodes bench bench-trl studies docs clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   distil a small language model, end to end (about 5 minutes)"
	@echo "make test         unit, property and distributed tests"
	@echo "make check        ruff, pyright, import-linter, unit and property tests"
	@echo "make slow         the long ones of the tests with real processes"
	@echo "make chaos        jobs under process kills"
	@echo "make nodes        jobs over two Ray nodes in network namespaces (root, iproute2)"
	@echo "make bench        measurements of docs/benchmarks.md; bench-trl: against TRL"
	@echo "make studies      the studies of docs/examples/studies (two hours and more on two cores)"
	@echo "make docs         the documentation, strictly, into site/"
	@echo "make clean        remove the environment and everything built"

# The stamp is written last, so an interrupted installation goes on where it stopped.
# torch goes first and alone: left to the resolver, pip may fetch gigabytes it then throws away.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e ".[test]"
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(PIP) -e ".[docs]"
	touch $@

quickstart: $(STAMP)
	$(BIN)/stillhouse run docs/examples/quickstart.yaml

# What needs no processes of its own shares the cores; the rest takes turns.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 tests/unit tests/property
	$(BIN)/python -m pytest -m "not slow" tests/distributed tests/chaos

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 tests/unit tests/property

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: $(STAMP)
	$(BIN)/python -m pytest tests/chaos

slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not netns" tests/distributed

nodes: $(STAMP)
	$(BIN)/python -m pytest tests/distributed/test_two_nodes.py

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/overhead.py
	$(BIN)/python tests/benchmarks/start.py
	$(BIN)/python tests/benchmarks/loss_head.py
	$(BIN)/python tests/benchmarks/recipes.py
	$(BIN)/python tests/benchmarks/features.py
	$(BIN)/python tests/benchmarks/teacher_passes.py
	$(BIN)/python tests/benchmarks/encoding_costs.py
	$(BIN)/python tests/benchmarks/encodings_quickstart.py
	$(BIN)/python tests/benchmarks/cache_store.py
	$(BIN)/python tests/benchmarks/cached_epochs.py
	$(BIN)/python tests/benchmarks/search.py
	$(BIN)/python tests/benchmarks/fairness.py

# TRL in an environment of its own that sees this project's packages and adds nothing to them.
$(TRL_STAMP): $(STAMP)
	$(PYTHON) -m venv build/trl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > build/project.pth
	mv build/project.pth $$(build/trl/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/
	build/trl/bin/python -m pip install --disable-pip-version-check --no-deps trl==1.16.0 $(PIP_ARGS)
	touch $@

bench-trl: $(TRL_STAMP)
	$(BIN)/python tests/benchmarks/against_trl.py --trl-python build/trl/bin/python

studies: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python docs/generate_studies.py

docs: $(DOCS_STAMP)
	$(BIN)/python docs/generate_reference.py --check
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
