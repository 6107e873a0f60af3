# The two commands of the README: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: setup demo test lint integrations clean

setup: $(VENV)/.ready

# torch is named by the constraints, which gives its CPU build at once
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/selfcal run recipes/miniworld-src.yaml --out $(RUN)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

# the tools next door, each tried with its own loader: lmms-eval in a folder beside selfcal's packages,
# LLaMA-Factory and ms-swift in an environment of their own, since they insist on other versions
integrations: setup
	$(BIN)/python -m pip install --quiet --no-deps --target .integrations -r tests/integrations/requirements.txt
	$(PYTHON) -m venv --without-pip build/trainers
	echo "import site; site.addsitedir('$(abspath $(VENV))/lib/python3.11/site-packages')" > build/trainers/lib/python3.11/site-packages/selfcal.pth
	$(BIN)/python -m pip --python build/trainers/bin/python install --quiet --no-deps -r tests/integrations/requirements-trainers.txt
	$(BIN)/python -m pytest tests/integrations
	build/trainers/bin/python -m pytest tests/integrations/test_export_llamafactory.py tests/integrations/test_export_swift.py

clean:
	rm -rf $(VENV) runs build dist .integrations
