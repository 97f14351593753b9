# Everything a newcomer types. `make help` lists it.

CARGO ?= cargo
CONFIG ?= deploy/configs/tempflow-tiny-cpu.toml
# Further flags of `coordinator up`, as in `make up ARGS="--workers 2 --set run.name=second"`.
ARGS ?=
# `cpu` or `cuda`: which libtorch is fetched. Left empty, a GPU that is seen decides.
DEVICE ?=

.PHONY: help setup build up test test-rounding check bench ablation test-kills gpu-check sim fuzz chaos

help:
	@echo 'make up        set up, build, and train the shipped task from start to end (CONFIG=..., ARGS=...)'
	@echo 'make test      build and run all tests'
	@echo 'make test-kills  kill the learner before every change of a file, one run each (about 25 minutes)'
	@echo 'make sim       simulated worlds of faults, thousands a minute (SEEDS=n); one with its story (SEED=n, ARGS="--bug NAME")'
	@echo 'make fuzz      damaged inputs for every fuzzed decoder (INPUTS=n of each, TARGET=name for one), see docs/fuzzing.md'
	@echo 'make chaos     real processes on three hosts, met by random faults, as root (SEEDS=n, ARGS="--seed N" for the first)'
	@echo 'make test-rounding  the tests of the crates with numbers, as libtorch rounds on other processors (CRATES=all for all)'
	@echo 'make check     format, lints, docs, then all tests: what CI runs'
	@echo 'make bench     measure sampling, training and rewards beside PyTorch'
	@echo 'make gpu-check  ten minutes on a card: numbers, bits, memory and speed (DEVICE=cpu: with tiny models, to see it work)'
	@echo 'make ablation  Flow-GRPO to TempFlow-GRPO step by step, three seeds each (hours)'
	@echo 'make setup     fetch libtorch only (DEVICE=cpu or DEVICE=cuda; else as a GPU is seen or not)'

setup:
	@DEVICE='$(DEVICE)' ./deploy/libtorch.sh

build: setup
	$(CARGO) build --release --workspace --bins

up: build
	$(CARGO) run --quiet --release -p coordinator -- up $(CONFIG) $(ARGS)

test: build
	$(CARGO) test --release --workspace --no-fail-fast

# Names of crates, or `all`; those with numbers if empty. With SHORT=1 two ways to round of five.
CRATES ?=
SHORT ?=

test-rounding: build
	python3 tests/rounding/rounding.py $(if $(SHORT),--short) $(CRATES)

check: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --workspace --no-deps --lib --quiet
	$(MAKE) --no-print-directory test

test-kills:
	KILL_EVERYWHERE=1 $(CARGO) test --release -p learner --test learner killed_at_any_change -- --nocapture

# How many seeds; or one, whose story is told.
SEEDS ?= 1000
SEED ?=

sim:
	$(CARGO) run --quiet --release -p simulation -- $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

# How many inputs of each target; and the name of a target, or all.
INPUTS ?= 1000000
TARGET ?=

fuzz:
	INPUTS='$(INPUTS)' $(if $(TARGET),TARGET='$(TARGET)') $(CARGO) test --release --workspace --test fuzz -- --nocapture

chaos: build
	$(CARGO) run --quiet --release -p tests --example chaos -- --seeds $(if $(filter command line,$(origin SEEDS)),$(SEEDS),3) $(ARGS)

ablation: build
	python3 tests/ablation/ablation.py run
	python3 tests/ablation/ablation.py report

# Python with torch 2.11, diffusers 0.38, transformers 4.57, peft and pillow: `make bench PYTHON=.venv/bin/python`.
PYTHON ?= python3

bench: build
	$(CARGO) build --release -p run-setup --example transformer_speed
	$(CARGO) build --release -p rollout-worker --example task_speed
	$(CARGO) build --release -p rewards --example hpsv3_speed --example reward_speed
	$(CARGO) build --release -p tests --example iteration_speed
	$(PYTHON) tests/reference/bench.py
	$(PYTHON) tests/reference/iteration_bench.py
	$(PYTHON) tests/reference/reward_overlap.py

gpu-check:
	$(PYTHON) tests/gpu_check/gpu_check.py --device '$(or $(DEVICE),cuda)' --look
	# libtorch stays what it is where only the checks are to be seen at work.
	$(MAKE) --no-print-directory build DEVICE='$(filter cuda,$(DEVICE))'
	$(CARGO) build --release -p run-setup --example transformer_speed
	$(PYTHON) tests/gpu_check/gpu_check.py --device '$(or $(DEVICE),cuda)'
