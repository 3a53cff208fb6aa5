# Everything a newcomer types. `make help` lists it; `make run` and `make test` are all that is needed.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The first interpreter that starts and is one of 3.11, 3.12 and 3.13; `make PYTHON=/path/to/python setup` overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

# Tests wait more than they work. Each worker starts a stack of its own; a stack that is there already serves but one.
TEST_WORKERS ?= $(if $(NIGREDO_TEST_HOME)$(filter testcontainers,$(NIGREDO_TEST_STACK)),0,2)

BENCH_READY := $(VENV)/.bench-ready
QUIX := $(VENV)/quix

.PHONY: help setup run test fresh-machine chaos check bench bench-smoke bench-profile bench-long format lock clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## fill .venv with the locked dependencies (nothing to do when all is there)

run: setup ## start everything, send a sample lead, stay up until Ctrl-C
	@exec $(BIN)/nigredo up --sample

test: setup ## run every test against real Kafka, registry and Postgres (two at a time; TEST_WORKERS=0: one)
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

format: setup ## let ruff rewrite what `make check` would complain of
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: RESOLVE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet
lock: ## resolve the dependencies anew into requirements.lock and artifacts.lock (needs uv)
	$(RESOLVE) --group dev pyproject.toml -o requirements.lock
	$(RESOLVE) --group bench -c requirements.lock -o bench/requirements.lock
	$(RESOLVE) bench/references/quix.in -o bench/references/quix.lock
	$(BIN)/python -m nigredo.stack.artifacts

clean: ## stop a stack left running here and remove what was generated, its data too (asks first)
	@if [ -d .nigredo ]; then \
		if [ -z "$(YES)" ]; then printf "Delete .nigredo, with every lead stored in it? [y/N] "; read -r answer; [ "$$answer" = y ] || exit 1; fi; \
		if [ -x $(BIN)/nigredo ]; then $(BIN)/nigredo down; fi; \
		rm -rf .nigredo; \
	fi
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "nigredo: needs Python 3.11, 3.12 or 3.13 with its venv module (Debian, Ubuntu: apt install python3-venv), or set PYTHON=" >&2; exit 1; }
	@echo "Installing the locked dependencies into $(VENV) (about half a minute the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

$(BENCH_READY): $(READY) bench/requirements.lock bench/references/quix.lock
	@command -v wrk >/dev/null || { echo "bench: needs the load generator wrk (Debian, Ubuntu: apt install wrk)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement bench/requirements.lock
	@$(PYTHON) -m venv $(QUIX)
	@$(QUIX)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--requirement bench/references/quix.lock || { rm -rf $(QUIX); echo "Quix Streams cannot be installed here: left out"; }
	@touch $@
