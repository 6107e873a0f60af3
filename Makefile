# The two commands of the README: `make demo` and `make test`. Each sets up what it needs; of the system
# that is Chromium alone, for the tests in a browser, where Debian's packages can be installed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: setup demo test lint browser integrations crash lock audit-dependencies clean

setup: $(VENV)/.ready

# the constraints pin versions, torch's too; whether torch comes for CPU or GPU is up to the package index
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

test: lint browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rsfE --numprocesses 2 --no-loadscope-reorder

# never fails: without it these tests are skipped, and the summary says so
browser:
	@for name in chromium chromium-browser google-chrome; do \
		if command -v $$name >/dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium for the browser tests"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	fi; \
	command -v chromium >/dev/null || echo "The browser tests will be skipped: no Chromium" \
		"(as root: apt-get install chromium; or any chromium, chromium-browser, google-chrome on PATH)"

# the tools next door, each tried with its own loader: lmms-eval in a folder beside selfcal's packages,
# LLaMA-Factory and ms-swift in an environment of their own, since they insist on other versions
integrations: setup
	$(BIN)/python -m pip install --quiet --no-deps --target .integrations -r tests/integrations/requirements.txt
	$(PYTHON) -m venv --without-pip build/trainers
	echo "import site; site.addsitedir('$(abspath $(VENV))/lib/python3.11/site-packages')" > build/trainers/lib/python3.11/site-packages/selfcal.pth
	$(BIN)/python -m pip --python build/trainers/bin/python install --quiet --no-deps -r tests/integrations/requirements-trainers.txt
	$(BIN)/python -m pytest -rsfE tests/integrations
	PYTHONPATH=.integrations $(BIN)/python -m pytest tests/e2e/test_tracking.py -k trackio
	build/trainers/bin/python -m pytest tests/integrations/test_export_llamafactory.py tests/integrations/test_export_swift.py

# all of the crash harness, of which `make test` runs a sample; ended, it goes on where it was left
crash: setup
	$(BIN)/python -m tests.crash --points 200 --seed 0 --out build/crash

# the versions of constraints.txt and all that they need, with hashes, from PyPI alone
lock: setup
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --constraint constraints.txt \
		--extra audit --extra ray --extra s3 --extra gcs --generate-hashes --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --index-url https://pypi.org/simple --no-config \
		--no-header --no-annotate --quiet --output-file build/lock
	(sed -n '/^#/p' requirements.lock; cat build/lock) > build/lock.new
	mv build/lock.new requirements.lock

# known vulnerabilities of what is locked; where their index cannot be reached it says so and passes
audit-dependencies:
	@if $(PYTHON) -c "import urllib.request as u; u.urlopen('https://api.osv.dev/v1/vulns/OSV-2020-111', timeout=10)" 2>/dev/null; then \
		if $(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit; then \
		build/audit/bin/pip-audit --vulnerability-service osv --no-deps --disable-pip --requirement requirements.lock; \
		else echo "Dependencies were not looked up: pip-audit cannot be installed"; fi; \
	else \
		echo "Dependencies were not looked up: the index of vulnerabilities (api.osv.dev) cannot be reached"; \
	fi

clean:
	rm -rf $(VENV) runs build dist .integrations
