.PHONY: pareto test lint

PYTHON ?= python3
BIN := .venv/bin

pareto: .venv/installed
	$(BIN)/python -m study.pareto

test: .venv/installed-test
	$(BIN)/python -m pytest

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# torchattacks asks for a requests of 2020 that it never imports, pyhessian for nothing new: they come alone.
.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/pip install --quiet --no-deps torchattacks==3.5.1 pyhessian==0.1
	touch $@
