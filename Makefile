# Makes .venv and runs the two things a newcomer wants; see README.md.
PYTHON ?= $(shell for python in python3.12 python3.13 python3.11 python3 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$python && break; done)
EXTRAS ?= test
VENV ?= .venv
BIN = $(VENV)/bin
OUT = build/quickstart

FAST ?=
TESTS = $(if $(FAST),not slow and not exhaustive,not exhaustive)

.PHONY: install test test-all check quickstart docs dist clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv was found;" \
		"install one (Debian: python3 and python3-venv), or name it: make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

test: check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 -m "$(TESTS)"

test-all: check
	XLA_FLAGS= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quickstart: install
	rm -rf $(OUT)
	$(BIN)/python examples/embedded_corpus.py $(OUT)/documentation.txt
	$(BIN)/jaxlm prepare $(OUT)/documentation.txt --vocab-size 20000 --out $(OUT)/data
	$(BIN)/jaxlm train $(OUT)/data --out $(OUT)/run --embedding-size 128 --hidden-size 256 --num-sampled 256 \
		--minutes 2 --eval-every 250 --eval-tokens 10000
	$(BIN)/jaxlm generate $(OUT)/run --prompt "Returns the" --num-words 120
	$(BIN)/jaxlm-convert to-keras $(OUT)/run $(OUT)/documentation.keras
	$(BIN)/python examples/keras_inference.py $(OUT)/documentation.keras $(OUT)/run/vocabulary.json "Returns the shape of the"
	@echo "curve of the run: $(OUT)/run/curve.png"

docs: $(VENV)/docs-installed
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs build/docs
	@echo "documentation: build/docs/index.html"

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	@touch $@

dist: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info
