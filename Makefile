# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3.11
SEED ?= 1
# What pip needs on a machine whose index has no CPU build of torch, for example
# PIP_ARGS='--extra-index-url <the CPU wheel index named on PyTorch's install page>'
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: demo study test test-slow soak lint fix clean
.DEFAULT_GOAL := help

help:
	@echo "make demo [SEED=2]  train a tiny reasoning model with GRPO on this machine's CPU"
	@echo "make study          GRPO against PPO on this machine: figures and text in docs/study"
	@echo "make test           lint, types and the fast tests"
	@echo "make soak           half an hour of a run whose processes die at random [MINUTES=30]"
	@echo "make test-slow      the proofs that take minutes (docs/contributing.md lists them)"

.venv/installed: requirements-cpu.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: the pinned packages are for CPython 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps $(PIP_ARGS) -r requirements-cpu.txt
	@touch $@

demo: .venv/installed
	$(BIN)/python -m cluster train recipes/demo.yaml seed=$(SEED) --fresh

study: .venv/installed
	$(BIN)/python benchmarks/study.py

test: .venv/installed lint
	$(BIN)/python -m pytest -m "not slow" --durations=15

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow --durations=0 -s

soak: .venv/installed
	PYTHONPATH=. $(BIN)/python tests/soak.py --minutes $(or $(MINUTES),30)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

fix: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv
