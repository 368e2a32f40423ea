# Two commands do all the set-up: `make demo` and `make test`. They need Python >= 3.11, make and a C library.

PYTHON ?= python3
BIN := .venv/bin
TEST_PROCESSES ?= 2
# A file stays in one process; tests/conftest.py puts long files first.
SPREAD := --dist loadfile --no-loadscope-reorder
DEMO := .venv/.demo
INSTALLED := .venv/.installed

.PHONY: demo test test-all quick check docs dist bench gpu format clean

demo: $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(DEMO))  ## ten clients on two MPI ranks adapt a CLIP to handwritten digits
	@view=plain; if [ -t 1 ]; then view=live; COLUMNS=$$(tput cols 2>/dev/null || echo 80); \
	LINES=$$(tput lines 2>/dev/null || echo 24); export COLUMNS LINES; fi; \
	$(BIN)/mpiexec -n 2 $(BIN)/flora-hpc run configs/quickstart.yaml --view $$view

test: $(INSTALLED)  ## the tests, real mpiexec and gloo runs included, in two processes; without those marked long
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) $(SPREAD) -m "not long"

quick: $(INSTALLED)  ## the tests that start no process and take little: some seconds to a minute
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) $(SPREAD) -m quick

test-all: $(INSTALLED)  ## every test, with all tutorials, 16 ranks, 100 kills of a run and 20 pairs of jobs in one directory; Slurm where there is one
	FLORA_HPC_KILLS=100 FLORA_HPC_STARTS=20 FLORA_HPC_RANKS=16 FLORA_HPC_TUTORIALS=all FLORA_HPC_RECIPES=all $(BIN)/python -m pytest -n $(TEST_PROCESSES) $(SPREAD) --timeout 3600

check: $(INSTALLED)  ## formatting, lint, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED)  ## the site, in site/; needs no network, and a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html is written"

dist: $(INSTALLED)  ## a wheel and a source archive in dist/, checked, installed into a new environment, and played there
	$(BIN)/python tools/dist.py

bench: $(INSTALLED)  ## parts of the program, measured on this machine in some two minutes; docs/performance.md says what they mean
	$(BIN)/flora-hpc bench step --model flora-tiny
	$(BIN)/flora-hpc bench methods --model flora-tiny --methods flora,fedlc
	$(BIN)/mpiexec -n 2 $(BIN)/flora-hpc bench comm
	$(BIN)/flora-hpc bench round --repeats 1
	$(BIN)/flora-hpc bench features --model flora-tiny

gpu: $(INSTALLED)  ## on a machine with a GPU: the tests that need one, and what it can do, as JSON files and a page in runs/gpu
	$(BIN)/flora-hpc doctor
	$(BIN)/python -m pytest -m gpu
	$(BIN)/flora-hpc bench all --full --only step,methods,round,features,comm,scale --out runs/gpu
	$(BIN)/mpiexec -n 2 $(BIN)/flora-hpc bench comm
	$(BIN)/flora-hpc bench cluster --class S --out runs/gpu/cluster-S

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(DEMO): EXTRAS := mpich
$(INSTALLED): EXTRAS := dev,mpich
$(DEMO) $(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "flora-hpc needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --no-compile --disable-pip-version-check --editable '.[$(EXTRAS)]'  # Python compiles what is imported
	@touch $@

clean:
	rm -rf .venv build dist site *.egg-info runs .pytest_cache .mypy_cache .ruff_cache
