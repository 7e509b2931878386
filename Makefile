# Every target does its own set-up: Python 3.11 or newer is all that has to be there.
# Another interpreter: make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu-compile parity lint format clean
.NOTPARALLEL:

help:
	@echo "make demo       photos to cameras, depth and files, and a student distilled; in demo_output/"
	@echo "make test       the default tests, in JOBS processes (2)"
	@echo "make test-slow  the tests marked slow; needs Chromium"
	@echo "make test-gpu-compile  compiles the kernels for an H200, without one, against budgets"
	@echo "make parity     all tests; rewrites docs/parity.md from what they measured"
	@echo "make lint       ruff and pyright"
	@echo "make format     let ruff rewrite the files"
	@echo "make clean      remove the environment and what the tools cached"

demo: $(VENV)/.demo
	$(RUN) -m tools.demo

test: $(VENV)/.dev
	$(RUN) -m pytest -n $(JOBS) --dist loadfile

test-slow: $(VENV)/.dev
	$(RUN) -m pytest -m slow -n $(JOBS) --dist loadfile

test-gpu-compile: $(VENV)/.gpu
	PYTHONPATH=$(VENV)/gpu JAX_PLATFORMS=cpu $(RUN) -m pytest -m gpu_compile tests/gpu_compile

parity: $(VENV)/.dev
	$(RUN) -m pytest -m "slow or not slow" --parity-table=docs/parity.md

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) demo_output .pytest_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "$(PYTHON) is Python %d.%d, 3.11 or newer is needed: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# XLA's compiler for NVIDIA GPUs and ptxas, in a folder of their own: no driver, no CUDA libraries.
$(VENV)/.gpu: $(VENV)/.dev
	version=$$($(RUN) -c 'import jax; print(jax.__version__)') && $(RUN) -m pip install --quiet \
		--target $(VENV)/gpu --upgrade --no-deps jax-cuda13-plugin==$$version \
		jax-cuda13-pjrt==$$version 'nvidia-cuda-nvcc>=13,<13.1'
	@touch $@

$(VENV)/.demo $(VENV)/.dev: $(VENV)/.created pyproject.toml
	$(RUN) -m pip install --quiet --editable '.[$(@:$(VENV)/.%=%)]'
	@touch $@
