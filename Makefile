# Everything runs in .venv, which `make setup` builds from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -m "not slow and not gpu"
export OMP_NUM_THREADS ?= 1

.PHONY: setup check test test-gpu demo demo-rl demo-qa bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest -n 2 $(PYTEST_ARGS)

test-gpu: setup
	$(BIN)/pytest -m gpu

demo: setup
	$(BIN)/finetrial run examples/quickstart.toml
	$(BIN)/finetrial status logs/quickstart

demo-rl: setup
	$(BIN)/finetrial run examples/rl_quick.toml
	$(BIN)/finetrial status logs/rl_quick

# The judge is a stand-in on this machine: no key, no network.
demo-qa: setup
	$(BIN)/finetrial run examples/domain_qa.toml
	$(BIN)/python examples/local_judge.py -- $(BIN)/finetrial run examples/domain_qa_judged.toml
	$(BIN)/finetrial status logs/domain_qa_judged

bench: .venv-bench/.installed
	.venv-bench/bin/python bench/run.py

.venv-bench/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --upgrade pip
	.venv-bench/bin/pip install --quiet --constraint constraints.txt --editable '.[train]' trl lm_eval
	touch $@

clean:
	rm -rf $(VENV) .venv-bench logs
