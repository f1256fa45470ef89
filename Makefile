# make demo | test | lint; make parity | plan-tpu need more than the tests: torch with peft and sentence-transformers, libtpu.
# Each makes its own virtual environment, so that none changes what another installs.
PYTHON ?= python3
BIN := .venv/bin
DEMO_ARGS ?=
INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint parity plan-tpu clean

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -e '.[test,lint]'
	touch $@

.venv-parity/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python $(INSTALL) torch
	.venv-parity/bin/python $(INSTALL) -e '.[test,parity]'
	touch $@

.venv-tpu/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python $(INSTALL) -e '.[test,tpu]'
	touch $@

demo: .venv/.installed
	$(BIN)/jax-rele run configs/demo.yaml $(DEMO_ARGS)

test: .venv/.installed
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck scripts/launch/*.sh scripts/launch/*.sbatch scripts/studies/*.sh

parity: .venv-parity/.installed
	.venv-parity/bin/python -m pytest -n 0 tests/parity

plan-tpu: .venv-tpu/.installed
	.venv-tpu/bin/python -m pytest -n 0 tests/plan

clean:
	rm -rf .venv .venv-* runs build *.egg-info
