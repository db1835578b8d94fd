# make venv | demo | test | check | bench | faults | soak | fuzz | compiled | bpf | deb | openwrt | dist: each does all its own set-up on Debian 12, as root.
# Debian's own Python where there is one: apt's python3-dev and python3-venv are for it.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
BIN := .venv/bin
SHELL := /bin/bash
# Tests run in a process per core; in two at least, since half of what they do is to wait.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 2 ? 2 : n)))
.DELETE_ON_ERROR:
.PHONY: venv demo test check unit bench faults soak fuzz compiled bpf deb openwrt dist clean

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
	$(BIN)/pytest -n $(JOBS) --dist worksteal

unit: venv
	$(BIN)/pytest tests/core tests/scenario

bench: venv
	$(BIN)/python -m benchmarks

# The long forms of what make test does for seconds: a hundred crashes under 200 calls and every
# flood on either data path; an hour of churn; ten million spoiled inputs.
faults: venv
	PPTP_NAT_FAULTS=1 PPTP_NAT_KILLS=100 PPTP_NAT_CLIENTS=100 $(BIN)/pytest -p no:randomly \
		tests/peers/test_restarts.py tests/peers/test_guard.py tests/peers/test_takeover.py tests/peers/test_floods.py \
		tests/peers/test_strangers.py tests/peers/test_addresses.py tests/kernel/test_refusals.py \
		tests/peers/test_full_table.py tests/peers/test_pauses.py tests/kernel/test_rules_pace.py

soak: venv
	PPTP_NAT_SOAK_SECONDS=$${PPTP_NAT_SOAK_SECONDS:-3600} $(BIN)/pytest -s -p no:randomly \
		tests/peers/test_soak.py

fuzz: venv
	$(BIN)/python -m tests.fuzz 2000
	$(BIN)/python -m tests.fuzz.storm 10

# The package with its hot modules in C, in build/compiled, and what of the tests is about them;
# those left out hand in stand-ins, which C takes no notice of.
compiled: venv
	rm -rf build/compiled
	PPTP_NAT_COMPILE=1 $(BIN)/python setup.py -q build --build-lib build/compiled
	$(BIN)/pytest -q -o "pythonpath=build/compiled ." tests/core tests/scenario tests/fuzz \
		tests/adapters/test_gre_queue.py \
		-k "not test_the_queue and not too_short_for_a_key and not spoiled_makes_a_reader"

# The programs of the data path bpf, for either order of octets; the objects are kept in the
# repository.  Needs clang and llvm.
BPF_OBJECTS := pptp_nat/bpf
bpf:
	for order in el eb; do \
		made=$(BPF_OBJECTS)/gre.$$order.o; \
		clang -target bpf$$order -mcpu=v2 -O2 -g -Wall -Wextra -Wno-pointer-arith -fno-ident \
			-ffile-prefix-map=$(CURDIR)/= -fdebug-compilation-dir=. \
			-I/usr/include/$(shell uname -m)-linux-gnu -c pptp_nat/bpf/gre.c -o $$made && \
		llvm-strip -g -R .BTF.ext -R .rel.BTF.ext $$made || exit 1; \
	done

deb: venv
	$(BIN)/python -m deploy.packages deb

dist: venv
	$(BIN)/python -m deploy.packages dist

openwrt: venv
	$(BIN)/python -m deploy.packages ipk

clean:
	rm -rf .venv build dist *.egg-info
