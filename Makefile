# Two commands do everything; each sets itself up in .venv on a machine that has only Python 3 and make.
#   make demo    the whole story on real digits: train, quantize, start every role, ask privately, compare
#   make test    linters, types, import laws, tests

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint types laws pytest clean help

help:
	@sed -n '2,3s/^# *//p' Makefile

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch" "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[audit,demo,federated,homomorphic,pictures,dev]"
	touch $@

demo: $(READY)
	$(BIN)/pqi demo

test: lint types laws pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

laws: $(READY)
	$(BIN)/lint-imports

pytest: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
