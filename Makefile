# Two commands do everything on a machine with Python 3.11 or newer: `make demo` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint fast clean

demo: $(INSTALLED)  ## simulate a shop, build its profiles, show two, score them all
	$(BIN)/ray-profile demo --folder demo

test: lint  ## style, types and every test
	$(BIN)/python -m pytest

fast: $(INSTALLED)  ## the tests that need neither Ray nor minutes
	$(BIN)/python -m pytest -m "not slow and not ray"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bilingual]'
	touch $@
