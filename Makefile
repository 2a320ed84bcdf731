# `make demo` and `make test` are all a newcomer needs: each makes .venv if it is not there, installs, and runs.

PYTHON  ?= python3
WORKERS ?= 2
OUT     ?= eenet-demo
VENV    := .venv
BIN     := $(VENV)/bin
DEV     := $(VENV)/.installed-dev
BARE    := .venv-no-torch
RAY     := .venv-ray
# Modules are compiled when they are first imported: most of what libraries bring never is.
INSTALL := -m pip install --quiet --no-compile --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-no-torch test-ray test-extras test-docker test-fits lint format docs clean

help:
	@echo "make demo       train, record, measure, fit, run and report on the embedded data set (to $(OUT)/)"
	@echo "make test       every test but the slow ones"
	@echo "make test-slow  the slow tests"
	@echo "make test-no-torch  what must work where PyTorch is not installed, in an environment of its own"
	@echo "make test-ray       Ray Serve and Ray Data, in an environment of its own"
	@echo "make test-extras    every extra alone in an empty environment: an import and a command"
	@echo "make test-docker    the steps of docker/Dockerfile in an empty environment"
	@echo "make test-fits      Lightning and TensorBoard are installed, and their tests run"
	@echo "make lint       formatting, lint, types, import layers"
	@echo "make format     rewrite the formatting"
	@echo "make docs       the pages in docs/_build/html"
	@echo "make clean      remove .venv and everything that was built"
	@echo "PYTHON=python3.12 make test uses another interpreter (>= 3.11) for a new .venv"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One installation serves every target; the stamps depend on what decides it, so a second call reuses it.
$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) --editable '.[dev,docs]'
	@touch $@

demo: $(DEV)
	$(BIN)/eenet demo --out $(OUT)

test: $(DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

# The package is installed as users install it; a change of its files installs it again.
$(BARE)/.installed: pyproject.toml constraints.txt README.md $(shell find src -name '*.py')
	$(PYTHON) -m venv $(BARE)
	$(BARE)/bin/python $(INSTALL) '.[onnx,report,serve]' pytest
	@touch $@

test-no-torch: $(DEV) $(BARE)/.installed
	$(BIN)/python tests/no_torch/make_export.py $(BARE)/export
	EENET_EXPORT=$(abspath $(BARE)/export) $(BARE)/bin/python -m pytest -c tests/no_torch/pytest.ini tests/no_torch

# Ray has many dependencies of its own. Its replicas are other processes: warnings of theirs are no errors of ours.
$(RAY)/.installed: pyproject.toml
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[onnx,ray]' beartype hypothesis pytest
	@touch $@

test-ray: $(DEV) $(RAY)/.installed
	$(BIN)/python tests/no_torch/make_export.py $(RAY)/made
	EENET_EXPORT=$(abspath $(RAY)/made) $(RAY)/bin/python -m pytest -W ignore -m slow tests/serving/test_ray.py

# What is too large for every developer: Lightning and TensorBoard.
test-fits: $(DEV)
	$(BIN)/python $(INSTALL) --editable '.[fits]'
	$(BIN)/python -c 'import lightning, tensorboard'
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_lightning_example.py tests/training/test_log.py

test-extras: $(DEV)
	PYTHON=$(PYTHON) BIN=$(BIN) bash .ci/extras

test-docker: $(DEV)
	PYTHON=$(PYTHON) BIN=$(BIN) bash .ci/docker

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) $(BARE) $(RAY) build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
