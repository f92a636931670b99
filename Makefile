# `make run` and `make test` do all the set-up that they need.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help run test test-clients lint zoo bench bench-acceleration operators campaign protos docs balancers lock lock-zoo lock-clients rpm rpm-cuda relock repo rpm-tools test-rpm clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
		{ echo "dropserve needs Python 3.11; $(PYTHON) is none. Try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV) (about 3 GB; a few minutes the first time) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --no-index -e .
	@touch $@

run: $(STAMP) ## Train the example if need be, and serve it on ports 8501 (REST) and 8500 (gRPC).
	@$(BIN)/python examples/digits/train.py
	@echo "Try: curl -d @examples/digits/sample.json http://localhost:8501/v1/models/digits:predict"
	@exec $(BIN)/dropserve serve --model_root $(CURDIR)/examples/digits/models --cache_dir $(CURDIR)/build/cache

test: $(STAMP) build/clients/tritonclient/.installed lint ## Run all checks and tests.
	$(BIN)/python -m pytest

CLIENTS := tritonclient kserve ovmsclient

test-clients: $(STAMP) $(CLIENTS:%=build/clients/%/.installed) ## Try the clients of other projects.
	$(BIN)/python -m pytest tests/server/test_clients.py

build/clients/%/.installed: tests/clients/%.lock
	@echo "Installing $* into $(@D) ..."
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes -r $<
	@touch $@

lint: $(STAMP) ## Run the linters and the type checker.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

zoo: $(STAMP) ## Serve every model of tests/models and write docs/models.md (an hour, 10 GB; ONLY="NAME …" prints those).
	$(BIN)/python -m tests.models $(if $(ONLY),--models $(ONLY))

bench: $(STAMP) ## Measure throughput and latency beside the bare session and a peer.
	$(BIN)/python -m benchmarks

bench-acceleration: $(STAMP) ## Convert, prove and measure real architectures and odd models.
	$(BIN)/python -m benchmarks.acceleration

operators: $(STAMP) ## Try each operator on odd values, as TensorFlow and as its forms, and write what differs (ONLY="NAME …" tries those).
	$(BIN)/python -m benchmarks.operators $(if $(ONLY),--only $(ONLY))

campaign: $(STAMP) ## Try to break the server: PART=fuzz|faults|hostile|swaps|leaks|overload (SEED=N; COUNT=N or SECONDS=N makes it smaller).
	$(BIN)/python -m tests.campaign $(PART) $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT)) $(if $(SECONDS),--seconds $(SECONDS))

protos: $(STAMP) ## Compile the protocol buffers.
	$(BIN)/python -m grpc_tools.protoc -Iappliance/protocols/protos -I$$($(BIN)/python -c 'import grpc_tools, os; print(os.path.join(os.path.dirname(grpc_tools.__file__), "_proto"))') --include_imports --descriptor_set_out=appliance/protocols/protos/dropserve.binpb appliance/protocols/protos/*.proto

docs: $(STAMP) ## Write what derives from the tables of options and flags: in docs, docs/man and etc.
	$(BIN)/dropserve options > docs/options.md
	$(BIN)/dropserve options --format toml > etc/dropserve.toml
	$(BIN)/dropserve flags | sed -i -e '/^<!-- flags -->$$/,/^<!-- end of flags -->$$/{/^<!--/!d}' -e '/^<!-- flags -->$$/r /dev/stdin' docs/conformance.md
	$(BIN)/dropserve options --format mdoc | sed -i -e '/^\.\\" options$$/,/^\.\\" end of options$$/{/^\.\\"/!d}' -e '/^\.\\" options$$/r /dev/stdin' docs/man/dropserve.1
	$(BIN)/dropserve flags --format mdoc | sed -i -e '/^\.\\" flags$$/,/^\.\\" end of flags$$/{/^\.\\"/!d}' -e '/^\.\\" flags$$/r /dev/stdin' docs/man/tensorflow_model_server.1

balancers: ## Install HAProxy and nginx from Debian for their tests (as root; apt starts their services).
	@if command -v haproxy >/dev/null && command -v nginx >/dev/null; then \
		echo "HAProxy and nginx are there."; \
	elif ! command -v apt-get >/dev/null || test "$$(id -u)" != 0; then \
		echo "HAProxy and nginx are not installed: that takes root, and Debian's apt-get. Their tests are skipped."; \
	else \
		echo "Installing haproxy and nginx-light ..."; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends haproxy nginx-light >/dev/null; \
	fi

lock: ## Resolve pyproject.toml's ranges anew (needs uv).
	uv pip compile pyproject.toml --all-extras --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url --quiet --upgrade -o requirements.lock

lock-zoo: ## The same for the tools and packages of the zoo (needs uv).
	cd tests/models && for name in requirements forests published; do \
		uv pip compile $$name.in $$(test $$name = published && echo --no-deps) --generate-hashes --python-version 3.11 \
			--python-platform x86_64-manylinux_2_28 --no-emit-index-url --quiet --upgrade \
			--custom-compile-command "make lock-zoo" -o $$name.lock || exit 1; \
	done

lock-clients: ## The same for the clients of other projects (needs uv).
	cd tests/clients && for name in $(CLIENTS); do \
		uv pip compile $$name.in --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
			--no-emit-index-url --quiet --upgrade --custom-compile-command "make lock-clients" -o $$name.lock || exit 1; \
	done

# -- the RPM: packaging/rpm/README.md ---------------------------------------------------------------------------------

RPMKIT := PYTHONPATH=packaging/rpm $(PYTHON) -m rpmkit
RPM_TOOLS := rpm patchelf binutils createrepo-c dnf busybox-static shellcheck rpmlint gpg systemd gcc libc6-dev
RELEASE ?= 1
PAYLOAD ?= release

rpm-tools: ## Install what building and proving the RPM needs from Debian (as root).
	@missing=; for name in $(RPM_TOOLS); do \
		dpkg-query -W -f '$${Status}' $$name 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$name"; \
	done; \
	if test -z "$$missing"; then \
		echo "The RPM's tools are there."; \
	elif ! command -v apt-get >/dev/null || test "$$(id -u)" != 0; then \
		echo "Missing:$$missing. Installing them takes root, and Debian's apt-get."; exit 1; \
	else \
		echo "Installing$$missing ..."; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
	fi

rpm: rpm-tools ## Build dropserve's RPM into dist/ (PAYLOAD=fast is quicker and larger; RELEASE=1).
	@$(RPMKIT) build --payload $(PAYLOAD) --release $(RELEASE)

rpm-cuda: rpm-tools ## The same, and dropserve-cuda with NVIDIA's libraries.
	@$(RPMKIT) build --cuda --payload $(PAYLOAD) --release $(RELEASE)

relock: rpm-tools ## Write packaging/rpm/runtime.lock anew, of what the mirrors have now (needs uv).
	@$(RPMKIT) relock

repo: rpm-tools ## Make dist/ a yum repository; KEY=... signs packages and metadata with that GPG key (RSA).
	@$(RPMKIT) repo --folder dist $(if $(KEY),--key "$(KEY)")

test-rpm: rpm-tools $(STAMP) ## Build the RPM with the fast payload, install it into empty roots, prove it there (as root).
	@$(RPMKIT) build --payload fast --output build/rpm/out
	$(BIN)/python -m pytest -o python_files='proof_*.py' tests/rpm --timeout 600

clean: ## Remove everything that was made here.
	rm -rf $(VENV) build examples/digits/models benchmarks/.cache *.egg-info
