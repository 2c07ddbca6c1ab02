# On a fresh Debian or Ubuntu machine with git and Rust: each target installs what it needs first; `images` needs `setup` before.

CARGO ?= cargo
# Of `make demo`: where it keeps its state, its port, and a file that gets one JSON object once all is healthy.
STATE ?= target/demo
PORT ?= 7070
READY_FILE ?=

# Where cargo builds.
BUILT := $(or $(CARGO_TARGET_DIR),target)

export CARGO_TERM_COLOR ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup demo test e2e bed lint bench bench-failover bench-data sim web images

help: ## Says what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Installs what is missing, and starts Docker Engine if none answers
	tests/setup/install build engine tests bed

demo: ## A cluster on this machine, with a sample service to open
	tests/setup/install build engine
	$(CARGO) build --release --bin flotilla
	tests/setup/docker-group $(BUILT)/release/flotilla demo --state "$(STATE)" --port "$(PORT)" $(if $(READY_FILE),--ready-file "$(READY_FILE)")

test: setup ## Every test (but those of `bed` that take long): units, properties, API, engine, and end to end in Chromium
	tests/setup/docker-group tests/setup/run-tests

bed: setup ## The tests on simulated machines, the long ones too; needs root
	tests/setup/run-bed

e2e: setup ## The end-to-end tests in Chromium
	tests/setup/docker-group tests/setup/run-tests --ignore-default-filter -E 'binary(e2e)'

lint: ## Formatting and clippy, where every warning is an error
	tests/setup/install build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

bench: setup ## The figures of docs/BENCHMARKS.md, side by side, in a release build
	$(CARGO) build --release --locked --bins -p flotilla -p flotilla-tests
	tests/setup/docker-group $(BUILT)/release/flotilla-bench $(BENCH)

bench-failover: setup ## What people notice when machines die, beside Docker Swarm; needs root. BENCH="--runs 3 --only worker"
	tests/setup/run-on-bed flotilla-failover $(BENCH)

bench-data: setup ## How soon data is safe elsewhere, beside rsync and Syncthing; needs root. BENCH="--runs 3 --only small"
	tests/setup/install data
	tests/setup/run-on-bed flotilla-copies $(BENCH)

sim: ## Ten thousand simulated clusters that suffer; SEED=17 runs one again, with its history
	tests/setup/install build
	$(if $(SEED),FLOTILLA_SIM_SEED=$(SEED),FLOTILLA_SIM_SEEDS=$(or $(SEEDS),10000)) $(CARGO) test --release --locked -p flotilla-core --test cluster -- --nocapture

web: ## The node with the web app that is embedded in it, in a debug build
	tests/setup/install build
	$(CARGO) build --bin flotilla

images: ## The container images that the end-to-end tests use
	tests/setup/docker-group tests/images/build nginx jupyter databases
