# Two commands: `make run` and `make test`. All paths are relative, so a checkout's own path may hold spaces.

.DEFAULT_GOAL := help
.PHONY: help run observe test test-unit test-all test-short test-pythons test-contract lint-and-unit image-test lint fuzz check-supply pin-images check-images screenshots dashboards bench lock clean
.DELETE_ON_ERROR:
# Hundreds of short processes import the same files; unbuffered output arrives in pieces.
unexport PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED

# The first Python here that is new enough; a shim that leads nowhere is passed over.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
# The virtual environment; `make test-pythons` creates one for each Python.
VENV := .venv
BIN := $(VENV)/bin
# The audit's tools stay apart: what they need must not decide what the service is tested with.
AUDIT_BIN := .venv-audit/bin
PIP := PIP_ROOT_USER_ACTION=ignore $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
# What only the whole test suite needs, beside Python's packages.
APT_PACKAGES := $(shell cat .ci/apt-packages)

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/embedded.lock ## start everything here and print a curl that pays; Ctrl-C stops it
	@exec $(BIN)/python -m service run --end-with-parent $(ARGS)

observe: $(VENV)/embedded.lock ## run it watched by Prometheus and Alertmanager, with the incident to look at
	@exec $(BIN)/python -m service observe --end-with-parent $(ARGS)

# A worker runs whole files, because the tests of a file share fixtures: tests/order_of_work.py.
PYTEST := $(BIN)/python -m pytest -q -n auto --dist loadfile
# The supported versions.
PYTHONS ?= 3.11 3.12 3.13
space := $(subst ,, )
# tests/unit runs first; tests/long and the marker `long` are for `make test-all`.
TESTS ?= tests/contract tests/integration tests/incidents tests/shipped

test: lint-and-unit $(VENV)/apt-packages $(VENV)/stripe-mock.lock ## lint, types and all tests but the long ones
	$(PYTEST) -m "not long" $(TESTS) $(ARGS)

# Two processors: mypy uses one of them.
lint-and-unit: $(VENV)/test.lock
	@$(MAKE) --no-print-directory -j 2 --output-sync=line lint test-unit

test-unit: $(VENV)/test.lock ## tests without a server, in seconds
	$(PYTEST) -n 2 tests/unit $(ARGS)

test-all: test ## make test, then tests/long and all that is marked `long`
	$(PYTEST) tests/long $(ARGS)
	$(PYTEST) -m long $(TESTS) $(ARGS)

# The contract tier needs servers, and of the system's programs npm at most.
test-pythons: ## unit and contract tests on each installed Python
	@export PYENV_VERSION=$(subst $(space),:,$(PYTHONS)); for version in $(PYTHONS); do \
		python$$version -c '' 2>/dev/null || { echo "not run here: needs python$$version"; continue; }; \
		echo "On $$(python$$version --version):"; \
		$(MAKE) --no-print-directory VENV=.venv-$$version PYTHON=python$$version test-contract || exit 1; \
	done

test-contract: test-unit $(VENV)/stripe-mock.lock
	$(PYTEST) tests/contract $(ARGS)

test-short: $(VENV)/test.lock $(VENV)/apt-packages ## one test of each kind in tests/long, as in CI
	$(PYTEST) tests/long -m short $(ARGS)

image-test: $(VENV)/test.lock ## build the container image and pay with it (root; BASE=image to build on)
	@BASE="$(BASE)" $(BIN)/python -m tests.shipped.deploy.image_test

# What bandit warns of and we mean (ruff checks most of it too): programs that we start by full path and without a shell (B404, B603, B606),
# our own column lists in SQL (B608), jitter (B311), writing XML (B405), assertions for the type
# checker (B101), an address that is looked up and not bound (B104), the word "pass" (B105).
NOT_MEANT := B101,B104,B105,B311,B404,B405,B603,B606,B608

lint: $(VENV)/test.lock ## format, lint, types and the order of the rooms
	$(BIN)/python -m ruff format --quiet --check .
	$(BIN)/python -m ruff check --quiet .
	$(BIN)/python -m mypy
	$(BIN)/python -m bandit --quiet --recursive service wsgi.py deploy --skip $(NOT_MEANT)
	@$(BIN)/lint-imports > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

fuzz: .venv-audit/audit.lock ## look for bytes that break a parser, by coverage, for a minute (FUZZ_S=600: longer)
	@$(AUDIT_BIN)/python -m tests.fuzz $(ARGS)

check-supply: .venv-audit/audit.lock ## ask whether a pinned package has a known hole; write dist/holdfast.cdx.json
	@$(AUDIT_BIN)/python deploy/check_supply.py

pin-images: ## write the images' digests into the manifests, at a release (OWN=registry/holdfast@sha256:..)
	@python3 deploy/pin_images.py $(if $(OWN),--own $(OWN))

check-images: ## refuse a manifest whose image has no digest: the last step of a release
	@python3 deploy/pin_images.py --check

screenshots: $(VENV)/test.lock $(VENV)/apt-packages ## draw docs/screenshots anew from a running stack
	@$(BIN)/python -m tests.shipped.console.screenshots

dashboards: $(VENV)/test.lock $(VENV)/apt-packages ## write grafana/dashboards anew, and draw them from a staged incident
	@$(BIN)/python -m grafana.build
	@$(BIN)/python -m grafana.catalogue
	@$(BIN)/python -m grafana.draw

bench: $(VENV)/test.lock ## measure speed on this machine (ARGS="...")
	$(BIN)/python -m tests.bench $(ARGS)

# All but what only `make fuzz` and `make check-supply` need.
TEST_EXTRAS := embedded otel dashboards test deploy bench

# Hashes for every platform; pip's own index setting is used and not written down.
lock: $(VENV)/embedded.lock ## compile the lock files anew from setup.cfg
	$(PIP) install uv
	@index="$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}"; \
	[ -z "$$index" ] || export UV_DEFAULT_INDEX="$$index"; \
	compile() { $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --no-emit-index-url "$$@" setup.cfg; }; \
	compile --output-file requirements.lock && \
	compile --extra embedded --output-file requirements-embedded.lock && \
	compile --extra sandbox --output-file deploy/sandbox.lock && \
	compile $(TEST_EXTRAS:%=--extra %) --output-file requirements-test.lock && \
	compile --extra fuzz --extra supply --output-file requirements-audit.lock

clean: ## remove the environment and the caches, not the data of local runs
	rm -rf .venv .venv-audit .venv-3.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Each stamp is a copy of what was installed, so nothing is installed again until the lock changes.
$(VENV)/embedded.lock: requirements-embedded.lock | $(BIN)/python
	@echo "Installing what the service needs ..."
	@$(PIP) install --require-hashes -r requirements-embedded.lock
	@cp requirements-embedded.lock $@

$(VENV)/test.lock: requirements-test.lock | $(BIN)/python
	@echo "Installing what the tests need ..."
	@$(PIP) install --require-hashes -r requirements-test.lock
	@cp requirements-test.lock $@
	@cp requirements-embedded.lock $(VENV)/embedded.lock

.venv-audit/audit.lock: requirements-audit.lock | $(BIN)/python
	@echo "Installing what the audit needs ..."
	@$(BIN)/python -m venv .venv-audit
	@PIP_ROOT_USER_ACTION=ignore $(AUDIT_BIN)/python -m pip -qq --disable-pip-version-check --no-input \
		install --require-hashes -r requirements-audit.lock
	@cp requirements-audit.lock $@

# A command of the package's name will do, however it came here: npm often comes with a node of its own. Where none can be
# installed, the tests that need one are left out, and the last line of the run says so (tests/needed_programs.py).
$(VENV)/apt-packages: .ci/apt-packages | $(BIN)/python
	@missing=; for package in $(APT_PACKAGES); do \
		dpkg -s "$$package" >/dev/null 2>&1 || command -v "$$package" >/dev/null || missing="$$missing $$package"; done; \
	if [ -z "$$missing" ]; then cp .ci/apt-packages $@; exit; fi; \
	if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then exit 0; fi; \
	echo "Installing$$missing ..."; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null && \
	cp .ci/apt-packages $@ || echo "They could not be installed."

# The provider of Charges that the contract suite runs against; npm's own registry setting is used and not written down.
$(VENV)/stripe-mock.lock: tests/stripe_mock/package-lock.json | $(VENV)/apt-packages
	@command -v npm >/dev/null || exit 0; \
	echo "Installing the provider of Charges that the tests run against ..."; \
	rm -rf $(VENV)/stripe-mock && mkdir $(VENV)/stripe-mock && cp tests/stripe_mock/package*.json $(VENV)/stripe-mock && \
	(cd $(VENV)/stripe-mock && npm ci --ignore-scripts --no-audit --no-fund --silent) && cp tests/stripe_mock/package-lock.json $@ || \
	echo "It could not be installed."

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Holdfast needs Python 3.11 or newer: install it, or say where it is: make PYTHON=/path/to/python3" >&2; exit 2; fi
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module: run  apt-get install python3-venv" >&2; exit 2; }
	@"$(PYTHON)" -m venv $(VENV)
