.PHONY: pareto test lint

PYTHON ?= python3
BIN := .venv/bin

pareto: .venv/installed
	$(BIN)/python -m study.pareto

# Two files at a time, one thread each; a file's tests stay together, for they may share a study. Then those that need
# the machine to themselves, a cluster of hosts. These, and tests that kill and break studies, are long: twenty minutes on
# two cores, skipped without TEST_LONG=1.
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not hosts" --numprocesses 2 --dist loadfile --no-loadscope-reorder
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m hosts tests/cluster

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
