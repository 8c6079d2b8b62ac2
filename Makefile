# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# MAKE stands here, and not in a recipe, so that `make -n test` runs nothing.
RUN = PYTHON=$(PYTHON) MAKE=$(MAKE) tests/testbed/start.sh

export PATH := $(abspath $(BIN)):$(PATH)
# The tests start Python hundreds of times: without its cache each start compiles everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-python lint format bench lock release clean help

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(STAMP) ## Set up, then run a task end to end on this machine
	@$(BIN)/python demo/demo.py

test: ## Set up, then linters, types and every test but the slow ones
	@$(RUN) quick $(ARGS)

test-slow: ## Set up, then the slow tests: what takes long, or repeats a thing in many variants
	@$(RUN) slow $(ARGS)

test-python: $(STAMP) ## The quick tests and the wheel's installation on each Python from 3.11 to 3.14 that is here
	@$(BIN)/python tests/pythons.py

lint: $(STAMP) ## ruff, mypy --strict, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x -P SCRIPTDIR $$(git ls-files -co --exclude-standard '*.sh') .ci/run

format: $(STAMP) ## Let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure against the bare tools; tables and JSON in benchmarks/results
	$(BIN)/python -m benchmarks $(ARGS)

lock: ## Resolve pyproject.toml anew into requirements.lock
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install -q pip-tools
	$(VENV)/lock/bin/pip-compile -q --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --extra dev -o requirements.lock pyproject.toml
	$(VENV)/lock/bin/pip-compile -q --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -c requirements.lock \
	  -o release/requirements.lock release/requirements.in
	$(PYTHON) -m release pins

release: $(VENV)/release/.installed ## Build the commit that is checked out into dist/, twice, and compare
	@$(VENV)/release/bin/python -m release --tag "$$TAG"

$(VENV)/release/.installed: release/requirements.lock
	$(PYTHON) -m venv $(VENV)/release
	$(VENV)/release/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# The stamp is the last thing written: an interrupted set-up is done again.
$(STAMP): requirements.lock pyproject.toml
	@echo "setting up $(VENV) (once, about half a minute)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean: ## Remove the environment and what tools left
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache benchmarks/results
