# The same commands for a person and for CI. `make demo` and `make test` set up all they need.
PYTHON ?= python3
BIN := .venv/bin
COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links
INSTALL := -m pip install --quiet --disable-pip-version-check --require-hashes
PIP := $(BIN)/python $(INSTALL)
BENCH := .bench/venv/bin/python
# Node and npm come as a wheel; install scripts of packages are not run.
NPM := PATH="$(CURDIR)/$(BIN):$$PATH" npm --prefix tests/node --ignore-scripts --no-audit --no-fund --silent

.DEFAULT_GOAL := help
.PHONY: help demo run sandbox test check soak growth format docs pictures lock clean
.PHONY: bench bench-quick bench-growth bench-hold bench-start bench-peers

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/runtime ## stream a story from the built-in sandbox, look at a picture, make one
	@$(BIN)/python scripts/demo.py

run: .venv/runtime ## serve on $PORT (8000); settings come from the environment and .env
	@$(BIN)/python scripts/run.py

sandbox: .venv/runtime ## the sandbox upstream alone, on port 9000
	@$(BIN)/python -m grokflask.sandbox

test: .venv/dev .venv/node .venv/browser .venv/pooler ## everything: format, lint, types, all tests
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile $(TESTS)

check: .venv/dev ## before a commit: format, lint, types, and the tests that need no server process
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist loadfile tests/unit tests/http

growth: .venv/dev ## what a thousand and a million ledger rows cost; minutes
	@$(BIN)/python benchmarks/growth.py

bench: .bench/ready ## the gateway beside its peers, and how it grows; 40 minutes; writes docs/performance.md
	@$(BENCH) benchmarks/bench.py all $(ARGS)

bench-quick: .bench/ready ## about a minute: CPU, delay and memory beside nginx; writes nothing
	@$(BENCH) benchmarks/bench.py quick $(ARGS)

bench-growth: .bench/ready ## how cost grows with open streams, the ledger, keys and workers
	@$(BENCH) benchmarks/bench.py growth $(ARGS)

bench-hold: .bench/ready ## 5,000 open streams for five minutes, every event counted at both ends
	@$(BENCH) benchmarks/bench.py hold $(ARGS)

bench-start: .bench/ready ## the CPU time of a cold start
	@$(BENCH) benchmarks/bench.py start $(ARGS)

bench-peers: .venv/bin/python ## install nginx, Portkey and LiteLLM to be measured beside; the last two in .bench
	@$(BIN)/python benchmarks/peers.py

format: .venv/dev ## let ruff format the code and fix what it can
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

soak: .venv/dev ## minutes of exchanges of all outcomes; writes docs/reliability.md
	@$(BIN)/python scripts/soak.py

docs: .venv/runtime ## write the generated pages anew
	$(BIN)/python -c 'from grokflask.config import render_docs; print(render_docs(), end="")' > docs/settings.md

pictures: .venv/browser ## take the screenshots of the pages in docs/images anew
	$(BIN)/python scripts/screenshots.py $(ARGS)

lock: .venv/dev ## choose the newest versions again and pin them with their hashes
	$(COMPILE) --upgrade -o requirements.txt requirements.in
	$(COMPILE) --upgrade -o requirements-dev.txt requirements-dev.in
	$(COMPILE) --upgrade -o requirements-bench.txt requirements-bench.in
	$(NPM) install --package-lock-only --save-exact ai@latest @ai-sdk/xai@latest @ai-sdk/openai-compatible@latest openai@latest axe-core@latest zod@latest

clean: ## remove what was set up
	rm -rf .venv .bench tests/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "grokflask needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "No virtual environment could be made (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }

# Stamps: a folder is set up again when its lock file has changed.
.venv/runtime: requirements.txt | .venv/bin/python
	@echo "Installing into .venv ..."
	@$(PIP) -r requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt | .venv/bin/python
	@echo "Installing into .venv, tests and checks included ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@ .venv/runtime

.venv/node: tests/node/package-lock.json | .venv/dev
	@echo "Installing into tests/node/node_modules ..."
	@$(NPM) ci
	@touch $@

# The browser of tests/web: Debian's package, or whatever Chromium there is already.
.venv/browser: | .venv/dev
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || { echo "Installing chromium ..."; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium >/dev/null; } \
		&& touch $@ || echo "Chromium could not be installed (on Debian, as root: apt install chromium). Tests in a browser are skipped; in CI they fail."

# PgBouncer of tests/wire: Debian's package.
.venv/pooler: | .venv/dev
	@{ test -x /usr/sbin/pgbouncer; } || { echo "Installing pgbouncer ..."; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends pgbouncer >/dev/null; } \
		&& touch $@ || echo "PgBouncer could not be installed (on Debian, as root: apt install pgbouncer). Its test is skipped; in CI it fails."

.bench/ready: requirements-bench.txt | .venv/bin/python
	@echo "Installing into .bench/venv ..."
	@$(BIN)/python -m venv .bench/venv
	@$(BENCH) $(INSTALL) -r requirements-bench.txt
	@touch $@
