# Two targets matter to a newcomer: `make demo` does the main job, `make test` runs every check and test.
# Both install what they need into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types tests install soak clean slurm-packages

install: $(STAMP)

# BasicSR 1.4.2 cannot be a plain dependency: its build wants torch and its run-time wants training tools.
# Only its network definitions are used (parity tests, video models), so it comes without dependencies.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test]'
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' \
	  && $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation basicsr==1.4.2 \
	  || echo "basicsr 1.4.2 needs Python < 3.13; its parity tests will be skipped"
	touch $@

demo: install
	$(BIN)/python -m vsr_hpc.demo

test: install slurm-packages lint types tests

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

tests:
	$(BIN)/python -m pytest

# Real Slurm for the scheduler's tests, where this machine lets us install it; its tests say why they skip.
slurm-packages:
	-sh slurm/install.sh

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
