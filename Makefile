# make demo | serve | test | check: each makes .venv first if it is not there.

PYTHON ?= python3.11
BIN := .venv/bin
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
LOCAL := --hostfile hostfiles/local --no_ssh_check --master_addr 127.0.0.1 --quiet

.PHONY: demo serve test check clean

demo: .venv/installed
	$(BIN)/python launch/demo.py

serve: .venv/installed
	$(BIN)/deepspeed $(LOCAL) launch/serve.py -c launch/batch.toml

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone: a CPU build that is at hand stays, and DeepSpeed's setup finds it.
.venv/installed: pyproject.toml constraints.txt
	@echo "making .venv: about 2 GB on a CPU, some minutes"
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) torch
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(PIP_INSTALL) -e ".[plan,run,serve,dev]"
	touch $@

clean:
	rm -rf .venv out build *.egg-info
