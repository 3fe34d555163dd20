# Everything a newcomer or CI calls. Needs python3 (3.11 or newer, with venv), make and PyPI, nothing else.

SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# The lock file pins uv as it pins everything else.
UV_VERSION := $(shell awk '/^name = "uv"$$/ { getline; gsub(/"/, "", $$3); print $$3 }' uv.lock)
# Test files that pytest has rewritten are kept, whatever the environment says: to rewrite all takes each worker 5 s.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest
UV := UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON=$(BIN)/python UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV= $(BIN)/uv

.DEFAULT_GOAL := help
.PHONY: help install run test test-fast clients chaos mutants cov bench bench-growth check fmt sbom audit lock clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Install the server, its tools and the embedded MongoDB into .venv

run: $(STAMP) ## Start everything, play a hospital stay, show the notices (ARGS=--once to end by itself)
	@$(BIN)/carerelay run $(ARGS)

test: $(STAMP) ## Run the whole test suite on two cores (ARGS="-k name" for a part of it)
	@$(PYTEST) -n 2 --dist loadfile $(ARGS)

test-fast: $(STAMP) ## Run the quick tests of every room, without those that start programs (ARGS as for test)
	@$(PYTEST) -n 2 --dist loadfile -m "not (slow or processes or chaos or clients)" $(ARGS)

clients: $(STAMP) ## Play the main flows of six clients of others; needs npm, Node.js 20, mvn, Java 17 and the network (docs/clients.md)
	@$(PYTEST) -m "clients or not clients" tests/clients $(ARGS)

chaos: $(STAMP) ## Kill servers and databases dozens of times and see that no notice is lost (many minutes)
	@$(PYTEST) -m chaos tests/subscriptions tests/cli tests/authorization tests/interactions tests/coordination tests/test_wrong_clock.py $(ARGS)

mutants: $(STAMP) ## Put 200 faults into copies of the code, see whether tests notice; an hour (ARGS="--sample 20 --seed 3 --room search")
	@$(BIN)/python -m tests.mutants $(ARGS)

cov: $(STAMP) ## Run the tests and show which lines and branches they miss
	@$(PYTEST) --cov --cov-report=term-missing:skip-covered $(ARGS)

bench: $(STAMP) ## Compare the server's speed with a bare baseline's; writes build/bench.json (ARGS="read --runs 5")
	@$(BIN)/python -m benchmarks $(ARGS)

bench-growth: $(STAMP) ## Ask a population 64 times as large what it costs; a quarter of an hour, writes build/growth.json
	@$(BIN)/python -m benchmarks growth --scale 64 --output build/growth.json $(ARGS)

check: $(STAMP) ## Check format, lint, types, the layers of the rooms and the lock file
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(UV) lock --check

fmt: $(STAMP) ## Format the code and apply the safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

sbom: $(STAMP) ## Write build/sbom.json: what the server is made of, as CycloneDX, from the lock file
	@mkdir -p build
	$(UV) export --quiet --frozen --no-dev --no-emit-project --format cyclonedx1.5 --output-file build/sbom.json

audit: $(STAMP) ## Look for known weaknesses of what is locked; asks PyPI and OSV, so it needs the network
	@mkdir -p build
	$(UV) export --quiet --frozen --no-emit-project --format requirements.txt --output-file build/requirements.txt
	$(UV) tool run --from 'pip-audit>=2.9,<3' pip-audit --require-hashes --disable-pip --requirement build/requirements.txt

lock: $(STAMP) ## Write uv.lock anew after a change of dependencies
	$(UV) lock

clean: ## Remove .venv and every cache; data/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov dist

$(STAMP): pyproject.toml uv.lock $(BIN)/uv
	@echo "Installing into .venv (the first time takes a minute or two)"
	@$(UV) sync --quiet --frozen --inexact --extra embedded --extra pdf --compile-bytecode
	@touch $@

$(BIN)/uv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with PYTHON=..., for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
