# make study [STUDY=quick]   set up, run a study, write reports/<study>/
# make test                  set up, run the tests
# make bench                 set up, time this package next to the plain loop
STUDY ?= quick
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: study test test-slow bench lint clean

study: $(READY)
	@$(BIN)/depthprune run $(STUDY)

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

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
