# vllm-quant-plugin. Every target sets up what it needs, so each works on a fresh clone.
#
#   make            set up: .venv from a lock, the native kernels, the package (editable)
#   make demo       quantize, plan, serve and measure the bundled model on this machine
#   make test       run the tests                  ARGS="tests/formats -k tp" narrows them
#   make test-nightly   the tests that take too long for make test
#   make test-readme  run the commands that README.md and the guides print (tens of minutes)
#   make lint       ruff check, ruff format --check, mypy
#   make bench      time the kernels beside vLLM's own
#   make wheel      dist/*.whl, one for every Python 3    CUDA=OFF leaves the CUDA library out, CUDA=ON requires it
#   make cuda       compile the CUDA kernels and check their machine code (takes minutes; needs nvcc, not a GPU)
#   make ptx        compare the opcodes of every CUDA kernel with the recorded ones (3 minutes; needs nvcc)
#   make ptx-run    execute the PTX of every kernel on the CPU (30 minutes of one core; needs nvcc, not a GPU)
#   make test-grid  convert every format to every other and load each with vLLM (an hour; goes on where it stopped)
#   make gpu-check  test and measure the kernels on an NVIDIA GPU; fails where there is none    ARGS="--bundle DIR"
#   make lock       resolve requirements/*.in again
#   make clean      remove what was built;  make distclean  removes .venv as well
#
# FLAVOUR=cpu|cuda overrides the choice of the lock (cuda where an NVIDIA driver answers).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all
MAKEFLAGS += --no-print-directory --no-builtin-rules

FLAVOUR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
ARGS ?=
# The CUDA library of the wheel: AUTO (where nvcc is found), ON or OFF.
CUDA ?= AUTO
# At most four: each process may hold an engine (4 GB).
PROCESSES ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))

VENV := .venv
BIN := $(VENV)/bin
BUILD := build/editable
# One stamp per step. The first is named after the lock, so another flavour is another set-up.
ENVIRONMENT := $(VENV)/.stamp-$(FLAVOUR)
INSTALLED := $(BUILD)/.stamp-installed
NATIVE := $(BUILD)/.stamp-native
# The folders are listed as well: their modification time changes when a file is added or removed.
NATIVE_SOURCES := $(shell find kernels/cpu kernels/cuda kernels/include \( -type d -o -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null)

.PHONY: all setup demo test test-nightly test-readme test-families lint format bench wheel cuda ptx gpu-check lock clean distclean

all: setup
	@echo "set up with the $(FLAVOUR) lock; next: make demo | make test | source $(BIN)/activate && vllm-quant --help"

setup: $(NATIVE)

$(ENVIRONMENT): requirements/$(FLAVOUR).txt scripts/setup.sh scripts/uv.sh
	@rm -f $(VENV)/.stamp-*
	@bash scripts/setup.sh $(FLAVOUR)
	@touch $@

# The package itself, editable: later changes of Python files need no new installation.
$(INSTALLED): $(ENVIRONMENT) pyproject.toml kernels/CMakeLists.txt vllm_quant_plugin/__init__.py
	@echo "[set-up] installing vllm-quant-plugin (editable) and building its kernels"
	@bash scripts/install.sh $(FLAVOUR)
	@touch $@

$(NATIVE): $(INSTALLED) $(NATIVE_SOURCES)
	@$(BIN)/cmake --build $(BUILD) -- --quiet
	@touch $@

demo: setup
	@$(BIN)/vllm-quant demo $(ARGS)

test: setup
	@$(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

test-readme: setup
	@$(BIN)/python scripts/readme_commands.py $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup
	@$(BIN)/vllm-quant bench $(ARGS)

wheel: $(ENVIRONMENT)
	@bash scripts/build_wheel.sh $(CUDA)

cuda: setup
	@$(BIN)/cmake -S kernels -B build/cuda -G Ninja -DVQP_CUDA=ON
	@$(BIN)/cmake --build build/cuda
	@$(BIN)/python -m tests.cuda.machine_code kernels/vllm_quant_kernels/libvqp_cuda.so

test-nightly: setup
	@$(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile -m nightly $(ARGS)

test-families: setup
	@$(BIN)/python benchmarks/families.py $(ARGS)

ptx: setup
	@$(BIN)/python -m tests.cuda.ptx check

# The emulator's tests with the interpreter behind them, and every planted error.
PTX_TESTS := $(addprefix tests/cuda/test_,kernel.py w8a8.py w8a8_wide.py quantize.py experts.py)
.PHONY: ptx-run
ptx-run: setup
	@$(BIN)/python -m pytest -p tests.cuda.ptx.plugin --numprocesses $(PROCESSES) $(PTX_TESTS) $(ARGS)
	@$(BIN)/python -m pytest --numprocesses $(PROCESSES) tests/cuda/ptx/every_error.py

gpu-check:
	@bash scripts/gpu_check.sh $(ARGS)

.PHONY: test-grid
test-grid: setup
	@$(BIN)/python benchmarks/grid.py $(ARGS)

lock:
	@bash scripts/lock.sh $(ARGS)

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f kernels/vllm_quant_kernels/*.so

distclean: clean
	rm -rf $(VENV) .uv-bootstrap
