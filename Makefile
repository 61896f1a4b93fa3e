# Two commands do everything on a machine with Python 3.11 or newer: `make demo` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
BENCHMARKS := startup encode fold overhead increment memory store serve serve_kills
INSTALLED := .venv/.installed

.PHONY: demo test lint fast bench clean

demo: $(INSTALLED)  ## simulate a shop, build its profiles, show two, score them all
	$(BIN)/ray-profile demo --folder demo

test: lint  ## style, types and every test
	$(BIN)/python -m pytest

fast: $(INSTALLED)  ## the tests that need neither Ray nor minutes
	$(BIN)/python -m pytest -m "not slow and not ray"

bench: $(INSTALLED)  ## the short form of every benchmark; fails where a ratio lies beyond benchmarks/floors.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@failed=; for each in $(BENCHMARKS); do $(BIN)/python benchmarks/$$each.py || failed="$$failed $$each"; done; \
	if [ -n "$$failed" ]; then echo "beyond a floor or broken:$$failed"; exit 1; fi

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bilingual,train,serve]'
	touch $@
