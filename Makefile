# `make help` prints the targets and variables that have a comment behind ##.

LECTURES ?=            ## for record and profile: such as "fusion/softmax"; none: those missing or stale
ADDRESS ?= 127.0.0.1:8000  ## for serve: where the site answers
GPU_PYTHON ?= python3  ## for record, profile and test-gpu: a Python with torch and triton
SITE_PYTHON ?=         ## makes .venv/site; 3.12 or later, found if not given
KERNEL_PYTHON ?=       ## makes .venv/kernels; 3.10 or later, found if not given

SITE := .venv/site
KERNELS := .venv/kernels

# Material's notice about the end of MkDocs 1 would hide the build's own warnings
export NO_MKDOCS_2_WARNING := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help serve site test test-kernels test-site chromium test-gpu record profile clean

help: ## print this list
	@awk -F ' *## *' '/^[a-zA-Z_-]+( \?=|:).*## / { sub(/( \?=|:).*/, "", $$1); \
		printf "%-14s %s\n", $$1, $$2 }' Makefile

serve: $(SITE)/ready ## build the site, serve it, reload on every change
	$(SITE)/bin/mkdocs serve --no-strict --livereload --dev-addr $(ADDRESS)

site: $(SITE)/ready ## build the site into site/; any warning fails it
	$(SITE)/bin/mkdocs build --strict

test: chromium test-kernels test-site ## run every test that needs no GPU

test-kernels: $(KERNELS)/ready ## run the lectures' tests in Triton's interpreter
	OMP_NUM_THREADS=1 $(KERNELS)/bin/python -m pytest -q -n auto --dist worksteal tests/kernels

test-site: chromium $(SITE)/ready-to-test ## test the pipeline, and the built site in a browser
	$(SITE)/bin/python -m pytest -q -n auto --dist worksteal tests/site

chromium: # before all else, as tests that cannot begin should say so at once
	scripts/ensure_chromium.sh

test-gpu: ## run the lectures' tests and the sanitizer on a GPU; writes tests.json
	$(GPU_PYTHON) scripts/test_gpu.py

record: ## record lectures on a GPU
	$(GPU_PYTHON) scripts/record.py $(LECTURES)

profile: ## profile lectures on a GPU, with NVIDIA's ncu
	$(GPU_PYTHON) scripts/profile_gpu.py $(LECTURES)

clean: ## remove all that make made: site/, environments, caches
	rm -rf site .venv .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SITE)/ready: docs/requirements.txt
	scripts/make_env.sh $(SITE) 3.12 "$(SITE_PYTHON)" $<
	touch $@

$(SITE)/ready-to-test: $(SITE)/ready tests/requirements-site.txt
	$(SITE)/bin/pip install -q -r tests/requirements-site.txt
	touch $@

$(KERNELS)/ready: tests/requirements-kernels.txt
	scripts/make_env.sh $(KERNELS) 3.10 "$(KERNEL_PYTHON)" $<
	touch $@
