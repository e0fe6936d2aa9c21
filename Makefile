# Everything one does with this project. CI (.ci/run) calls only these.
.PHONY: help demo test test-all newcomer lint fix sim bench bench-quick bench-micro torture
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: ## three servers with the proxy in front, until Ctrl-C (ARGS="--port-base 6432" etc.: other ports)
	@scripts/demo $(ARGS)

test: ## what must pass before a change lands; at most 15 minutes
	@scripts/test

test-all: ## everything: all PostgreSQL versions, all seeds and schedules, all drivers
	@scripts/test --all

newcomer: ## the README's two commands in a clean clone with an empty home
	@scripts/newcomer

lint: ## format, lints, dependencies; never writes
	@scripts/lint

fix: ## what format and lints can mend by themselves
	@cargo fmt
	@cargo clippy --fix --allow-dirty --allow-staged --all-targets

sim: ## the protocol under a seeded simulation with faults
	@scripts/sim

bench: ## criterion, then pgbench beside what people run today, 40 minutes (ARGS="--e2e --rounds 5" etc.)
	@scripts/bench $(ARGS)

bench-quick: ## pgbench beside what people run today, one short round, 3 minutes
	@scripts/bench --quick $(ARGS)

bench-micro: ## criterion: hot functions
	@scripts/bench --micro

torture: ## the proxy killed again and again under load, longer than in make test
	@scripts/torture
