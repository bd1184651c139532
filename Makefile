# `make run` and `make test` are each enough on a machine with Python 3.11 (or newer) and make.

PYTHON ?= python3
BIN = .venv/bin
COMPILE = $(BIN)/pip-compile --quiet --upgrade --strip-extras --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-emit-trusted-host --no-header
CHECK_PYTHON = 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	"Python 3.11 or newer is needed, and $(PYTHON) is older: make PYTHON=python3.12")'
NODE_MODULES = $(patsubst %,tests/%/node_modules/.package-lock.json,better_auth generators)

.PHONY: run test check bench lock

run: .venv/run.done
	@$(BIN)/python -m service serve

test: .venv/dev.done $(NODE_MODULES)
	@[ -n "$(ARGS)" ] || echo 'All tests: that takes several minutes. ARGS="-k batch -x" runs a part.'
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

check: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs more than this project's own packages: it says what, and tests/bench/README.md how to install it.
bench: .venv/dev.done
	$(BIN)/python -m tests.bench $(ARGS)

# After a change of the dependencies in pyproject.toml. requirements.txt is the service alone, for a database of one's
# own; the second has the embedded PostgreSQL as well, the third OpenTelemetry, the last all that tests and checks need.
lock: .venv/dev.done
	$(COMPILE) --output-file requirements.txt pyproject.toml
	$(COMPILE) --extra embedded --constraint requirements.txt --output-file requirements-embedded.txt pyproject.toml
	$(COMPILE) --extra opentelemetry --constraint requirements.txt \
		--output-file requirements-opentelemetry.txt pyproject.toml
	$(COMPILE) --allow-unsafe --extra embedded --extra opentelemetry --extra dev \
		--constraint requirements-embedded.txt --constraint requirements-opentelemetry.txt \
		--output-file requirements-dev.txt pyproject.toml

# An environment that works is kept when the dependencies change: another Python must not be mixed into it.
.venv/run.done: requirements-embedded.txt
	@echo "Installing the dependencies into .venv, half a minute or so …"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(PYTHON) -c $(CHECK_PYTHON) && $(PYTHON) -m venv --clear .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-embedded.txt
	@touch $@

.venv/dev.done: .venv/run.done requirements-dev.txt
	@echo "Installing what tests and checks need into .venv, a minute or so …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

# What the tests with a real Better Auth server, and with others' generators, need; they are skipped when there is no
# npm, or the net is away.
$(NODE_MODULES): tests/%/node_modules/.package-lock.json: tests/%/package-lock.json
	@! command -v npm >/dev/null || echo "Installing what the tests in tests/$* need from npm, half a minute or so …"
	@if command -v npm >/dev/null; then npm ci --prefix tests/$* --ignore-scripts --no-audit --no-fund && touch $@; fi || [ -z "$$CI" ]
