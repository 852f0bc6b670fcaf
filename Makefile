# Makes .venv and runs the two things a newcomer wants; see README.md.
PYENV = $(or $(PYENV_ROOT),$(HOME)/.pyenv)
# the newest Python that works: 3.12 and 3.13 get a newer and faster JAX than 3.11
PYTHON := $(or $(PYTHON),$(shell for minor in 13 12 11; do \
	for python in python3.$$minor $$(ls -rvd $(PYENV)/versions/3.$$minor.*/bin/python 2>/dev/null) python3 python; do \
	$$python -c "import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, $$minor))" 2>/dev/null \
	&& echo $$python && break 2; done; done))
EXTRAS ?= test
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN = $(VENV)/bin
OUT = build/quickstart

FAST ?=
TESTS = $(if $(FAST),not slow and not exhaustive,not exhaustive)

.PHONY: install test test-all test-floors test-gpu measure-gpu check quickstart docs dist clean

install: $(VENV)/installed-$(EXTRAS)

# a stamp for each list of extras
$(VENV)/installed-%: pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv was found;" \
		"install one (Debian: python3 and python3-venv), or name it: make PYTHON=/path/to/python" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[$*]"
	@touch $@

test: check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "$(TESTS)"

test-all: check
	XLA_FLAGS= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# the fast tests with the oldest versions that pyproject.toml allows
test-floors:
	mkdir -p build
	$(PYTHON) .ci/floors.py > build/floors.txt
	$(MAKE) install VENV=.venv-floors CONSTRAINTS=build/floors.txt
	.venv-floors/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m "not slow and not exhaustive"

# the sampler, the losses, the LSTM and the step on a GPU; GPU_PYTHON has JAX for it, pytest, and the packages of jaxlm
GPU_PYTHON ?= python3
test-gpu:
	XLA_FLAGS= JAX_DEFAULT_MATMUL_PRECISION=highest $(GPU_PYTHON) -m pytest -p no:xdist -m "not exhaustive" \
		tests/candidate_sampling tests/losses tests/model tests/training tests/test_matmul.py tests/test_row_updates.py

# the figures of docs/results.md for a GPU; DATA is a prepared corpus, PARTS some of: train steps equal-time compilation
PARTS ?= train steps equal-time compilation
measure-gpu: export PYTHONPATH = $(CURDIR)
measure-gpu:
	@test -e "$(DATA)/vocabulary.json" || { echo "error: DATA is '$(DATA)', which jaxlm prepare has not made;" \
		"prepare a text and name the directory: make measure-gpu DATA=data" >&2; exit 2; }
	$(GPU_PYTHON) examples/benchmarks/measure_gpu.py "$(DATA)" --parts $(PARTS)

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

docs: install $(VENV)/installed-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs build/docs
	@echo "documentation: build/docs/index.html"

dist: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) .venv-floors build dist *.egg-info
