# make demo: environment + a video dense and sparse.  make test: environment + tests.  make lint: ruff and mypy.
# make docs: the documentation site, in site/.  make dist: sdist and wheel, checked, in dist/.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROMPT ?= a red circle moving left on a dark background

export OMP_WAIT_POLICY ?= passive
export HF_HUB_OFFLINE ?= 1
export TRANSFORMERS_OFFLINE ?= 1

.PHONY: demo test lint docs dist clean

# torch first and alone, so that its pin decides which build is taken. Builds for GPUs bring the Triton they need; others get
# the one that is tested.
TRITON := triton==3.9.0; platform_system == 'Linux'
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip show --quiet triton 2>/dev/null || $(BIN)/pip install --quiet "$(TRITON)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/fastdit generate --model tiny --prompt "$(PROMPT)" --height 144 --width 144 \
		--plan tiny_speedup_6_144 --compare --repeats 3 --output demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The notice of the theme about another project's plans is no warning about these pages.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) demo site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
