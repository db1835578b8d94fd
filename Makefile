# make venv | demo | test | check | bench | deb | openwrt | dist: each does all its own set-up on Debian 12, as root.
# Debian's own Python where there is one: apt's python3-dev and python3-venv are for it.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
BIN := .venv/bin
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: venv demo test check unit bench deb openwrt dist clean

venv: .venv/ready

.venv/ready: pyproject.toml deploy/apt-packages.txt deploy/constraints.txt deploy/make-venv
	PYTHON=$(PYTHON) deploy/make-venv
	@touch $@

demo: venv
	$(BIN)/pptp-nat demo

check: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -p no:randomly tests/test_layering.py

test: check
	$(BIN)/pytest

unit: venv
	$(BIN)/pytest tests/core tests/scenario

bench: venv
	$(BIN)/python -m benchmarks

deb: venv
	$(BIN)/python -m deploy.packages deb

dist: venv
	$(BIN)/python -m deploy.packages dist

openwrt: venv
	$(BIN)/python -m deploy.packages ipk

clean:
	rm -rf .venv build dist *.egg-info
