PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# an environment is ready for what its files say, whatever their dates are: the stamp's name tells
stamp   = .ready-$(firstword $(shell cat $(1) | cksum))
READY  := $(VENV)/$(call stamp,requirements.txt constraints.txt pyproject.toml)
PEERS  := $(VENV)-bench
PEERS_READY := $(PEERS)/$(call stamp,benchmarks/requirements.txt)
STAGES := book lint unit nbval bench-check
JOBS   ?= 2
PORT   ?= 8000
TORCH_INDEX ?=

.DEFAULT_GOAL := help
.PHONY: help book notebooks full pdf test lint unit nbval bench bench-check bench-check-peers serve clean

help:                 ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | awk -F'\t' '{printf "  make %-17s %s\n", $$1, $$2}'

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the book needs Python 3.11 or newer: make book PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q --disable-pip-version-check --index-url $(TORCH_INDEX) "$$(grep ^torch== requirements.txt)")
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.ready* && touch $@

book: $(READY)        ## execute the chapters that changed, build the HTML, say where it is
	@$(BIN)/python tools/book.py build --jobs $(JOBS)

notebooks: $(READY)   ## refresh the committed notebooks from the same execution
	@$(BIN)/python tools/book.py notebooks --jobs $(JOBS)

full: $(READY)        ## the same book at full size (some minutes), under _build/full
	@$(BIN)/python tools/book.py build --profile full --jobs $(JOBS)

pdf: $(READY)         ## the book as one PDF, printed by Chromium
	@$(BIN)/python tools/book.py pdf --jobs $(JOBS)

test:                 ## everything that must hold: lint, types, unit and page tests, nbval, peers
	@failed=; took=; \
	for stage in $(STAGES); do \
	  started=$$(date +%s); said=; \
	  $(MAKE) --no-print-directory $$stage || { failed="$$failed $$stage"; said=" (failed)"; }; \
	  took="$$took, $$stage $$(($$(date +%s) - started)) s$$said"; \
	done; \
	echo "make test: $${took#, }"; \
	test -z "$$failed" || { echo "make test: failed:$$failed; make each alone to see it again" >&2; exit 1; }

lint: $(READY)        ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests

nbval: $(READY)       ## do the committed notebooks still come out, here and on another processor?
	@$(BIN)/python tools/book.py check --jobs $(JOBS)

$(PEERS_READY):
	$(PYTHON) -m venv $(PEERS)
	$(if $(TORCH_INDEX),$(PEERS)/bin/python -m pip install -q --disable-pip-version-check --index-url $(TORCH_INDEX) "$$(grep ^torch== benchmarks/requirements.txt)")
	$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	@rm -f $(PEERS)/.ready* && touch $@

bench: $(PEERS_READY) ## time the engine beside higher, TorchOpt and JAX (minutes); updates the tables
	PYTHONPATH=src $(PEERS)/bin/python benchmarks/bench.py
	PYTHONPATH=src $(PEERS)/bin/python benchmarks/rules.py
	PYTHONPATH=src $(PEERS)/bin/python benchmarks/images.py

bench-check: $(READY) ## does the engine compute the meta-gradients that its peers computed?
	$(BIN)/python benchmarks/bench.py --check

bench-check-peers: $(PEERS_READY) ## run the peers themselves; keeps what they compute where that is of others
	PYTHONPATH=src $(PEERS)/bin/python benchmarks/bench.py --peers

serve: book           ## show the book at http://127.0.0.1:8000 (PORT=… for another)
	@$(BIN)/python tools/book.py serve --port $(PORT)

clean:                ## remove what was built (the environments stay: rm -r .venv .venv-bench)
	rm -rf _build
