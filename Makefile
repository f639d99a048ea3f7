# SPDX-License-Identifier: 0BSD
# Two commands: `make demo` and `make test`. Both set themselves up in .venv/; they need Python 3.11 or newer and a C compiler.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3 python,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(name))))
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEMO_OUT ?= demo_out
DIGITS := examples/digits
# Test files side by side, one process per core, which BLAS may not multiply; the tests of a file share what they build.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-full lint venv clean

help:
	@echo 'make demo       compile, verify and run the digits network of examples/'
	@echo 'make test       ruff, mypy and every test but the slow ones'
	@echo 'make test-full  the slow tests too'
	@echo 'make lint       ruff and mypy alone'
	@echo 'make venv       the virtual environment $(VENV)/ that all of these use'
	@echo 'make clean      remove what was made, the environment included'

demo: $(STAMP)
	@$(BIN)/bdcc compile $(DIGITS).onnx --data $(DIGITS)_search.npz --calib $(DIGITS)_calib.npz \
		--holdout $(DIGITS)_holdout.npz --preset unit --D 1 -o $(DEMO_OUT) --force
	@found=$$($(BIN)/bdcc verify $(DEMO_OUT) --data $(DIGITS)_holdout.npz) && echo "$$found" | tail -n 1
	@$(BIN)/bdcc eval $(DEMO_OUT) --data $(DIGITS)_holdout.npz
	@$(BIN)/bdcc run $(DEMO_OUT) examples/digit.png

test: lint
	$(PYTEST) -m 'not slow'

test-full: lint
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

venv: $(STAMP)

# The stamp is written last, so an installation that broke off starts again.
$(STAMP): pyproject.toml
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed; make PYTHON=/path/to/python' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_OUT) build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
