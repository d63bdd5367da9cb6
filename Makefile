# Two commands: `make golden` writes golden vectors of the embedded model, `make test` runs the tests.
# Both make .venv on first use; it is brought up to date when pyproject.toml changes, and not otherwise.

PYTHON ?= python3
# Images in the bundle, and further options of `intsim golden`.  --state adds the insides of the scans at every step,
# which are most of the bytes: `make golden COUNT=64 GOLDEN=` for many images without them.
COUNT ?= 2
GOLDEN ?= --state
# Further options of pytest, of tools/rtl/run.py and of tests/faults.py; how many processes share the test files (0: all
# in one, for a debugger).
TESTS ?=
JOBS ?= 2
RTL ?=
FAULTS ?=

VENV := .venv
BIN := $(VENV)/bin
BUNDLE := golden_vectors

.PHONY: help golden test fuzz lint rtl faults clean

help:
	@echo "make golden   golden vectors of the embedded model in $(BUNDLE)/ (no torch needed)"
	@echo "make test     all tests"
	@echo "make fuzz     100,000 hostile files for the readers, twice (nightly; make test has 5,000)"
	@echo "make lint     ruff and mypy"
	@echo "make rtl      the example RTL against golden vectors (needs simulators; says which)"
	@echo "make faults   200 kills, full disks, broken caches and more; half an hour"
	@echo "make clean    remove what these made"
	@echo "PYTHON=... chooses the interpreter, 3.10 or newer."

# The new bundle is written aside and takes the old one's place when it is whole.
golden: $(VENV)/.core
	rm -rf $(BUNDLE).new
	$(BIN)/intsim golden --count $(COUNT) $(GOLDEN) --out $(BUNDLE).new
	rm -rf $(BUNDLE)
	mv $(BUNDLE).new $(BUNDLE)
	$(BIN)/intsim verify $(BUNDLE)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

# SEED=... draws other files; a failure is run again by the options that it prints.
SEED ?= 1 2
fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz.py --cases 100000 --seed $(SEED) --keep fuzz_failures --json tests/reports/fuzz.json

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

# Simulators and cocotb are not installed here: what is missing is named.
rtl: $(VENV)/.core
	$(BIN)/python tools/rtl/run.py $(RTL)

faults: $(VENV)/.test
	$(BIN)/python tests/faults.py --json tests/reports/faults.json $(FAULTS)

clean:
	rm -rf $(VENV) .nox $(BUNDLE) $(BUNDLE).new build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find intsim golden bitexact tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[test]'
	@touch $@ $(VENV)/.core
