# Needs python3.11 or newer and make; everything else goes into $(VENV), once.
# A CPU build of torch from an index of your choice: make demo TORCH_ARGS="--index-url ..."
SHELL := /bin/bash
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c "$(NEW_ENOUGH)" 2>/dev/null && echo $$name && break; done)
VENV ?= .venv
TORCH_ARGS ?=
PYTEST_ARGS ?=

RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: demo test test-slow lint format docs bench bench-speed measure-speed constraints clean
.PHONY: lint-code lint-format lint-types lint-layers lint-size lint-text

demo: $(VENV)/.run
	$(RUN)/mezzotint demo --out report

test: $(VENV)/.dev
	$(ONE_THREAD) $(RUN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-slow: $(VENV)/.dev
	$(ONE_THREAD) $(RUN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: lint-code lint-format lint-types lint-layers lint-size lint-text

lint-code: $(VENV)/.dev
	$(RUN)/ruff check .

lint-format: $(VENV)/.dev
	$(RUN)/ruff format --check .

lint-types: $(VENV)/.dev
	$(RUN)/mypy

lint-layers: $(VENV)/.dev
	$(RUN)/lint-imports --no-logo

lint-size: $(VENV)/.dev
	$(RUN)/python tools/check_size.py src

lint-text: $(VENV)/.dev
	$(RUN)/python tools/check_text.py

format: $(VENV)/.dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

docs: $(VENV)/.docs
	$(RUN)/mkdocs build --strict --quiet

bench: $(VENV)/.run
	$(RUN)/mezzotint bench

# What others offer for the same is measured beside it; it goes into an environment of its own, since diffusers
# imports what it finds.
bench-speed:
	@$(MAKE) --no-print-directory measure-speed VENV=$(VENV)-bench

measure-speed: $(VENV)/.bench
	$(RUN)/python benchmarks/runtime_table.py
	$(RUN)/python benchmarks/speed_accuracy.py
	$(RUN)/python benchmarks/speed.py --sd15
	$(RUN)/python benchmarks/quantised_speed.py
	$(RUN)/python benchmarks/arm_costs.py

# What the environment holds now becomes what everyone gets.
constraints: $(VENV)/.bench $(VENV)/.dev $(VENV)/.docs
	$(RUN)/python tools/write_constraints.py constraints.txt

clean:
	rm -rf build dist site report .mypy_cache .ruff_cache .hypothesis

$(VENV)/pyvenv.cfg:
	@$(or $(PYTHON),false) -c "$(NEW_ENOUGH)" \
		|| { echo "python3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that no other package's requirement decides which build of it is pulled.
$(VENV)/.torch: constraints.txt | $(VENV)/pyvenv.cfg
	$(PIP) $(TORCH_ARGS) torch
	@touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable ".[dev]"
	@touch $@

$(VENV)/.bench: $(VENV)/.run
	$(PIP) --editable ".[bench]"
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(PIP) --editable ".[docs]"
	@touch $@
