# The verbs of this repository. `make test` on a bare clone needs Python 3.11 or newer, and installs the rest into .venv.

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXTRAS := test
MINUTES ?= 18
OUT ?= out/quickstart

.PHONY: help setup demo test soak fuzz lowest lint types bench docs wheel clean
help:            ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(PIP) install --quiet --editable '.[$(EXTRAS)]'
	@$(BIN)/python -m trueline.serve.native
	@$(BIN)/python -c "open('.venv/ready', 'w').close()"

setup: .venv/ready  ## install the package and the tools of this file into .venv

demo: .venv/ready  ## the main job: a small model learns what people prefer (18 to 20 minutes on 2 cores)
	$(BIN)/trueline quickstart --minutes $(MINUTES) --out $(OUT)

test: lint types  ## lint, types, doors, the fast tests and a sample of the slow ones
	$(BIN)/python -m pytest -q -m "not slow or sample"

soak: docs  ## the slow tests, the documentation, and the fast tests as an older processor would run them
	$(BIN)/python -m pytest -q -m slow
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -q -m "not slow"

fuzz: .venv/ready  ## the readers of files and templates under atheris (Linux, macOS), five minutes each
	$(PIP) install --quiet atheris
	for target in header template rows; do $(BIN)/python -m tests.fuzz.coverage_guided $$target 300 || exit 1; done

lowest:          ## the fast tests on the lowest versions that pyproject.toml names, in .venv/lowest
	$(PYTHON) -m venv .venv/lowest
	PIP_CONSTRAINT=constraints-lowest.txt $(BIN:.venv/%=.venv/lowest/%)/python -m pip install --quiet --editable '.[test]'
	$(BIN:.venv/%=.venv/lowest/%)/python -m pytest -q -m "not slow"

lint: .venv/ready  ## ruff, the import rules of the house, and its budgets of lines
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/rules/budgets.py

types: .venv/ready  ## mypy
	$(BIN)/mypy

bench: .venv/ready  ## one script per claim, ours and the peer in one run
	PIP_CONSTRAINT=constraints.txt $(PIP) install --quiet '.[bench]'
	for script in $(wildcard bench/*.py); do $(BIN)/python $$script || exit 1; done

docs: .venv/ready  ## the documentation, strictly, into site/
	PIP_CONSTRAINT=constraints.txt $(PIP) install --quiet --editable '.[$(EXTRAS),docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: .venv/ready  ## the wheel, into dist/
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .

clean:           ## remove what the other verbs made
	rm -rf .venv build dist site out .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
