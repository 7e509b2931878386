# Every target does its own set-up: Python 3.11 or newer is all that has to be there.
# Another interpreter: make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
JOBS ?= 2
# A test that hangs ends its process (`timeout` in pyproject.toml) and with it the run, by name.
PARALLEL := -n $(JOBS) --dist loadfile --max-worker-restart=0
# For a few files with many tests.
SPREAD := -n $(JOBS) --dist worksteal --max-worker-restart=0
CASES ?= 3000
# Exact versions, which are for one Python; others and the newest jax take what pyproject.toml allows.
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" * (sys.version_info[:2] == (3, 11)))')
# For the newest jax, which Python 3.11 has not: the newest Python here that is tested.
NEWEST_PYTHON ?= $(firstword $(shell for v in 13 12; do for p in python3.$$v \
	$(HOME)/.pyenv/versions/3.$$v.*/bin/python; do $$p -c "import ensurepip, venv" 2>/dev/null \
	&& echo $$p; done; done))
# These compare with PyTorch, whose newest wheels bring CUDA: they run with the pinned one only.
WITH_TORCH = $(shell grep -rl '^import torch' tests)

# Compiled modules are kept: the tests start dozens of Python processes.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-newest test-without-torch newest-python test-triton test-gpu-compile test-tpu-compile parity docs lint format fuzz licenses audit clean
.NOTPARALLEL:

help:
	@echo "make demo       photos to cameras, depth and files, and a student distilled; in demo_output/"
	@echo "make test       the default tests, in JOBS processes (2)"
	@echo "make test-slow  the tests marked slow, and golden parity compiled as users do; needs Chromium"
	@echo "make test-newest  the default tests with the newest Python (3.12, 3.13) and the newest jax"
	@echo "make test-gpu-compile  compiles the kernels for an H200, without one, against budgets"
	@echo "make test-triton  the kernels in Triton's own language: interpreted, and compiled for GPUs"
	@echo "make test-tpu-compile  compiles the kernels for TPU v5e, v5p and v6e, without one"
	@echo "make fuzz       CASES (3000) damaged files for every reader; rewrites the figures of docs/reliability.md"
	@echo "make licenses   the licenses of everything that the package needs when it runs"
	@echo "make audit      known vulnerabilities of the versions in constraints.txt; needs the network"
	@echo "make parity     golden parity; rewrites docs/parity.md from what they measured"
	@echo "make docs       these pages and the Python API as a site that opens offline, in site/"
	@echo "make lint       ruff and pyright"
	@echo "make format     let ruff rewrite the files"
	@echo "make clean      remove the environment and what the tools cached"

demo: $(VENV)/.demo
	$(RUN) -m tools.demo

test: $(VENV)/.dev
	$(RUN) -m pytest $(PARALLEL)

test-slow: $(VENV)/.dev
	$(RUN) -m pytest -m "slow and not parity and not optimized" $(PARALLEL) --durations=40
	$(RUN) -m pytest -m "parity or optimized" $(PARALLEL)

test-newest:
	@test -n "$(NEWEST_PYTHON)" || { echo "no Python 3.12 or 3.13 here: make test-newest NEWEST_PYTHON=..."; exit 1; }
	$(MAKE) test-without-torch PYTHON=$(NEWEST_PYTHON) VENV=$(VENV)-newest CONSTRAINTS=

newest-python:
	@echo $(NEWEST_PYTHON)

test-without-torch: $(VENV)/.test
	@$(RUN) -c 'import jax, platform; print("Python", platform.python_version(), "jax", jax.__version__)'
	@echo "left out, they need torch: $(WITH_TORCH)"
	$(RUN) -m pytest $(PARALLEL) $(WITH_TORCH:%=--ignore=%)

test-gpu-compile: $(VENV)/.gpu
	PYTHONPATH=$(VENV)/gpu JAX_PLATFORMS=cpu $(RUN) -m pytest -m gpu_compile tests/gpu_compile $(SPREAD)

# NPROC: threads of XLA. With one, a callback waits for its arguments for ever.
test-triton: $(VENV)/.triton
	PYTHONPATH=$(VENV)/gpu:$(VENV)/triton JAX_PLATFORMS=cpu TRITON_INTERPRET=1 NPROC=4 \
		$(RUN) -m pytest -m triton tests/triton/test_interpret.py $(SPREAD)
	PYTHONPATH=$(VENV)/gpu:$(VENV)/triton JAX_PLATFORMS=cpu \
		$(RUN) -m pytest -m triton tests/triton/test_compile.py $(SPREAD)

test-tpu-compile: $(VENV)/.tpu
	PYTHONPATH=$(VENV)/tpu JAX_PLATFORMS=cpu $(RUN) -m pytest -m tpu_compile tests/tpu_compile

parity: $(VENV)/.dev
	$(RUN) -m pytest -m parity --parity-table=docs/parity.md

fuzz: $(VENV)/.dev
	$(RUN) -m tests.fuzz.run --cases $(CASES) --table docs/reliability.md

licenses: $(VENV)/.dev
	$(RUN) -m tools.dependencies licenses

# In a folder of its own, so that it changes nothing of what is tested.
audit: $(VENV)/.created
	$(RUN) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --disable-pip --no-deps

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict
	@echo "site/index.html"

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) $(VENV)-newest demo_output .pytest_cache .ruff_cache .hypothesis site *.egg-info

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

# Triton's compiler and interpreter, in a folder of their own: no PyTorch, no GPU. For a jax that
# jax-triton works with.
$(VENV)/.triton: $(VENV)/.gpu
	version=$$($(RUN) -c 'import jax; print({(0, 10): "0.3.1", (0, 11): "0.4.1"}[jax.__version_info__[:2]])') \
		&& $(RUN) -m pip install --quiet --target $(VENV)/triton --upgrade --no-deps \
		jax-triton==$$version triton==3.7.1
	@touch $@

# XLA's compiler for TPUs, in the version that jax names; in a folder of its own, since jax looks for
# TPUs where it finds it.
$(VENV)/.tpu: $(VENV)/.dev
	libtpu=$$($(RUN) -c 'import importlib.metadata as m; print(next(r.split(";")[0].strip() for r in \
		m.requires("jax") if r.startswith("libtpu")))') && $(RUN) -m pip install --quiet \
		--target $(VENV)/tpu --upgrade --no-deps "$$libtpu"
	@touch $@

$(VENV)/.demo $(VENV)/.docs $(VENV)/.test $(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(RUN) -m pip install --quiet $(CONSTRAINTS) --editable '.[$(@:$(VENV)/.%=%)]'
	@touch $@
