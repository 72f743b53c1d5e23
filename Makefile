VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: setup run test flower notebooks check docs slow clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo 'installing into $(VENV); torch and its relatives take some minutes'
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[offline,hub,dev]'
	touch $(STAMP)

run: setup
	$(VENV)/bin/airllm sweep quick --out runs/quick

# Two processes of one thread each: more threads than cores would slow both down. The commands of a
# document go on from each other: in order, in one process.
DOCUMENTS := tests/test_docs.py tests/test_readme.py
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(addprefix --ignore=,$(DOCUMENTS))
	OMP_NUM_THREADS=1 $(PY) -m pytest $(DOCUMENTS)

# Tests that start Flower's servers or Ray, one after another: each needs the cores for itself.
flower: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "flower and not slow"

slow: setup
	$(PY) -m pytest -m slow

check: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PY) .ci/audit.py

notebooks: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m notebooks tests/test_notebooks.py

# The site, in site/; a warning is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean:
	rm -rf $(VENV) site
