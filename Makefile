# Everything runs in a virtual environment of the checkout's own; Python 3.11 or newer and make are all that it takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-min test-docs test-mutations coverage docs lint dist bench clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv with the package (editable) and the tools

# Installed again only when what is declared has changed. The stamp comes last, so a broken install is retried.
$(STAMP): setup.py pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: '$(PYTHON)' was not found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else \
	  f"make: {sys.executable} is Python {v}, ccrk needs 3.11 or newer; name one: make PYTHON=/path/to/python")'
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all,dev]"
	@touch $@

demo: $(STAMP)  ## the guided tour, results in demo_output/
	$(BIN)/ccrk demo --out demo_output

test: $(STAMP)  ## the tests, without the slow ones
	$(BIN)/pytest

test-slow: $(STAMP)  ## the slow tests alone
	$(BIN)/pytest -m slow

test-min: $(STAMP)  ## the tests with the oldest dependencies that setup.py allows
	$(BIN)/python tests/min_versions.py

test-docs: $(STAMP)  ## execute every block, command line and notebook of the README and the pages, and count them
	$(BIN)/pytest -m "slow or not slow" tests/docs/test_execution.py

docs: $(STAMP)  ## the site, in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -c docs -b html -n -W --keep-going . docs/_build/html
	@echo "open docs/_build/html/index.html"

test-mutations: $(STAMP)  ## whether the tests notice code that was broken on purpose
	$(BIN)/python tests/mutations.py

coverage: $(STAMP)  ## the tests with the lines and branches that they reach, in htmlcov/
	$(BIN)/pytest --cov --cov-report=term --cov-report=html

lint: $(STAMP)  ## style, formatting, which room imports which, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(BIN)/python tests/build_wheel.py "$$folder" && \
	  $(BIN)/python tests/check_import_rules.py "$$folder/site" && $(BIN)/python tests/check_types.py "$$folder/site"

dist: $(STAMP)  ## wheel and source archive in dist/, checked
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

bench: $(STAMP)  ## every script in benchmarks/, one after the other
	@ls benchmarks/*.py >/dev/null 2>&1 || { echo "make: benchmarks/ holds no script" >&2; exit 1; }
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

clean:  ## remove what these targets made, .venv included
	rm -rf $(VENV) build dist demo_output docs/_build ./*.egg-info .pytest_cache .ruff_cache .import_linter_cache \
	  .mypy_cache .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
