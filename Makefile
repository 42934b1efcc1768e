# `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Three for two cores: many tests wait for somebody.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder
BIN := .venv/bin

# A busy neighbour makes default torch four times slower; passive waiting cures it.
export OMP_WAIT_POLICY ?= PASSIVE

# What the integration tests drive: a real archive, real DICOM tools, a real database, a real browser.
SYSTEM_PACKAGES := orthanc orthanc-dicomweb dcmtk dicom3tools dcm2niix strace chromium systemd gcc libc6-dev openssl postgresql

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/base.stamp: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo]'
	@touch $@

.venv/test.stamp: .venv/base.stamp
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo,test,dev]'
	@touch $@

.PHONY: venv
venv: .venv/test.stamp ## make .venv with everything: run, test, develop

.PHONY: demo
demo: .venv/base.stamp ## set up, then one synthetic series from the scanner to the archive
	$(BIN)/dicom-node demo

.PHONY: system-packages
system-packages: ## install what the integration tests drive (root), or say what is missing
	@missing=""; \
	for package in $(SYSTEM_PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' \
	    || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "not installed:$$missing"; \
	  echo "tests that need them are skipped; as root: apt-get install$$missing"; \
	  exit 0; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing \
	  || echo "could not install:$$missing; tests that need them are skipped"

.PHONY: test
test: system-packages .venv/test.stamp ## set up, then the whole test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: check
check: .venv/test.stamp ## lint, types and the quick tests: before every commit
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m 'not slow' $(PYTEST_ARGS)

.PHONY: series
series: system-packages .venv/test.stamp ## every real series of ../shared through one running node, minutes
	SERIES=all $(BIN)/python -m pytest -q tests/integration/test_series.py

# How much of every campaign: 0.05 is a twentieth. ONLY names some of them, as in ONLY="kill9 clock".
SCALE ?= 1
ONLY ?=

.PHONY: faults
faults: system-packages .venv/test.stamp ## every fault campaign, hours in all; writes docs/reliability.md
	$(BIN)/python -m tests.faults --scale $(SCALE) $(if $(ONLY),--only $(ONLY))

.PHONY: soak
soak: system-packages .venv/test.stamp ## half an hour of mixed traffic from 8 senders: all there, ledger exact, memory flat?
	$(BIN)/python -m benchmarks.soak

.PHONY: bench
bench: .venv/test.stamp ## a whole head by stage on this machine, beside a plain run of the network
	$(BIN)/sr-engine bench

.PHONY: bench-send
bench-send: system-packages .venv/test.stamp ## our sender beside dcmtk's storescu, to storescp and Orthanc
	$(BIN)/python -m benchmarks.send

.PHONY: soak-send
soak-send: system-packages .venv/test.stamp ## 100 series of 192 over 1, 4 and 8 associations on busy cores: nothing lost?
	$(BIN)/python -m benchmarks.send_soak

.PHONY: bench-receive
bench-receive: system-packages .venv/test.stamp ## how fast the node receives, beside Orthanc, in about a minute
	$(BIN)/python -m benchmarks.receive --quick

.PHONY: bench-parts
bench-parts: .venv/test.stamp ## what receiving costs the processor, part by part, in half a minute
	$(BIN)/python -m benchmarks.parts

.PHONY: bench-waits
bench-waits: system-packages .venv/test.stamp ## where the time of a received image goes, by thread state (root only)
	$(BIN)/python -m benchmarks.waits

.PHONY: bench-years
bench-years: .venv/test.stamp ## how long the node's questions take after 100,000 series, in two minutes
	$(BIN)/python -m benchmarks.years

.PHONY: pictures
pictures: system-packages .venv/test.stamp ## the pictures of docs/operations.md: companions in Orthanc's Web viewer (orthanc-webviewer) and dcmtk
	$(BIN)/python -m tests.integration.pictures docs/pictures

.PHONY: viewers
viewers: SYSTEM_PACKAGES += dicomscope xvfb xdotool
viewers: system-packages .venv/test.stamp ## a result in OHIF (npm, about 50 MB) and DICOMscope: checked, then its pictures kept; minutes
	$(BIN)/python -m tests.viewers docs/pictures

.PHONY: clean
clean: ## remove .venv, caches and what the demo wrote
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist demo-out *.egg-info
	find dicom_node sr_engine tests -name __pycache__ -prune -exec rm -rf {} +
