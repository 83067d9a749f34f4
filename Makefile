PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PEERS  := $(VENV)-bench
PEERS_READY := $(PEERS)/.ready
JOBS   ?= 2
PORT   ?= 8000
TORCH_INDEX ?=

.DEFAULT_GOAL := help
.PHONY: help book notebooks full pdf test lint unit nbval bench bench-check serve clean

help:                 ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the book needs Python 3.11 or newer: make book PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q --disable-pip-version-check --index-url $(TORCH_INDEX) "$$(grep ^torch== requirements.txt)")
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

book: $(READY)        ## execute the chapters that changed, build the HTML, say where it is
	@$(BIN)/python tools/book.py build --jobs $(JOBS)

notebooks: $(READY)   ## refresh the committed notebooks from the same execution
	@$(BIN)/python tools/book.py notebooks --jobs $(JOBS)

full: $(READY)        ## the same book at full size (some minutes), under _build/full
	@$(BIN)/python tools/book.py build --profile full --jobs $(JOBS)

pdf: $(READY)         ## the book as one PDF, printed by Chromium
	@$(BIN)/python tools/book.py pdf --jobs $(JOBS)

test: book lint unit nbval bench-check  ## everything that must hold: lint, types, unit and page tests, nbval, peers

lint: $(READY)        ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) tests

nbval: $(READY)       ## re-run the committed notebooks and compare every output
	@$(BIN)/python tools/book.py check --jobs $(JOBS)

$(PEERS_READY): benchmarks/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(if $(TORCH_INDEX),$(PEERS)/bin/python -m pip install -q --disable-pip-version-check --index-url $(TORCH_INDEX) "$$(grep ^torch== benchmarks/requirements.txt)")
	$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

bench: $(PEERS_READY) ## time the engine beside higher, TorchOpt and JAX (minutes); updates the tables
	PYTHONPATH=src $(PEERS)/bin/python benchmarks/bench.py
	PYTHONPATH=src $(PEERS)/bin/python benchmarks/rules.py
	PYTHONPATH=src $(PEERS)/bin/python benchmarks/images.py

bench-check: $(PEERS_READY) ## do the engine and its peers compute the same meta-gradients?
	PYTHONPATH=src $(PEERS)/bin/python benchmarks/bench.py --check

serve: book           ## show the book at http://127.0.0.1:8000 (PORT=… for another)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

clean:                ## remove what was built (the environments stay: rm -r .venv .venv-bench)
	rm -rf _build
