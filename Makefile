# One command each: `make demo` runs the main job, `make test` runs every test. Both set up what they need.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install -qq
KSERVE := .venv-kserve
KSERVE_VERSION := 0.21.0
# The environment is rebuilt when what it is made from changes, not when a folder is older than a file.
# Threads that spin while others compute slow everything down on a machine with few cores.
export OMP_WAIT_POLICY := PASSIVE
# A file's tests share what its fixtures made, so they stay in one process. The long ones come first, in alphabetical order.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: $(KSERVE) setup demo demo-chat check lint types unit test torture bench-quantize bench-router bench-serve bench-generate clean

setup: $(INSTALLED)

$(INSTALLED):
	@echo "Setting up $(VENV) (about a minute)"
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	mkdir -p .types && ln -sfn .. .types/edgewise
	touch $@

# kserve's client pins other versions of our dependencies: it gets an environment of its own (half a minute, 450 MB).
$(KSERVE): $(KSERVE)/.installed-$(KSERVE_VERSION)

$(KSERVE)/.installed-$(KSERVE_VERSION):
	@echo "Setting up $(KSERVE) (half a minute)"
	$(PYTHON) -m venv --clear $(KSERVE)
	$(KSERVE)/bin/python -m pip install -qq kserve==$(KSERVE_VERSION)
	touch $@

demo-chat: setup
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" exec bash examples/chat/demo.sh

demo: setup
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" exec bash examples/newswire/demo.sh

check: lint types unit

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: setup
	$(VENV)/bin/mypy

unit: setup
	$(VENV)/bin/python -m pytest $(PARALLEL) tests/unit tests/contract -m "not slow and not torture" -q

test: lint types $(KSERVE)
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "not torture" -q --cov --cov-report=term:skip-covered --durations=10

torture: setup
	$(VENV)/bin/python -m pytest -m torture -q

# About 40 minutes the first time; nothing else should run meanwhile.
bench-quantize: setup
	@for name in recipes rivals cost smollm2; do $(VENV)/bin/python benchmarks/quantize/$$name.py || missed=1; done; exit $${missed:-0}

# About 25 minutes the first time. The two pairs and RouteLLM's evaluation need the data that docs/benchmarks.md names.
bench-router: setup
	@for name in guarantee power routellm audit overhead service; do $(VENV)/bin/python benchmarks/router/$$name.py || missed=1; done; exit $${missed:-0}

# About half an hour, with a soak of a million requests; the rivals get environments of their own the first time.
bench-serve: setup
	@for name in inprocess gateway cloud blackhole soak; do $(VENV)/bin/python benchmarks/serve/$$name.py || missed=1; done; exit $${missed:-0}

# A little over an hour. Needs what bench-quantize leaves of SmolLM2, and RouteLLM's evaluation.
bench-generate: setup
	@for name in serving cloud certified speculative; do $(VENV)/bin/python benchmarks/generate/$$name.py || missed=1; done; exit $${missed:-0}

clean:
	rm -rf $(VENV) $(KSERVE) .types build dist *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
