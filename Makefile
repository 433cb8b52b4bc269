# make demo   edit a short real clip with three prompts; result in demo/
# make test   lint, types and every test that needs no accelerator
# make gpu-test   the tests that need an accelerator
# make ray-test   data preparation on a Ray cluster of two workers on this machine (installs Ray, some 240 MB)
# make real-test  public networks at their real sizes against their reference implementations (12 GB of memory, minutes)
#
# The first call makes .venv and installs the package there (PyTorch alone is a few hundred megabytes to some gigabytes).

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test gpu-test ray-test real-test setup setup-dev clean

demo: .venv/ready
	$(BIN)/python -m gen1_core demo --out demo

test: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -ra -m "not gpu and not real and not ray" -n auto --maxprocesses 4

gpu-test: .venv/ready-dev
	$(BIN)/python -m pytest -ra -m gpu

ray-test: .venv/ready-dev
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -e '.[distributed]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -ra -m ray

real-test: .venv/ready-dev
	$(BIN)/python -m pytest -ra -m real

setup: .venv/ready

setup-dev: .venv/ready-dev

# The stamps are remade when the dependencies may have changed. A .venv without pip is what a failed first try leaves.
.venv/bin/pip:
	$(PYTHON) -m venv --clear .venv

.venv/ready: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -e .
	touch $@

.venv/ready-dev: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -e '.[dev]'
	touch .venv/ready $@

clean:
	rm -rf .venv build demo dist
