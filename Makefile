# Everything here sets up what it needs: a virtual environment in $(VENV) with the tested versions of
# constraints.txt. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= maniskill,wandb,sweep,plot,dev
WORKERS ?= 2
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.PHONY: help install demo quickstart test test-slow test-rgb test-outside test-newest test-lowest lint types format audit docs cpu-rendering clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# torch is named first and exactly: an open range would take the newest build with gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; ok = v >= (3, 10) and (v <= (3, 12) or "maniskill" not in "$(EXTRAS)"); sys.exit(0 if ok else f"Python {v[0]}.{v[1]} will not do: ManiSkill has wheels for 3.10 to 3.12. Run: make PYTHON=python3.11 $(MAKECMDGOALS)" + (", or leave ManiSkill out: make EXTRAS=wandb,sweep,plot,dev $(MAKECMDGOALS)" if v > (3, 12) else ""))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)" $(if $(findstring maniskill,$(EXTRAS)),"numpy<2")
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

install: $(VENV)/.installed ## Make the virtual environment

demo: $(VENV)/.installed ## A robot task, PickCube: demonstrations, cloning, steering online by DSRL, reports with videos, one table (about 10 minutes)
	$(BIN)/python -m torchrl_flow run benchmark_suite --tasks PickCube-v1 --algorithms dsrl_sac --network concat_mlp --scale 0.34 --num-videos 4 --directory runs/demo --results runs/demo/results.csv

quickstart: $(VENV)/.installed ## Clone a policy on the planar task in under a minute
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed ## The fast tests
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(VENV)/.installed ## The tests that take minutes
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

test-rgb: $(VENV)/.installed ## The tests that render (see cpu-rendering)
	$(BIN)/python -m pytest -m rgb

# TorchRL 0.14 asks for TensorDict below 0.15, and works with it: it is installed on its own.
NEWEST_TENSORDICT ?= 0.15.3
.venv-newest/.installed .venv-lowest/.installed: .venv-%/.installed: pyproject.toml constraints-%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --constraint constraints-$*.txt --editable ".[plot,dev]"
	$(if $(filter newest,$*),.venv-$*/bin/python -m pip install --quiet --no-deps "tensordict==$(NEWEST_TENSORDICT)")
	@touch $@

test-outside: ## The tests of FetchPickAndPlace and PushT, without ManiSkill, in an environment of their own
	$(MAKE) VENV=.venv-outside EXTRAS=outside,plot,dev install
	REQUIRE_OUTSIDE=1 .venv-outside/bin/python -m pytest -m "slow or not slow" tests/benchmarks/test_outside_tasks.py

test-newest: .venv-newest/.installed ## The fast tests without ManiSkill, with the newest versions (constraints-newest.txt)
	.venv-newest/bin/python -m pytest -n $(WORKERS)

test-lowest: .venv-lowest/.installed ## The fast tests without ManiSkill, with the oldest versions allowed (constraints-lowest.txt)
	.venv-lowest/bin/python -m pytest -n $(WORKERS)

lint: $(VENV)/.installed ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed ## Types
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: ## Known vulnerabilities of the tested versions (asks the registry)
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

docs: $(VENV)/.installed ## The documentation, in docs/_build
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python docs/make_tables.py --check
	$(BIN)/python docs/make_figures.py --check
	rm -rf docs/generated docs/_build
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build

cpu-rendering: ## Install what rendering without a GPU needs on Debian (asks for root)
	bash scripts/cpu-rendering.sh $(BIN)/python

clean: ## Remove what building and testing left, but neither runs nor demonstrations
	rm -rf build dist docs/_build docs/generated *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
