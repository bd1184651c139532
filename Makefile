# `make run` and `make test` are each enough on a machine with Python 3.11 (or newer) and make.

PYTHON ?= python3
BIN = .venv/bin
NODE_MODULES = tests/better_auth/node_modules/.package-lock.json

.PHONY: run test check bench lock

run: .venv/run.done
	@$(BIN)/python -m service serve

test: .venv/dev.done $(NODE_MODULES)
	@[ -n "$(ARGS)" ] || echo 'All tests: that takes several minutes. ARGS="-k batch -x" runs a part.'
	$(BIN)/python -m pytest $(ARGS)

check: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs more than this project's own packages: it says what, and tests/bench/README.md how to install it.
bench: .venv/dev.done
	$(BIN)/python -m tests.bench $(ARGS)

# After a change of the dependencies in pyproject.toml.
lock: .venv/dev.done
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
		--output-file requirements.txt pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
		--allow-unsafe --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml

.venv/run.done: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Installing the dependencies into .venv, half a minute or so …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

.venv/dev.done: .venv/run.done requirements-dev.txt
	@echo "Installing what tests and checks need into .venv, a minute or so …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

# What the tests with a real Better Auth server need; they are skipped when there is no npm, or the net is away.
$(NODE_MODULES): tests/better_auth/package-lock.json
	@! command -v npm >/dev/null || echo "Installing Better Auth for its tests, half a minute or so …"
	@if command -v npm >/dev/null; then npm ci --prefix tests/better_auth --ignore-scripts --no-audit --no-fund && touch $@; fi || [ -z "$$CI" ]
