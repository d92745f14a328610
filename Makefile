# make study [STUDY=quick]   set up, run a study, write reports/<study>/
# make test                  set up, run the tests
# make torture               set up, kill a study at 50 random moments, damage its files; goes on where it was stopped
# make audit                 look the pinned packages up among known vulnerabilities; fails for none of them
# make lowest                the fast tests and the imitation of Colab, with the oldest versions allowed (on Linux: several GB for that torch)
# make test-gguf             set up, compile llama.cpp (some minutes), load in it what was written for it
# make bench                 set up, time this package next to the plain loop
STUDY ?= quick
KILLS ?= 50
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ONE_THREAD := OMP_NUM_THREADS=1
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder  # each takes a file of tests at a time

.PHONY: study test test-slow test-gguf torture audit lowest bench lint clean

study: $(READY)
	@$(BIN)/depthprune run $(STUDY)

test: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -q -m "not slow" $(TWO_PROCESSES)

test-slow: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -q -m slow $(TWO_PROCESSES)

torture: $(READY)
	@PYTHONPATH=. $(BIN)/python tests/faults/torture.py --kills $(KILLS) --seed $(SEED)

audit: $(READY)
	@test -x .audit/bin/pip-audit || { $(BIN)/python -m venv .audit && .audit/bin/pip install -qq pip-audit; }
	@.audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off > .audit/found 2>&1 || true
	@if grep -q 'known vulnerabilit' .audit/found; then \
	  echo "$$(grep -c 'could not be audited' .audit/found) of $$(grep -c == constraints.txt) packages could not be looked up; of the others:"; \
	  grep -v 'could not be audited' .audit/found || true; \
	else echo "nothing could be looked up: $$(tail -1 .audit/found)"; fi

lowest:
	@python=$$(sh tools/find-python.sh) && rm -rf .lowest && $$python -m venv .lowest/env && $$python -m venv .lowest/uv && .lowest/uv/bin/pip install -qq uv
	@.lowest/uv/bin/uv pip install -q --system-certs --python .lowest/env/bin/python --resolution lowest-direct -e '.[dev]'
	$(ONE_THREAD) .lowest/env/bin/python -m pytest -q -m "not slow" $(TWO_PROCESSES)
	.lowest/env/bin/python -m pytest -q tests/test_colab.py

test-gguf: $(READY)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[gguf]'
	$(BIN)/python -m pytest -q tests/test_llama_cpp.py

bench: $(READY)
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.readme

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): pyproject.toml constraints.txt
	@python=$$(sh tools/find-python.sh) && { test -x $(BIN)/pip || $$python -m venv $(VENV); }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) .audit .lowest runs
