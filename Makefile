# Everything happens in .venv, made on first use with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# One process a core: tests of models this small gain nothing from threads.
FAST := -m "not slow and not bench" -n auto --dist worksteal
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check format env

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: .venv/base.stamp ## survey the bundled model on real text; the report is demo-report/report.html
	$(BIN)/lw survey demo --out demo-report

test: .venv/dev.stamp ## run the fast tests
	$(BIN)/python -m pytest $(FAST)

test-slow: .venv/dev.stamp ## run all tests but the benchmarks
	$(BIN)/python -m pytest -m "not bench"

check: .venv/dev.stamp ## format, lint, types, import layers, fast tests and doctests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py
	$(BIN)/python -m pytest $(FAST)

format: .venv/dev.stamp ## format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

env: .venv/dev.stamp ## make the environment for development

# The stamps say which install is done; a change of versions or dependencies makes them old.
.venv/base.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is missing or older than Python 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv; the first time this fetches torch and takes a few minutes."
	@$(INSTALL) --editable .
	@touch $@

.venv/dev.stamp: .venv/base.stamp
	@$(INSTALL) --editable '.[dev]'
	@touch $@
