# The two commands of a newcomer: `make demo` runs the main job, `make test` passes the tests.
# Both set up `.venv` first, once; `make` alone lists the rest.

PYTHON ?= python3
VENV   ?= .venv
OUTPUT ?=

bin      := $(VENV)/bin
ready    := $(VENV)/.ready
projects := pyproject.toml $(sort $(wildcard plugins/*/pyproject.toml))
plugins  := $(patsubst %/pyproject.toml,-e %,$(filter plugins/%,$(projects)))

# One thread for each process: tests must give the same figures on every machine. Files go to as many
# processes as there are processors; `make test WORKERS=0` runs them one after the other.
WORKERS ?= auto
pytest  := OMP_NUM_THREADS=1 $(bin)/python -m pytest --numprocesses=$(WORKERS) --maxprocesses=8 --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-long lint format docs bench clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(ready) ## create .venv with the engine, all plugins and the tools

# torch comes first and alone: if the long download breaks off, it is repeated without the rest.
$(ready): $(projects)
	@test -x $(bin)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sft-engine needs Python 3.11 or newer and this one is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(bin)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) (once; torch is a large download) ..."
	@$(bin)/python -m pip install --quiet torch
	@$(bin)/python -m pip install --quiet -e '.[dev]' $(plugins)
	@touch $@

demo: $(ready) ## fine-tune a BERT on movie reviews: at most 6 minutes on 2 cores
	@$(bin)/sft-engine run recipes/bert_sentiment.toml $(if $(OUTPUT),--output $(OUTPUT))

test: $(ready) ## the tests, without those that are slow or fetch demo packages
	@$(pytest) -m 'not slow and not demo'

test-long: $(ready) ## only those that `make test` leaves out
	@$(pytest) -m 'slow or demo'

test-all: $(ready) ## every test
	@$(pytest)

lint: $(ready) ## style, types, and who may import whom; changes nothing
	@$(bin)/ruff check
	@$(bin)/ruff format --check
	@$(bin)/mypy
	@$(bin)/lint-imports --no-logo --no-cache

format: $(ready) ## put the code in shape
	@$(bin)/ruff check --fix
	@$(bin)/ruff format

docs: $(ready) ## write the generated pages and build the site in site/
	@$(bin)/python docs/generate.py
	@$(bin)/python -c 'import mkdocs' 2>/dev/null || $(bin)/python -m pip install --quiet -e '.[docs]'
	@$(bin)/mkdocs build --quiet --strict

bench: $(ready) ## compare with the peers: paired runs, ratios
	@$(bin)/python -c 'from importlib.util import find_spec as f; exit(not (f("lightning") and f("fastai")))' || \
		$(bin)/python -m pip install --quiet -e '.[bench-peers]'
	@$(bin)/python -m bench

clean: ## remove .venv and what tools left behind; runs/ stays
	@rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
