# `make` lists what there is. A second run skips what is already there.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DISTRIBUTIONS := shared packages/medical packages/pointcloud packages/restoration packages/video_pose .
OUT ?= demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-all check bench wheels clean browser
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## system packages, virtual environment, all packages of this checkout

demo: $(INSTALLED) ## train, predict, evaluate and report on a data set made on the fly: about a minute once set up (OUT=folder)
	$(BIN)/vsuite-medical demo --out $(OUT) --overwrite

check: $(INSTALLED) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# One process a core, each with one thread of torch; the tests of a file stay together, since they share what is costly to make.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $$(nproc) --dist loadfile

test: browser check ## check, then all tests but the slow ones
	$(PYTEST) -m "not slow"

test-all: browser check ## check, then every test
	$(PYTEST)

bench: $(INSTALLED) ## SegFormer3D beside its plain form on 4x128x128x128
	$(BIN)/vsuite bench segformer3d --size 4x128x128x128 --baseline plain --optimize

wheels: $(INSTALLED) ## builds every distribution into dist/
	rm -rf dist
	for d in $(DISTRIBUTIONS); do $(BIN)/python -m build --no-isolation --outdir dist $$d || exit 1; done

clean: ## removes the environment and everything that was built
	rm -rf $(VENV) dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

browser:
	@tools/system_packages.sh test

$(INSTALLED): $(DISTRIBUTIONS:%=%/pyproject.toml) constraints.txt requirements-dev.txt
	@tools/system_packages.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vsuite needs Python 3.11 or later: make PYTHON=python3.11")'
	[[ -x $(BIN)/pip ]] || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@
