# make study [STUDY=quick]   set up, run a study, write reports/<study>/
# make test                  set up, run the tests
# make torture               set up, kill a study at 50 random moments; goes on where it was stopped
# make bench                 set up, time this package next to the plain loop
STUDY ?= quick
KILLS ?= 50
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: study test test-slow torture bench lint clean

study: $(READY)
	@$(BIN)/depthprune run $(STUDY)

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

torture: $(READY)
	@$(BIN)/python tests/faults/killing.py --kills $(KILLS) --seed $(SEED)

bench: $(READY)
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.readme

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): pyproject.toml constraints.txt
	@python=$$(sh tools/find-python.sh) && { test -x $(BIN)/python || $$python -m venv $(VENV); }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) runs
