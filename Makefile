PYTHON ?= python3
BIN := .venv/bin
# Two test processes of one thread each beat one process of two: most tests are Python, not matrix products.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test lint clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed-dev  ## Make .venv with everything, developer tools too

demo: .venv/.installed  ## Train, decant, index and predict on the generated job market (5 minutes)
	$(BIN)/decant demo

test: .venv/.installed-dev  ## Run the tests and doctests (PYTEST_ARGS adds options; '-m slow' runs those that take minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: .venv/.installed-dev  ## Check style, types and the rooms' import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## Remove .venv and every cache
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make installation happen once, and again when what is installed changes.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
