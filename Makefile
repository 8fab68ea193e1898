# What a newcomer needs: `make demo` and `make test`. `make help` lists the rest.

SHELL := /bin/bash
CARGO ?= cargo
FMT := $(CARGO) fmt --all -- --config group_imports=StdExternalCrate,imports_granularity=Crate

.PHONY: help demo test check setup setup-libtorch setup-tests build fmt lint docs-check deny fuzz bench bench-chain bench-evaluator bench-gateway bench-merge bench-model bench-stream clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: setup-libtorch ## Run a whole subnet on this machine; ARGS="--cycles 5 --json out.json" for options
	$(CARGO) build --workspace --bins
	$(CARGO) run --quiet --package connito -- demo $(ARGS)

test: setup ## Run every test
	$(CARGO) nextest --version >/dev/null 2>&1 || $(CARGO) install cargo-nextest --locked
	$(CARGO) test --quiet --workspace --doc
	CONNITO_PYTHON=$(CURDIR)/.venv/bin/python $(CARGO) nextest run --workspace

check: setup-libtorch ## Everything that is checked before a commit, cheapest first
	$(FMT) --check
	$(CARGO) metadata --locked --format-version 1 >/dev/null
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

setup: setup-libtorch setup-tests ## Set up what builds and tests need

setup-libtorch:
	@scripts/setup-libtorch.sh third_party/libtorch

setup-tests:
	@scripts/setup-redis.sh
	@scripts/setup-python.sh

build: setup-libtorch ## Build every binary, optimised
	$(CARGO) build --workspace --bins --release

fmt: ## Format
	$(FMT)

deny: ## Check licences, sources and who may use which crate (needs cargo-deny)
	$(CARGO) deny check bans licenses sources

fuzz: ## Fuzz what reads strangers' bytes (needs cargo-fuzz); ARGS="pt form" for some targets, SECONDS_EACH=600 for longer
	@fuzz/seed.sh
	@cd fuzz && for target in $(or $(ARGS),$$($(CARGO) fuzz list)); do \
		$(CARGO) fuzz run -s none $$target -- -max_total_time=$(or $(SECONDS_EACH),60) -max_len=65536 || exit 1; done

bench-chain: ## How long a freeze waits for the chain service, and how much memory that has
	$(CARGO) bench --package svc-chain --bench freeze

bench-gateway: ## Downloads beside nginx (nginx-light), uploads beside the hashes alone, and what memory they take; ARGS="--quick" for less
	$(CARGO) bench --package svc-gateway --bench download
	$(CARGO) bench --package svc-gateway --bench upload -- $(ARGS)

bench-merge: ## An all-reduce among 2, 4 and 8 validators beside copying as many bytes; ARGS="--mib 64 --members 2,4" for less
	$(CARGO) bench --package svc-peer --bench all_reduce -- $(ARGS)

bench-model: setup-libtorch ## The forward pass against Python transformers; ARGS="--length 512,2048 --runs 3" for options
	@scripts/setup-bench.sh
	$(CARGO) bench --package model --bench forward -- $(ARGS)

bench-evaluator: setup-libtorch ## Whole evaluations against bare forward passes; ARGS="--width small --submissions 10 --processes" for options
	$(CARGO) bench --package svc-evaluator --bench pipeline -- $(ARGS)

bench-stream: ## Verification of a submission while it arrives, against the hashes alone
	$(CARGO) bench --package checkpoint --bench stream

clean: ## Remove what was built
	$(CARGO) clean
