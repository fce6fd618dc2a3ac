# The one door for people. Every target checks its arguments, then makes .venv when it is missing or older than its inputs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

MODEL ?= iresnet101
PRECISION ?= fp16
TARGET ?= auto
BUNDLE ?= engines/$(MODEL)-$(PRECISION)
PYTHON ?= python3
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
IRESNET := $(VENV)/bin/iresnet
# A process for each core, up to four: each loads torch. Tests of a file stay together, since they share what they build.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
PYTEST = $(RUN) -m pytest -n $(WORKERS) --dist loadfile
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
# With an NVIDIA GPU the venv also gets TensorRT and pycuda.
EXTRAS := build,test,lint$(if $(shell command -v nvidia-smi 2>/dev/null),$(comma)gpu)
comma := ,
flag = $(if $($(1)),$(2) "$($(1))")
SOURCE = $(call flag,WEIGHTS,--weights) $(call flag,ONNX,--onnx) \
  $(call flag,DATA,--data) $(call flag,LIMIT,--limit) $(call flag,METHOD,--method)
BATCH_SIZES = $(call flag,MIN_BATCH,--min-batch) $(call flag,OPT_BATCH,--opt-batch) $(call flag,MAX_BATCH,--max-batch)

.PHONY: help demo engine calibrate models classify verify bench serve bench-e2e embed info doctor test test-quick \
  gpu-check lint train-shipped setup \
  clean distclean check-build check-calibrate check-bundle check-data check-images

help:  ## this text
	@echo "make TARGET [NAME=value ...]"; echo
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo "ARGS='...' adds options to the command; see: $(IRESNET) --help, $(IRESNET) build --help"

demo: $(READY)  ## build the shipped model at every precision, classify, verify, one table
	$(IRESNET) demo $(ARGS)

engine: check-build $(READY)  ## build a bundle: MODEL= PRECISION= TARGET= WEIGHTS= ONNX= MAX_BATCH= DATA= CACHE= MAX_DROP=
	$(IRESNET) build --model "$(MODEL)" --precision $(PRECISION) --target $(TARGET) $(strip $(BATCH_SIZES) \
	  $(call flag,CACHE,--cache) $(call flag,MAX_DROP,--max-drop) $(call flag,BUDGET_DATA,--budget-data) $(SOURCE) $(ARGS))

calibrate: check-calibrate $(READY)  ## INT8 calibration cache of MODEL= from images: DATA= LIMIT= METHOD=mse|percentile|minmax|entropy
	$(IRESNET) calibrate --model "$(MODEL)" $(strip $(SOURCE) $(ARGS))

models: $(READY)  ## the table of models
	$(IRESNET) models $(ARGS)

classify: check-images $(READY)  ## name what is on IMAGES= (files, folders, tar, Parquet): BUNDLE=, or MODEL= and PRECISION=
	$(IRESNET) classify "$(BUNDLE)" $(IMAGES) $(ARGS)

verify: check-data $(READY)  ## accuracy against labels and FP32 on DATA= (folder or tar): REPORT=x.html CSV=x.csv REAL=real.json
	$(IRESNET) verify "$(BUNDLE)" --data "$(DATA)" $(strip $(call flag,REFERENCE,--reference) \
	  $(call flag,LIMIT,--limit) $(call flag,REPORT,--report) $(call flag,CSV,--csv) $(call flag,REAL,--real) $(ARGS))

bench: check-bundle $(READY)  ## throughput and latency of a bundle, model only
	$(IRESNET) bench "$(BUNDLE)" $(ARGS)

serve: check-bundle $(READY)  ## answer over HTTP and gRPC, with a page for the browser: BUNDLE=
	$(IRESNET) serve "$(BUNDLE)" $(ARGS)

info: check-bundle $(READY)  ## what a bundle is and which of its plans run here
	$(IRESNET) info "$(BUNDLE)" $(ARGS)

doctor: $(READY)  ## what this machine has, which targets run here, what would add the others
	$(IRESNET) doctor $(ARGS)

# Arguments are looked at before anything is installed, which may take minutes.
wrong = { echo "error: $(1)" >&2; exit 2; }
one_of = case " $(2) " in *" $($(1)) "*) ;; *) $(call wrong,$(1): expected one of $(2); found '$($(1))') ;; esac
is_file = test -z "$($(1))" || test -f "$($(1))" || $(call wrong,$(1): there is no file '$($(1))')
renamed = test -z "$($(1))" || $(call wrong,$(1)= is now $(2))

check-build: check-calibrate
	@$(call renamed,BATCH,MAX_BATCH=$(comma) with MIN_BATCH= and OPT_BATCH=)
	@$(call one_of,PRECISION,fp32 fp16 bf16 int8 fp8 auto)
	@for target in $(subst $(comma), ,$(TARGET)); do case $$target in auto|tensorrt|tensorrt_rtx|openvino) ;; \
	  *) $(call wrong,TARGET: expected auto or some of tensorrt$(comma)tensorrt_rtx$(comma)openvino; found '$(TARGET)') ;; esac; done
	@$(call is_file,CACHE)

check-calibrate:
	@$(call renamed,IMAGES,LIMIT=$(comma) the number of calibration images; the images themselves are DATA=)
	@test -n "$(ONNX)" || grep -q '"$(MODEL)"' engine_build/network/zoo.py || \
	  $(call wrong,MODEL: there is no model '$(MODEL)'; make models lists them$(comma) ONNX= takes your own)
	@$(call is_file,WEIGHTS)
	@$(call is_file,ONNX)

check-bundle:
	@test -f "$(BUNDLE)/manifest.json" || \
	  $(call wrong,BUNDLE: there is no bundle in '$(BUNDLE)'; make engine MODEL=$(MODEL) PRECISION=$(PRECISION) builds one)

check-images: check-bundle
	@test -n "$(IMAGES)" || $(call wrong,IMAGES: expected a path: an image$(comma) a folder$(comma) a tar file)

check-data: check-bundle
	@test -n "$(DATA)" || $(call wrong,DATA: expected a folder or tar file with labelled images)

test: $(READY)  ## the tests, in WORKERS= processes
	$(RUN) tests/cuda_emulator/build.py || echo "the tests of the CUDA runner will be skipped"
	$(PYTEST) $(ARGS)

test-quick: $(READY)  ## the tests that build no bundle, in under two minutes
	$(PYTEST) -m "not slow and not long" $(ARGS)

gpu-check: $(READY)  ## all that needs a GPU, in one go, with a report: BUNDLES=engines
	$(RUN) -m benchmarks.gpu_check $(call flag,BUNDLES,--bundles) $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench-e2e: $(READY)  ## files to answers, beside PyTorch, ONNX Runtime and benchmark_app (iresnet50 int8 on this CPU)
	$(RUN) benchmarks/end_to_end.py $(ARGS)

embed: $(READY)  ## C library, headers, pkg-config, CMake package: PREFIX= (build/embed, with the C++ example)
	$(RUN) -m infer.embed $(if $(PREFIX),--prefix "$(PREFIX)" --no-example) $(ARGS)

train-shipped: $(READY)  ## train the shipped model again (needs Debian's dataset-fashion-mnist, or DATA=)
	$(RUN) -m engine_build.shipped.train $(call flag,DATA,--data) $(ARGS)

setup: $(READY)  ## make .venv only

$(INSTALLED): setup.py pyproject.toml constraints.txt
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
