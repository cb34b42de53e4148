# make demo   set up, then distil the shipped teacher on the MNI152 brain (minutes on a CPU)
# make test   set up, then run the tests
# make check  what CI runs before the tests: ruff, mypy, import contracts
# make bench  how fast a cache is read, beside the formats that others use (minutes, 12 GB of disk)
# make clean  remove what these made

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
READY := $(VENV)/.ready

.PHONY: demo test check bench clean

demo: $(READY)
	$(BIN)/efficient-medsam2 demo

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks.cache_read

clean:
	rm -rf $(VENV) runs/demo runs/phantom build *.egg-info cache/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(READY): pyproject.toml setup.py constraints.txt cache/row_reads.c
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
	  sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + v + \
	  "; run: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev]'
	touch $@
