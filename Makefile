# Everything a newcomer or a CI job types. `make` alone lists it. .venv is made and kept current by itself.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
RUN ?= outputs/openmoji
HUB ?= outputs/openmoji-hub
ARGS ?=
QUERIES ?= "clock" "a green book" "a smiling cat" "a face with a smile" "flag of a country"

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Nothing here needs the Hub: a call that would reach for it fails at once instead of waiting for a network.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# The quick tests try the same inputs each time (hypothesis's own profile for CI), so a change is judged by itself;
# ARGS=--hypothesis-profile=default draws new ones.
SAME_INPUTS := --hypothesis-profile=ci
# The tests compute with one thread, so each core takes files of its own. The slow ones start processes themselves.
PARALLEL := -n auto --dist loadfile
# The 20 slowest, with their seconds: the quick suite is to stay quick.
SLOWEST := --durations=20
# One line a package instead of pip's full log or of minutes of silence; errors come through.
PIP_PROGRESS := sed -u -n -E 's/^ *(Downloading|Using cached|Processing) +(.*\/)?([^ /]+).*$$/    \3/p; s/^(Installing collected packages).*/    \1 .../p'
NO_WARNINGS := sed -u '/^WARNING/d'

.PHONY: help demo test test-slow test-min test-app app peers bench study-small check format clean
help: ## list the targets
	@printf 'make TARGET, where TARGET is one of\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\nVariables: PYTHON=%s (3.11 or newer), ARGS= (more arguments for pytest)\n' '$(PYTHON)'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  printf 'Python 3.11 or newer is needed; %s is %s. Name another one: make PYTHON=python3.12 ...\n' \
	    '$(PYTHON)' "$$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo '[1/3] making $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo '[2/3] installing torch (the largest package; with CUDA it is some gigabytes)'
	@$(PY) -m pip install "$$(grep '^torch==' constraints.txt)" -c constraints.txt 2> >($(NO_WARNINGS) >&2) | $(PIP_PROGRESS)
	@echo '[3/3] installing the package, its extras and the tools'
	@$(PY) -m pip install -e '.[dev]' -c constraints.txt 2> >($(NO_WARNINGS) >&2) | $(PIP_PROGRESS)
	@touch $@

demo: $(STAMP) ## train a small model on real pictures and texts (3 stages), publish it as a folder, search with it
	@begin=$$SECONDS; \
	resume=; if [ -f $(RUN)/run.json ]; then resume=--resume; fi; \
	echo '--- 1/3 train: preparing the data takes about a minute the first time'; \
	$(OFFLINE) $(PY) -m trainer_ext configuration/recipes/openmoji.yaml --output_dir $(RUN) $$resume; \
	echo '--- 2/3 build the Hub folder and load it in a fresh interpreter'; \
	$(OFFLINE) $(PY) hub_upload.py build $(RUN) $(HUB); \
	$(OFFLINE) $(PY) hub_upload.py verify $(HUB); \
	echo '--- 3/3 search held-out pictures with that folder, from another folder and without this package'; \
	data=$$($(PY) -c 'from trainer_ext.demo_data import prepare; print(prepare())'); \
	(cd $(HUB) && $(OFFLINE) $(abspath $(PY)) -I $(abspath examples/search_images.py) . $(QUERIES) \
	  --images "$$data/short_captions/test_concepts.parquet" --sheet $(abspath $(RUN))/search.png); \
	echo "--- done in $$((SECONDS - begin)) s. Look at $(RUN): search.png, the report and its pictures; the model: $(HUB)"

test: $(STAMP) ## the tests and the doctests, without the slow ones and those that need a GPU
	$(OFFLINE) $(PY) -m pytest -q $(PARALLEL) $(SAME_INPUTS) $(SLOWEST) -m 'not slow and not gpu' $(ARGS)

# Ray and LanceDB, which two examples use: some hundred megabytes that `make test` does not pay for.
RAY_STAMP := $(VENV)/.installed-ray
$(RAY_STAMP): $(STAMP)
	@$(PY) -m pip install -q -e '.[ray]' -c constraints.txt
	@touch $@

test-slow: $(RAY_STAMP) ## the slow tests: whole runs, several processes, fresh environments
	$(OFFLINE) $(PY) -m pytest -q -m 'slow and not gpu' $(ARGS)

peers: $(STAMP) ## timm, open_clip and MiniLM into .peers/, for the slow tests and the study that compare with them
	$(PY) -m pip install --quiet --no-deps --upgrade --target .peers -r tests/peers.txt 2> >($(NO_WARNINGS) >&2)

# Gradio wants a Pillow and a tomlkit older than those the rest is tested with, so the page has a place of its own.
APP_STAMP := .venv-app/.installed
$(APP_STAMP): pyproject.toml constraints.txt constraints-app.txt
	@$(PYTHON) -m venv .venv-app
	@.venv-app/bin/pip install -q "$$(grep '^torch==' constraints.txt)" -c constraints-app.txt
	@.venv-app/bin/pip install -q -e '.[app,train]' pytest playwright -c constraints-app.txt
	@touch $@

.PHONY: model-for-app
model-for-app:
	@test -f $(HUB)/config.json || { \
	  echo "error: $(HUB) is no model: run 'make demo' first, which leaves one there, or name yours: make app HUB=FOLDER" >&2; exit 2; }

app: model-for-app $(APP_STAMP) ## the search page over the demo's model and held-out pictures, on this machine only
	@test ! -x $(PY) || $(PY) -c 'from trainer_ext.demo_data import prepare; prepare()'
	$(OFFLINE) .venv-app/bin/python examples/app/app.py $(HUB) $(ARGS)

test-app: $(APP_STAMP) ## the search page and a run's report in a real browser (needs Chromium)
	$(OFFLINE) .venv-app/bin/python -m pytest -q tests/examples/test_app.py tests/trainer_ext/report/test_browser.py $(ARGS)

MIN_STAMP := .venv-min/.installed
$(MIN_STAMP): pyproject.toml constraints-min.txt
	@$(PYTHON) -m venv .venv-min
	@.venv-min/bin/pip install -q "$$(grep '^torch==' constraints-min.txt)" -c constraints-min.txt
	@.venv-min/bin/pip install -q -e '.[dev]' -c constraints-min.txt
	@touch $@

test-min: $(MIN_STAMP) ## the tests with the lowest versions declared
	$(OFFLINE) .venv-min/bin/python -m pytest -q $(PARALLEL) $(SAME_INPUTS) -m 'not slow and not gpu' $(ARGS)

bench: $(STAMP) ## a training step's attention and packing; memory and time of the losses, plain and tiled
	$(PY) benchmarks/training_step.py
	$(PY) benchmarks/loss_memory.py

study-small: $(STAMP) ## one pair of the study's arms, three seeds of 8 steps: its machinery in minutes, not its results
	rm -rf outputs/study-small
	$(OFFLINE) $(PY) examples/study/run.py joint images_only --seeds 3 --steps 8 --limit 50 \
	  --folder outputs/study-small --rows outputs/study-small/results.jsonl
	$(OFFLINE) $(PY) examples/study/tables.py --rows outputs/study-small/results.jsonl --print a

check: $(STAMP) ## ruff: rules and format; mypy: types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP) ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove builds and tool caches (not .venv, not outputs/)
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
