# Every target sets up what it needs: system packages by apt, Python packages from the hashed lock.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11 /usr/local/bin/python3.11) python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup test lint unit e2e demo bench soak lock clean
help: ## show the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/ready ## install system and Python dependencies

# A build of our own is strict: it must succeed, without a warning. Only what setuptools says of every editable
# installation, that folders here come first in imports, is no news: they are what is installed.
NATIVE := mesh_proxy/wire/http2/native
.venv/ready: requirements/dev.txt scripts/system-packages pyproject.toml setup.py $(wildcard $(NATIVE)/*.[ch]) $(NATIVE)/build.py
	scripts/system-packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt
	TRIOMESH_NATIVE=required CFLAGS="-Wall -Wextra -Werror" PYTHONWARNINGS="ignore:Editable installation.:UserWarning" \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	touch $@

lint: setup ## ruff, mypy --strict, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## everything: lint, unit, property, proxy and network-namespace tests
	$(BIN)/pytest -q

unit: setup ## the tests that need no root
	$(BIN)/pytest -q -m "not e2e"

e2e: setup ## the tests in network namespaces (root)
	$(BIN)/pytest -q -m e2e

demo: setup ## a cluster, the mesh, a shop, and what goes wrong in it (root; KEEP=1 leaves it up)
	$(BIN)/python -m examples.bookshop

bench: setup ## benchmarks beside Envoy and HAProxy
	scripts/system-packages bench
	$(BIN)/python -m bench

soak: setup ## ten minutes of mixed traffic while configuration and endpoints change (SOAK_S=seconds)
	scripts/system-packages bench
	GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m bench.soak

lock: setup ## resolve the dependency locks anew
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header \
	  --allow-unsafe --strip-extras -o requirements/runtime.txt pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header \
	  --allow-unsafe --strip-extras --extra local --extra dev -o requirements/dev.txt pyproject.toml

clean: ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info $(NATIVE)/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
