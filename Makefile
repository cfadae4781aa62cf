# Everything runs in a local virtual environment that the first target makes
# and the others use again; pip runs only after pyproject.toml has changed.
#
#   make demo              train and run a network with early exits
#   make demo DATA=mnist   the same on a data set from TFDS
#   make test              run the tests, as continuous integration does
#   make help              all targets
#
# PYTHON=/path/to/python picks the Python that the environment is made from,
# VENV=folder the place of the environment.

VENV := .venv
PYTHON :=
DATA :=
ARGS :=
BENCH := $(wildcard benchmarks/[a-z]*.py)

BIN := $(VENV)/bin/python
# What TensorFlow notes of every graph would bury what is printed here.
export TF_CPP_MIN_LOG_LEVEL ?= 2
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
USABLE := import ensurepip, sys, venv; \
	sys.exit(not (3, 11) <= sys.version_info < (3, 14))

# Tests need what the demo needs and more, so one environment serves both.
DEMO_EXTRAS := data,edge,report
TEST_EXTRAS := test
LINT_EXTRAS := lint
NOTEBOOK_EXTRAS := notebooks
BROWSER_EXTRAS := browser,test
DOCS_EXTRAS := docs

# The second part: the same network over two processes.
SPLIT_DEMO = echo "==> Splitting it: an edge and a cloud worker" && \
	$(BIN) examples/split_inference.py --model demo/model.keras \
	$(if $(DATA),--data $(DATA))

# Quiet, so that what is printed are the steps and what went wrong.
INSTALL := $(BIN) -m pip install --quiet --disable-pip-version-check \
	--no-input --editable

# The version whose generated code runs on the oldest protobuf that we allow.
# It asks for an old protobuf itself, which its compiler does not use.
GENERATOR := grpcio-tools==1.74.0
INSTALL_ALONE := $(BIN) -m pip install --quiet --disable-pip-version-check \
	--no-input --no-deps

# A worker for each core, each with about 2 GB of memory.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

AS_ROOT = $(if $(filter-out 0,$(shell id -u)),sudo)

.PHONY: help venv demo test browser test-long test-faults test-fuzz \
	test-notebooks lint format bench results protos docs clean distclean

help:
	@echo "make demo        train and run a network with early exits [DATA=mnist]"
	@echo "make test        run the tests [ARGS='-k name']"
	@echo "make test-long   run the statistical tests, many minutes"
	@echo "make test-faults run the tests that break things on purpose"
	@echo "make test-fuzz   run the tests with random and broken input"
	@echo "make test-notebooks  run the notebooks in a kernel"
	@echo "make browser     install a browser, for the tests of pages (Debian)"
	@echo "make lint        check style and formatting"
	@echo "make format      mend style and formatting"
	@echo "make bench       run the benchmarks [BENCH=benchmarks/name.py]"
	@echo "make results     run the experiments of docs/results.md, many hours"
	@echo "make protos      generate the code of protos/split.proto again"
	@echo "make docs        build the documentation into site/"
	@echo "make venv        make the virtual environment $(VENV), nothing else"
	@echo "make clean       remove what the tools wrote"
	@echo "make distclean   remove the virtual environment too"

demo: $(VENV)/.installed-demo
	@echo "==> Running the demo"
	@$(BIN) examples/demo.py $(if $(DATA),--data $(DATA)) $(ARGS)
	$(if $(ARGS),,@$(SPLIT_DEMO))

test: $(VENV)/.installed-test
	@echo "==> Running the tests"
	@$(BIN) -m pytest $(PARALLEL) $(ARGS)

# Without these the tests of pages skip. apt-get asks for root.
browser: $(VENV)/.installed-test
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; \
	then \
		echo "==> Chromium and its driver are there"; \
	else \
		echo "==> Installing Debian's chromium and chromium-driver with" \
			"apt-get (about 400 MB)"; \
		$(AS_ROOT) apt-get update -qq && \
		$(AS_ROOT) apt-get install -qq -y --no-install-recommends \
			chromium chromium-driver; \
	fi
	@echo "==> Installing gradio and selenium into $(VENV)"
	@$(INSTALL) '.[$(BROWSER_EXTRAS)]'
	@echo "==> Done; make test ARGS='tests/live tests/report' uses them"

test-notebooks: $(VENV)/.installed-notebooks

test-long test-faults test-fuzz test-notebooks: test-%: $(VENV)/.installed-test
	@echo "==> Running the tests marked $*"
	@$(BIN) -m pytest -m $* --timeout 3600 $(ARGS)

lint: $(VENV)/.installed-lint
	@echo "==> Checking style and formatting"
	@$(BIN) -m ruff check .
	@$(BIN) -m ruff format --check .

format: $(VENV)/.installed-lint
	@echo "==> Mending style and formatting"
	@$(BIN) -m ruff check --fix .
	@$(BIN) -m ruff format .

bench: $(VENV)/.installed-demo
	@for file in $(BENCH); do \
		echo "==> Running $$file"; \
		$(BIN) $$file $(ARGS) || exit 1; \
	done

results: $(VENV)/.installed-demo
	@echo "==> Running what docs/results.md shows; stop and go on at any time"
	@$(BIN) benchmarks/results.py $(ARGS)

protos: $(VENV)/.installed-test
	@echo "==> Generating the code of protos/split.proto"
	@$(BIN) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
		--grpc_python_out=. protos/split.proto

docs: $(VENV)/.installed-docs
	@echo "==> Building the documentation into site/"
	@$(BIN) -m mkdocs build --quiet --strict

venv: $(VENV)/.made

$(VENV)/.installed-demo: pyproject.toml $(VENV)/.made
	@echo "==> Installing keras_earlyexit with TensorFlow, data sets and" \
		"plots into $(VENV) (about 2 GB, some minutes; once)"
	@$(INSTALL) '.[$(DEMO_EXTRAS)]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.made
	@echo "==> Installing keras_earlyexit with everything that the tests" \
		"need into $(VENV) (about 3 GB, some minutes; once)"
	@$(INSTALL) '.[$(TEST_EXTRAS)]'
	@$(INSTALL_ALONE) '$(GENERATOR)'
	@touch $@ $(VENV)/.installed-demo $(VENV)/.installed-lint

$(VENV)/.installed-notebooks: pyproject.toml $(VENV)/.installed-test
	@echo "==> Installing what runs notebooks into $(VENV)"
	@$(INSTALL) '.[$(NOTEBOOK_EXTRAS)]'
	@touch $@

$(VENV)/.installed-lint: pyproject.toml $(VENV)/.made
	@echo "==> Installing keras_earlyexit and the linter into $(VENV)"
	@$(INSTALL) '.[$(LINT_EXTRAS)]'
	@touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.made
	@echo "==> Installing keras_earlyexit and mkdocs into $(VENV)"
	@$(INSTALL) '.[$(DOCS_EXTRAS)]'
	@touch $@

# `python -m venv` also mends an environment that was left half made or whose
# Python is gone. A Python without ensurepip (Debian has it in a package of its
# own) could make none.
ifeq ($(wildcard $(BIN)),)
.PHONY: $(VENV)/.made
endif
$(VENV)/.made:
	@python=''; \
	for candidate in $(CANDIDATES); do \
		if "$$candidate" -c '$(USABLE)' 2>/dev/null; then \
			python=$$candidate; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No usable Python found. Needed is Python 3.11, 3.12 or 3.13" \
			"with venv and pip (Debian, Ubuntu: install python3-venv)." \
			"Tried: $(CANDIDATES). Name one:" \
			"make PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi; \
	echo "==> Making a virtual environment in $(VENV) with" \
		"$$("$$python" --version)"; \
	"$$python" -m venv $(VENV)
	@touch $@

clean:
	@echo "==> Removing what the tools wrote"
	@rm -rf build dist site htmlcov .coverage .pytest_cache .ruff_cache \
		.hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune \
		-exec rm -rf {} +

distclean: clean
	@echo "==> Removing $(VENV)"
	@rm -rf $(VENV)
