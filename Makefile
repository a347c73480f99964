# Two commands on a fresh machine: `make reproduce` and `make test`. Needs Python 3.11 or newer, and make.

PYTHON ?= python3
PROFILE ?= cpu
DATASET ?= synthbirds
SEEDS ?= 0
TORCH_INDEX ?=

# The packages of .venv are the ones that run, whatever the user's shell puts in front of them.
unexport PYTHONPATH PYTHONHOME
# Bytecode is kept, or every notebook's kernel would compile torch again: seconds each time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup reproduce lab app book test clean

help: ## List the targets
	@echo "Targets:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo "Variables, with their values now:"
	@echo "  PROFILE=$(PROFILE)   smoke: every notebook, tiny · cpu: a laptop · photos: real photos, hours on a CPU · paper: 448 px, ResNet-101, 90 epochs"
	@echo "  DATASET=$(DATASET)   or cub200, aircraft, cars, folder (data/README.md)"
	@echo "  SEEDS=$(SEEDS)   one or several, for instance SEEDS=0,1,2"
	@echo "  PYTHON=$(PYTHON)   the interpreter that .venv is made with"
	@echo "  TORCH_INDEX=$(TORCH_INDEX)   https://download.pytorch.org/whl/cpu: PyTorch without CUDA, hundreds of MB in place of 3 GB"

setup: .venv/.installed ## Make .venv with the pinned packages (the other targets do it when needed)

reproduce: .venv/.installed ## Run notebooks 00 to 07, write results/<profile>-<dataset>/, print the tables
	.venv/bin/fgvc run reproduction --profile "$(PROFILE)" --dataset "$(DATASET)" --seeds "$(SEEDS)"

lab: .venv/.installed ## Open JupyterLab on the notebooks, with the project's own kernel
	.venv/bin/fgvc lab

app: .venv/.installed ## Serve the explorer (notebook 09) as a web app, on this machine
	.venv/bin/fgvc app --profile "$(PROFILE)" --dataset "$(DATASET)"

book: .venv/.installed ## Build the executed notebooks and the exercises as a website in site/
	.venv/bin/python docs/book/build.py

# Four files of tests at a time: two cores are idle while kernels, servers and other processes are waited for.
test: .venv/.installed ## Check style and run the test suite
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

clean: ## Remove caches (never data, results or .venv)
	find fgvclib synthbirds notebooks tests -depth -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache

# The stamp comes last: .installing, which holds the process id of its make, marks an install as unfinished until it is
# renamed; an interrupted one starts over from nothing, because pip takes a half-written package for an installed one.
# --no-compile: bytecode of what is imported takes less time than that of everything. One process writes it here, as the
# workers and kernels that start together later would each write it for themselves.
# --no-build-isolation: builds with the setuptools of the lock and fetches no other.
PIP := .venv/bin/python -m pip install -qq --disable-pip-version-check --no-compile
IMPORTED := import ipykernel, ipywidgets, papermill, pytest, fgvclib.figures, fgvclib.study.experiment
# With TORCH_INDEX, PyTorch's wheels come from there, without the CUDA libraries that those of PyPI need.
PINS := $(if $(TORCH_INDEX),.venv/cpu.lock --extra-index-url "$(TORCH_INDEX)",requirements.lock)

.venv/.installed: requirements.lock pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name one, such as PYTHON=python3.12."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "This needs Python 3.11 or newer and $(PYTHON) is older: name another, such as PYTHON=python3.12."; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make a virtual environment: on Debian and Ubuntu, sudo apt install python3-venv."; exit 1; }
	@if [ -e .venv/.installing ]; then \
	  pid=$$(cat .venv/.installing); ! kill -0 "$$pid" 2>/dev/null || { \
	    echo "Process $$pid is installing into .venv: let it finish, or remove .venv if it is not a make."; exit 1; }; \
	  echo "The last install was not finished: starting over."; rm -rf .venv; fi
	@mkdir -p .venv && echo $$PPID > .venv/.installing
	@echo "Installing the pinned packages into .venv: one to three minutes, and the time to download up to 3.2 GB ..."
	@"$(PYTHON)" -m venv .venv
	@$(if $(TORCH_INDEX),grep -vE "^(nvidia-|cuda-|triton)" requirements.lock > .venv/cpu.lock,:)
	@$(PIP) -r $(PINS) && $(PIP) --no-deps --no-build-isolation -e . && .venv/bin/python -c "$(IMPORTED)" || { \
	  echo "Installing failed for the reason above; it takes internet, 7 GB of disk, and Python 3.11 to 3.13 for these pins."; exit 1; }
	@mv .venv/.installing .venv/.installed
	@echo "Installed."
