# Needs Python 3.11 or newer and what a stock Debian has; everything else goes into .venv.
#   make demo [ARGS=...]    make test    make lint    make lock    make kafka    make clean
# GPU=1 takes faiss-gpu in place of faiss-cpu (both install the module `faiss`).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv demo test lint lock kafka clean

BIN := .venv/bin
FAISS := $(if $(filter-out 0,$(GPU)),gpu,cpu)
OTHER := $(if $(filter cpu,$(FAISS)),gpu,cpu)
KAFKA_VERSION := 4.3.1
KAFKA := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/recsys/kafka-$(KAFKA_VERSION)
# Written last: a venv without it is finished, not trusted.
STAMP := .venv/.complete-$(FAISS)

help:
	@echo "make demo [ARGS=...]  the whole platform on this machine, from events to slates"
	@echo "make test             ruff, mypy, import contracts and the whole test suite"
	@echo "make lint             the same without the tests"
	@echo "make kafka            fetch Apache Kafka $(KAFKA_VERSION) for tests and benchmarks (44 MB, once)"
	@echo "make lock             resolve requirements/*.lock anew from pyproject.toml"
	@echo "make clean            remove caches; .venv and data stay"

venv: $(STAMP)

$(STAMP): requirements/$(FAISS).lock pyproject.toml
	@python=; for candidate in python3.11 python3 python3.12 python3.13; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "error: Python 3.11 or newer not found on the PATH; on Debian: apt-get install python3 python3-venv" >&2; \
	  exit 1; fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "venv: creating .venv with $$($$python --version)"; \
	  $$python -m venv --clear .venv || { \
	    echo "error: can't create .venv; on Debian: apt-get install python3-venv" >&2; exit 1; }; \
	fi
	@rm -f .venv/.complete-*
	@echo "venv: installing requirements/$(FAISS).lock (a few minutes the first time)"
	@if $(BIN)/python -m pip show --quiet faiss-$(OTHER) 2>/dev/null; then \
	  $(BIN)/python -m pip uninstall --quiet --yes faiss-$(OTHER) faiss-$(FAISS); fi
	@$(BIN)/python -m pip install --quiet --progress-bar on --disable-pip-version-check -r requirements/$(FAISS).lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "venv: ready"

demo: venv
	@$(BIN)/recsys demo $(ARGS)

lint: venv
	@echo "ruff";         $(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet .
	@echo "mypy";         $(BIN)/mypy --no-error-summary
	@echo "import-linter"; $(BIN)/lint-imports --no-logo

test: lint
	@$(BIN)/pytest -q $(ARGS)

lock: venv
	@$(BIN)/python requirements/lock.py

kafka: $(KAFKA)/.complete

$(KAFKA)/.complete:
	@for tool in java mvn; do command -v $$tool >/dev/null || { \
	  echo "error: no $$tool on the PATH; on Debian: apt-get install openjdk-17-jre-headless maven" >&2; exit 1; }; done
	@mkdir -p $(@D); new=$$(mktemp -d $(@D).XXXXXX); trap 'rm -rf "$$new"' EXIT; \
	echo "kafka: fetching $(KAFKA_VERSION) into $(@D)"; \
	printf '%s' '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>' \
	  '<groupId>recsys</groupId><artifactId>kafka</artifactId><version>1</version><dependencies><dependency>' \
	  '<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$(KAFKA_VERSION)</version>' \
	  '</dependency></dependencies></project>' >"$$new/pom.xml"; \
	mvn -q -B -f "$$new/pom.xml" dependency:copy-dependencies -DoutputDirectory="$$new/jars"; \
	rm -rf $(@D); mv "$$new/jars" $(@D); touch $@
	@echo "kafka: ready"

clean:
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	@find recsys deployments jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
