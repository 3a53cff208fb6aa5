# Everything a newcomer types. `make help` lists it; `make run` and `make test` are all that is needed.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.run-ready
READY := $(VENV)/.ready

# The first interpreter that is one of 3.11 to 3.14 and can make environments; `make PYTHON=/path/to/python setup` overrides.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import ensurepip, venv; $(FITS)' 2>/dev/null && echo $$p && break; done)

# Tests wait more than they work. Each worker starts a stack of its own; a stack that is there already serves but one.
TEST_WORKERS ?= $(if $(NIGREDO_TEST_HOME)$(filter testcontainers,$(NIGREDO_TEST_STACK)),0,2)

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
NOT_INSTALLED := "nigredo: the locked dependencies are not installed: the package index does not answer, or lacks one of them for this machine"

BENCH_READY := $(VENV)/.bench-ready
QUIX := $(VENV)/quix

.PHONY: help setup run test test-all fresh-machine chaos check bench bench-smoke bench-profile bench-long format lock dist clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## fill .venv with the locked dependencies, those of the tests too (nothing to do when all is there)

run: $(RUN_READY) ## start everything, send a sample lead, stay up until Ctrl-C
	@exec $(BIN)/nigredo up --sample

test: setup ## run the tests against real Kafka, registry and Postgres (two at a time; TEST_WORKERS=0: one)
	@exec $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal -m "not thorough" $(ARGS)

test-all: setup ## the same, with the slow tests that stand beside a quicker one of the same promise: before a release
	@exec $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(ARGS)

fresh-machine: ## type the two commands above on a pristine Debian (root, debootstrap; SUITE=trixie, ONLY=run, ACCOUNTS=root)
	@SUITE="$(SUITE)" ONLY="$(ONLY)" ACCOUNTS="$(ACCOUNTS)" ARGS="$(ARGS)" exec tests/fresh_machine.sh

chaos: setup ## kill what runs at random while forms come in, and judge (KILLS, SUBMISSIONS, NETWORKS, TARGETS, ACTIONS, SECOND, SEED)
	@exec $(BIN)/python -m tests.chaos $(KILLS:%=--kills %) $(SUBMISSIONS:%=--submissions %) $(NETWORKS:%=--networks %) \
		$(TARGETS:%=--targets %) $(ACTIONS:%=--actions %) $(SECOND:%=--second %) $(SEED:%=--seed %) $(ARGS)

check: setup ## lint, formatting, types, import contracts, dead code, dependencies, spelling, documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/vulture
	$(BIN)/deptry --no-ansi .
	$(BIN)/codespell $$(git ls-files 2>/dev/null || echo .)
	$(BIN)/python -m pytest -q --no-header tests/contract/test_docs.py

bench: $(BENCH_READY) ## measure everything beside what it is compared with (ONLY=ingest, SLOW=window, ARGS=--json)
	@exec $(BIN)/python -m bench $(ONLY:%=--only %) $(SLOW:%=--slow %) $(ARGS)

bench-smoke: setup ## one short round of most of it, in a minute: that it works, and no figures to quote
	@exec $(BIN)/python -m bench --smoke $(ARGS)

bench-profile: $(BENCH_READY) ## which functions the time of each stage goes to, by sampling it under load
	@exec $(BIN)/python -m bench.profiled $(ARGS)

bench-long: $(BENCH_READY) ## how cost grows up to a million records; goes on where it was interrupted
	@exec $(BIN)/python -m bench.long $(ARGS)

format: setup ## rewrite what `make check` would complain of: code by ruff, docs/SETTINGS.md from the settings
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m tests.contract.settings_document

lock: RESOLVE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet
lock: ## resolve the dependencies anew into requirements*.lock and artifacts.lock (needs uv)
	$(RESOLVE) --group dev pyproject.toml -o requirements-dev.lock
	$(RESOLVE) --group build -c requirements-dev.lock pyproject.toml -o requirements.lock
	$(RESOLVE) --group bench -c requirements-dev.lock -o bench/requirements.lock
	$(RESOLVE) bench/references/quix.in -o bench/references/quix.lock
	$(BIN)/python -m nigredo.stack.artifacts

dist: $(RUN_READY) ## build the source archive, and from it the wheel, into dist/
	@rm -rf dist *.egg-info
	@$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' >/dev/null
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist dist/*.tar.gz
	@ls dist/*
	@echo "In an empty folder: pip install nigredo-*.whl && nigredo up --sample"

clean: ## stop a stack left running here and remove what was generated, its data too (asks first)
	@if [ -d .nigredo ]; then \
		if [ -z "$(YES)" ]; then printf "Delete .nigredo, with every lead stored in it? [y/N] "; read -r answer; [ "$$answer" = y ] || exit 1; fi; \
		if [ -x $(BIN)/nigredo ]; then $(BIN)/nigredo down; fi; \
		rm -rf .nigredo; \
	fi
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One clear line for each thing a machine may lack; pip's own words stay above its line.
$(RUN_READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { \
		if python3 -c '$(FITS)' 2>/dev/null; \
		then echo "nigredo: $$(python3 --version) lacks its venv module (Debian, Ubuntu: apt install python3-venv)"; \
		else echo "nigredo: needs Python 3.11 to 3.14, and here is $$(python3 --version 2>/dev/null || echo none); PYTHON=/path/to/python names another"; \
		fi >&2; exit 1; }
	@$(PYTHON) -c '$(FITS)' || { echo "nigredo: needs Python 3.11 to 3.14, and $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys; \
		libc = os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else None; \
		found = libc or sys.platform + " without it"; \
		old = tuple(map(int, (libc or "glibc 0").split()[-1].split("."))) < (2, 34); \
		sys.exit("nigredo: needs Linux with glibc 2.34 or later, and here is " + found if old else 0)'
	@echo "Installing the locked dependencies into $(VENV) (about a quarter of a minute the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --require-hashes --requirement requirements.lock || { echo $(NOT_INSTALLED) >&2; exit 1; }
	@$(INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

$(READY): $(RUN_READY) requirements-dev.lock
	@echo "Installing what the tests need besides"
	@$(INSTALL) --require-hashes --requirement requirements-dev.lock || { echo $(NOT_INSTALLED) >&2; exit 1; }
	@touch $@

$(BENCH_READY): $(READY) bench/requirements.lock bench/references/quix.lock
	@command -v wrk >/dev/null || { echo "bench: needs the load generator wrk (Debian, Ubuntu: apt install wrk)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement bench/requirements.lock
	@$(PYTHON) -m venv $(QUIX)
	@$(QUIX)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--requirement bench/references/quix.lock || { rm -rf $(QUIX); echo "Quix Streams cannot be installed here: left out"; }
	@touch $@
