STUDY ?= quick
KILLS ?= 50
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ONE_THREAD := OMP_NUM_THREADS=1
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder  # each takes a file of tests at a time

.PHONY: help study test test-slow torture bench audit lint clean

help:  ## what can be made (this list)
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 @/p' $(MAKEFILE_LIST) | awk -F@ '{printf "%-20s %s\n", $$1, $$2}'

study: $(READY)  ## run a study [STUDY=quick] and write reports/<study>/
	@$(BIN)/depthprune run $(STUDY)

test: $(READY)  ## the fast tests
	$(ONE_THREAD) $(BIN)/python -m pytest -q -m "not slow" $(TWO_PROCESSES)

test-slow: $(READY)  ## the slow tests: whole studies, kills, Colab's own versions
	$(ONE_THREAD) $(BIN)/python -m pytest -q -m slow $(TWO_PROCESSES)

torture: $(READY)  ## kill a study at random moments [KILLS=50 SEED=0], damage its files
	@PYTHONPATH=.:tests $(BIN)/python tests/faults/torture.py --kills $(KILLS) --seed $(SEED)

bench: $(READY)  ## speed and memory beside the plain loop
	@$(BIN)/python -m benchmarks

audit: $(READY)  ## look the pinned packages up among known vulnerabilities; fails for none
	@test -x .audit/bin/pip-audit || { $(BIN)/python -m venv .audit && .audit/bin/pip install -qq pip-audit; }
	@.audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off || true

lint: $(READY)  ## ruff, as the hooks run it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): pyproject.toml constraints.txt
	@python=$$(sh tools/find-python.sh) && { test -x $(BIN)/pip || $$python -m venv $(VENV); }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:  ## remove the environment and the runs; reports and cache stay
	rm -rf $(VENV) .audit runs
