# make demo   set up, then train the embedded demo and export it
# make test   set up, then every check and test
# make setup  the shared first half: a ready .venv from the lock of the newest Python that runs

VENV := .venv
STAMP := $(VENV)/.ready
# The newest Python that has a lock and really runs (a shim on the path that only prints an error does not count).
PYTHON ?= $(shell for v in 12 11; do if python3.$$v -c "import venv, ensurepip" >/dev/null 2>&1; then echo python3.$$v; exit; fi; done; echo python3)
PYTAG = $(shell $(PYTHON) -c "import sys; print('py3%d' % sys.version_info.minor)")
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: setup demo test clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(wildcard locks/*.txt)
	@test -f locks/$(PYTAG).txt || { echo "no lock for $(PYTHON) ($(PYTAG)): flanjax runs on Python 3.11 and 3.12; set PYTHON=python3.11"; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -qq -r locks/$(PYTAG).txt
	$(PIP) install -qq --no-deps --no-build-isolation -e .
	cp flanjax/flanjax_lm_eval.pth $(VENV)/lib/python3.*/site-packages/
	@touch $@

$(VENV)/.test-ready: $(STAMP)
	$(PIP) install -qq -r locks/$(PYTAG).txt -r locks/$(PYTAG)-test.txt
	@touch $@

demo: setup
	$(VENV)/bin/python -m flanjax.train --gin_file=demo.gin

test: $(VENV)/.test-ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m pytest -n 2 --dist=worksteal

clean:
	rm -rf $(VENV) build *.egg-info
