# From a bare clone with Python 3.11 or newer and nothing else: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick lint docs wheel lock model-gpu

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

setup: $(STAMP) ## make .venv with the locked versions of everything (once)

demo: $(STAMP) ## teach the shipped model two new words from five pictures each (82 s on two cores)
	$(BIN)/ldm invert --concepts configs/emoji/demo.yaml

test: $(STAMP) ## run the tests, two workers of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

quick: $(STAMP) ## run the tests that are marked neither slow, gpu nor parity: what to run on each save, on one core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not parity"

wheel: $(STAMP) ## build dist/ldm-*.whl, which works in an empty folder
	rm -rf build
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

STAGES := configs/emoji/diffusion.yaml configs/emoji/gpu.yaml
model-gpu: $(STAMP) ## train a 128-pixel model on a GPU (meant for 25 minutes of an H100, not tried yet), into ./emoji-128
	$(BIN)/ldm train data --sets all --size 128 --out data/emoji-128
	$(BIN)/ldm train autoencoder --base configs/emoji/autoencoder.yaml configs/emoji/gpu-autoencoder.yaml \
	  --out logs/emoji-128-autoencoder
	$(BIN)/ldm train diffusion --base $(STAGES) --out logs/emoji-128
	$(BIN)/ldm train export --base $(STAGES) --run logs/emoji-128 --out emoji-128

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation into site/; a broken link or an undocumented setting fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: ## write requirements.lock from what .venv holds now
	@{ sed -n '/^#/p' requirements.lock; \
	  $(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | grep -v '^#' \
	  | sed -E '/^(nvidia-|cuda-|triton)/ s/$$/ ; platform_system == "Linux"/'; } > requirements.lock.tmp
	@mv requirements.lock.tmp requirements.lock

# A .venv that is there without a working pip is made anew; one with is filled up.
$(STAMP): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name yours: make PYTHON=python3.11 setup"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
