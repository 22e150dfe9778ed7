# SPDX-License-Identifier: Apache-2.0
#
# Everything a person does with this checkout, from nothing: needs python3 (>= 3.10), a C and a C++ compiler and make.
# Set-up lands in folders that git ignores (.venv, .deps, data, build, dist) and is not repeated.
#
#   PYTHON   the interpreter to build the environment on; a torch that it has is used (default: python3)
#   JOBS     parallel jobs (default: the number of processors)
#   ARGS     handed on to the script or to pytest: make test-python ARGS="-k convert"

PYTHON ?= python3
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
ARGS ?=

VENV := .venv
OLD_VENV := .venv-oldest
BIN := $(VENV)/bin
CMAKE := $(BIN)/cmake
CTEST := $(BIN)/ctest
SETUP := $(PYTHON) tools/venv.py
FETCH := $(PYTHON) tools/fetch.py
BUILD_PACKAGES := $(VENV)/.build
TEST_PACKAGES := $(VENV)/.test $(VENV)/.examples
INSTALLED := $(VENV)/.lath
NATIVE := CMakeLists.txt $(shell find ops cuda bindings/torch -name '*.[ch]' -o -name '*.cu' -o -name '*.inc' -o -name '*.cmake' 2>/dev/null)
PACKAGE := pyproject.toml $(shell find bindings/python -name '*.py' -o -name 'py.typed' 2>/dev/null)
HAVE_CLANG := $(shell command -v clang && command -v clang++)
# The thread sanitizer of older compilers cannot live with much address randomization.
FIXED_ADDRESSES := $(shell setarch -R true 2>/dev/null && echo setarch -R)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup build demo study study-oialr test test-c test-python test-sanitize test-cuda-budget cuda-budget test-oldest bench gpu wheel clean format

help: ## this list
	@echo "lath: PyTorch layers with thin weights"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do printf '  make %-17s %s\n' "$$name" "$$text"; done

setup: $(INSTALLED) $(TEST_PACKAGES) ## the environment .venv with torch, lath and the test packages

build: $(BUILD_PACKAGES) ## build/release/liblath_cpu.so, for LATH_LIBRARY, and with nvcc liblath_cuda.so beside it
	@$(CMAKE) --preset release --log-level=NOTICE -DLATH_CUDA=AUTO
	@$(CMAKE) --build --preset release -j $(JOBS) --target lath_plugin

demo: $(INSTALLED) $(VENV)/.examples ## train two networks on Fashion-MNIST, dense and low-rank side by side
	@folder=$$($(FETCH) fashion-mnist) && LATH_FASHION_MNIST=$$folder $(BIN)/python examples/lowrank/fashion_mnist.py $(ARGS)

study: $(INSTALLED) $(VENV)/.examples ## character LSTMs on the Austen novels: bits against time, for an hour; ARGS=--quick for a minute
	@folder=$$($(FETCH) austen) && LATH_AUSTEN=$$folder $(BIN)/python examples/lowrank/char_lstm_study.py $(ARGS)

study-oialr: $(INSTALLED) $(VENV)/.examples ## dense, OIALR and low-rank networks on Fashion-MNIST, for hours; ARGS=--quick for a minute
	@folder=$$($(FETCH) fashion-mnist) && LATH_FASHION_MNIST=$$folder $(BIN)/python examples/oialr/study.py $(ARGS)

test: ## set-up and all tests, from nothing
	@$(MAKE) --no-print-directory test-c
	@$(MAKE) --no-print-directory test-sanitize
	@$(MAKE) --no-print-directory test-cuda-budget
	@$(MAKE) --no-print-directory test-python

test-c: $(BUILD_PACKAGES) ## C tests, optimized, with the default compiler and with clang where there is one
	@$(call run_c_tests,release)
ifneq ($(HAVE_CLANG),)
	@$(call run_c_tests,release-clang)
else
	@echo "clang not found: its build is left out"
endif

test-sanitize: $(BUILD_PACKAGES) ## C tests under the address, undefined behaviour and thread sanitizers
	@$(call run_c_tests,asan)
	@$(call run_c_tests,tsan,$(FIXED_ADDRESSES))

test-cuda-budget: ## what nvcc makes of the CUDA kernels, against cuda/budget.txt; nothing where there is no nvcc
	@JOBS=$(JOBS) $(PYTHON) tools/cuda_budget.py

cuda-budget: ## rewrite cuda/budget.txt
	@JOBS=$(JOBS) $(PYTHON) tools/cuda_budget.py --write

test-python: $(INSTALLED) $(TEST_PACKAGES) ## tests of operators, modules, examples and the wheel, on the installed package
	@$(BIN)/python -m pytest $(ARGS)

test-oldest: $(INSTALLED) ## the same binary under the oldest torch (2.10.0), in an environment of its own
	@$(SETUP) $(OLD_VENV) test examples --torch 2.10.0
	@$(OLD_VENV)/bin/python -m pip install -q --no-deps --no-index --force-reinstall dist/lath-*.whl
	@$(OLD_VENV)/bin/python -m pytest $(ARGS)

bench: $(INSTALLED) $(VENV)/.bench ## tables and plots against PyTorch, into bench/results
	@$(BIN)/python bench/run.py $(ARGS)

gpu: ## on a machine with a GPU: build, tests on the device, benchmark; under ten minutes, and without a network
	@$(PYTHON) tools/gpu.py --jobs $(JOBS) $(ARGS)

wheel: dist/.wheel ## dist/lath-<version>-py3-none-<platform>.whl
	@ls dist/*.whl

clean: ## remove what was built; environments and data stay
	rm -rf build dist $(INSTALLED)

format: $(VENV)/.format ## clang-format and ruff over the sources
	@find ops cuda bindings tests \( -name '*.[ch]' -o -name '*.cc' -o -name '*.cu' -o -name '*.inc' \) -exec $(BIN)/clang-format -i {} +
	@$(BIN)/ruff format -q .
	@$(BIN)/ruff check --fix .

# ---- what the targets stand on ----------------------------------------------------------------------------------------------

# $(call run_c_tests,preset[,prefix of the test command])
define run_c_tests
echo "== C tests: $(1)" && \
folder=$$($(FETCH) googletest) && \
$(CMAKE) --preset $(1) --log-level=WARNING -DLATH_CUDA=OFF -DLATH_TESTS=ON -DLATH_GOOGLETEST=$$folder && \
$(CMAKE) --build --preset $(1) -j $(JOBS) && \
$(2) $(CTEST) --preset $(1) -j $(JOBS) --no-tests=error
endef

# One stamp for each group of packages in pyproject.toml.
$(VENV)/.%: pyproject.toml tools/venv.py
	@$(SETUP) $(VENV) $*
	@touch $@

dist/.wheel: $(NATIVE) $(PACKAGE) README.md LICENSE | $(BUILD_PACKAGES)
	@rm -f dist/lath-*.whl
	@$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -C build-dir=build/wheel -w dist .
	@touch $@

$(INSTALLED): dist/.wheel
	@$(BIN)/python -m pip install -q --no-deps --no-index --force-reinstall dist/lath-*.whl
	@touch $@
