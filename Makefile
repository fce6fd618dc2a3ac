# The one door for people. Every target first makes .venv when it is missing or older than its inputs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

MODEL ?= iresnet101
PRECISION ?= fp16
TARGET ?= auto
BATCH ?= 1,32,128
BUNDLE ?= engines/$(MODEL)-$(PRECISION)
PYTHON ?= python3
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
# With an NVIDIA GPU the venv also gets TensorRT and pycuda.
EXTRAS := build,test,lint$(if $(shell command -v nvidia-smi 2>/dev/null),$(comma)gpu)
comma := ,
flag = $(if $($(1)),$(2) "$($(1))")
SOURCE = $(call flag,WEIGHTS,--weights) $(call flag,ONNX,--onnx) \
  $(call flag,DATA,--data) $(call flag,IMAGES,--images) $(call flag,METHOD,--method)

.PHONY: help demo engine calibrate models classify verify bench bench-e2e embed info test lint train-shipped setup clean distclean

help:  ## this text
	@echo "make TARGET [NAME=value ...]"; echo
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo "ARGS='...' adds options to the command; see: $(RUN) -m engine_build build --help, $(RUN) -m infer --help"

demo: $(READY)  ## build the shipped model at every precision, classify, verify, one table
	$(RUN) -m engine_build demo $(ARGS)

engine: $(READY)  ## build a bundle: MODEL= PRECISION= TARGET= WEIGHTS= ONNX= BATCH= DATA= CACHE= MAX_DROP=
	$(RUN) -m engine_build build --model $(MODEL) --precision $(PRECISION) --target $(TARGET) --batch $(BATCH) $(strip \
	  $(call flag,CACHE,--cache) $(call flag,MAX_DROP,--max-drop) $(call flag,BUDGET_DATA,--budget-data) $(SOURCE) $(ARGS))

calibrate: $(READY)  ## INT8 calibration cache of MODEL= from images: DATA= IMAGES= METHOD=mse|percentile|minmax|entropy
	$(RUN) -m engine_build calibrate --model $(MODEL) $(strip $(SOURCE) $(ARGS))

models: $(READY)  ## the table of models
	$(RUN) -m engine_build models $(ARGS)

classify: $(READY)  ## name what is on IMAGES= (files, folders, tar, Parquet): BUNDLE=, or MODEL= and PRECISION=
	@test -n "$(IMAGES)" || { echo "error: pass IMAGES=path (an image, a folder, a tar file)" >&2; exit 2; }
	$(RUN) -m infer classify "$(BUNDLE)" $(IMAGES) $(ARGS)

verify: $(READY)  ## accuracy against labels and FP32 on DATA= (folder or tar): REPORT=x.html CSV=x.csv REAL=real.json
	@test -n "$(DATA)" || { echo "error: pass DATA=path (a folder or tar file with labelled images)" >&2; exit 2; }
	$(RUN) -m infer verify "$(BUNDLE)" --data "$(DATA)" $(strip $(call flag,REFERENCE,--reference) \
	  $(call flag,REPORT,--report) $(call flag,CSV,--csv) $(call flag,REAL,--real) $(ARGS))

bench: $(READY)  ## throughput and latency of a bundle, model only
	$(RUN) -m infer bench "$(BUNDLE)" $(ARGS)

info: $(READY)  ## what a bundle is and which of its plans run here
	$(RUN) -m infer info "$(BUNDLE)" $(ARGS)

test: $(READY)  ## the tests
	$(RUN) tests/cuda_emulator/build.py || echo "the tests of the CUDA runner will be skipped"
	$(RUN) -m pytest $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench-e2e: $(READY)  ## files to answers, beside PyTorch, ONNX Runtime and benchmark_app (iresnet50 int8 on this CPU)
	$(RUN) benchmarks/end_to_end.py $(ARGS)

embed: $(READY)  ## C library, headers and C++ example in build/embed
	$(RUN) embed/build.py --output build/embed $(ARGS)

train-shipped: $(READY)  ## train the shipped model again (needs Debian's dataset-fashion-mnist, or DATA=)
	$(RUN) -m engine_build.shipped.train $(call flag,DATA,--data) $(ARGS)

setup: $(READY)  ## make .venv only

$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version). Pass PYTHON=..." >&2; exit 2; }
	@echo "setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

# The JPEG kernel anew when its sources have changed; optional, as in the installation.
$(READY): $(INSTALLED) $(wildcard infer/images/native/*.[ch])
	@$(RUN) setup.py --quiet build_ext --inplace || echo "infer/images/native was not compiled; JPEG files go through libraries"
	@touch $@

clean:  ## remove built engines and caches
	rm -rf engines .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## also remove .venv
	rm -rf $(VENV)
