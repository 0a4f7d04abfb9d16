# Each target does its own set-up: a virtual environment in $(VENV), then the wheel built from this checkout.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SOURCES := $(shell find mitoscan weights configs -type f -not -name '*.pyc')

.PHONY: demo test lint types docs check clean

demo: $(VENV)/installed
	$(BIN)/mitoscan demo

test: $(VENV)/installed
	MITOSCAN_TEST_INSTALLED=1 $(BIN)/pytest -n 2

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed
	$(BIN)/mypy

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -d build/docs

check: lint types docs test

$(VENV)/dependencies: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q ".[all,dev]"
	touch $@

$(VENV)/installed: $(VENV)/dependencies $(SOURCES)
	$(BIN)/pip install -q --no-deps --force-reinstall .
	touch $@

clean:
	rm -rf $(VENV) build dist
