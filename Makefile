# Few verbs. Each sets up what it needs: a virtual environment in .venv and the mosquitto broker.
PYTHON ?= python3
BIN := .venv/bin
# Whole files to each process; a process that dies is a failure and not replaced, as what it ran would be run again.
PROCESSES ?= 0
PARALLEL = -n $(PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
export EDGESERVE_MOSQUITTO ?= $(wildcard $(CURDIR)/.cache/mosquitto/mosquitto)

.DEFAULT_GOAL := help
.PHONY: help demo test test-pythons check arm64 bench bench-serving bench-compile bench-footprint bundle fuzz soak wheel-matrix docs clean setup-demo setup-dev

help:            ## Show the verbs
	@grep -hE '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

demo: setup-demo ## The whole story on one machine: compile, serve, roll out, take back (ARGS="--keep")
	@. scripts/environment.sh && $(BIN)/edgeserve demo $(ARGS)

test: setup-dev  ## Run every test (ARGS="-k name", PROCESSES=logical)
	@. scripts/environment.sh && $(BIN)/pytest $(PARALLEL) $(ARGS)

test-pythons:    ## Run the tests of what runs on devices with Python 3.10 and 3.13, minutes (scripts/pythons.sh)
	@scripts/pythons.sh $(ARGS)

check: setup-dev ## Format, lint, types, layers, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_docs.py --check

arm64: setup-dev ## Build Dockerfile.arm64 and prove it on an emulated processor; root, Debian (docs/images.md)
	@scripts/arm64.sh $(ARGS)

bench: setup-dev ## Measure the server against the raw runtime in about a minute
	@$(BIN)/python benchmarks/serving/run.py --quick $(ARGS)

bench-serving: setup-dev ## The same in full and against other servers, 25 minutes; writes docs/results/serving.md
	@$(BIN)/python benchmarks/serving/run.py $(ARGS)

bench-compile: setup-dev ## Measure the compiler on real models (docs/testdata.md); writes docs/results/compile.md
	@. scripts/environment.sh && $(BIN)/python benchmarks/compile.py $(ARGS)

bench-footprint: setup-dev ## Measure disk, memory and start of the agent; writes docs/results/footprint.md
	@. scripts/environment.sh && $(BIN)/python benchmarks/footprint.py $(ARGS)

bundle: setup-dev ## Make the offline bundle of a device for dist/ (PROFILE=raspberry-pi-5, ARGS="--release RELEASE")
	@$(BIN)/python scripts/bundle.py $(PROFILE) $(ARGS)

fuzz: setup-dev  ## A million hostile inputs for the server's parsers, minutes (ARGS="--count 10000000")
	@scripts/fuzz.sh $(ARGS)

soak: setup-dev  ## An hour of every kind of client on one server (ARGS="--minutes 15")
	@$(BIN)/python scripts/soak.py $(ARGS)

wheel-matrix: setup-dev ## What installs on which device, asked of pip, a minute; writes docs/results/wheel-matrix.md
	@$(BIN)/python scripts/wheel_matrix.py $(ARGS)

docs: setup-dev  ## Write the generated parts of docs/
	$(BIN)/python scripts/generate_docs.py

clean:           ## Remove what the other verbs made
	rm -rf .venv .cache build dist edgeserve-demo edgeserve-fleet .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup-demo:
	@PYTHON="$(PYTHON)" scripts/setup.sh demo

setup-dev:
	@PYTHON="$(PYTHON)" scripts/setup.sh dev
