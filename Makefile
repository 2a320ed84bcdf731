# `make demo` and `make test` are all a newcomer needs: each makes .venv if it is not there, installs, and runs.

PYTHON  ?= python3
WORKERS ?= 2
OUT     ?= eenet-demo
VENV    := .venv
BIN     := $(VENV)/bin
DEV     := $(VENV)/.installed-dev
DOCS    := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format docs clean

help:
	@echo "make demo       train, record, measure, fit, run and report on the embedded data set (to $(OUT)/)"
	@echo "make test       every test but the slow ones"
	@echo "make test-slow  the slow tests"
	@echo "make lint       formatting, lint, types, import layers"
	@echo "make format     rewrite the formatting"
	@echo "make docs       the pages in docs/_build/html"
	@echo "make clean      remove .venv and everything that was built"
	@echo "PYTHON=python3.12 make test uses another interpreter (>= 3.11) for a new .venv"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One installation serves every target; the stamps depend on what decides it, so a second call reuses it.
$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,onnx,openvino,text,train,vision]'
	@touch $@

$(DOCS): pyproject.toml constraints.txt $(DEV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

demo: $(DEV)
	$(BIN)/eenet demo --out $(OUT)

test: $(DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict src runtime/src
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
