# Two commands for newcomers: `make demo` and `make test`. Everything else is a part of these.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
SECONDS ?= 60
SEED ?= 1
# what judges supervisor and limits alone: some seconds, and every branch of both must be taken
SAFETY := $(foreach name,limits supervisor supervisor_edges arming button dose,tests/test_$(name).py)
# real processes in real time: one after the other, or they would be late for each other
LIVE := $(foreach name,bench_cost bench_faults bench_latency bench_load bench_loopback bench_mutants bench_page bench_recording bench_stops browser button_device \
	certificate closed_loop commands compiled_cache daemon devices golden guard keeping lsl many markers page_door peers_over_ptys play \
	realtime sciencemode2 sources stimulator_test streams watch web,$(wildcard tests/test_$(name).py))

.PHONY: demo test setup lint lock clean

demo: setup
	@$(BIN)/calmloop demo --seconds $(SECONDS) --seed $(SEED)

test: setup lint
	@echo "== supervisor and limits, every branch of them"
	@$(BIN)/coverage run -m pytest -q $(SAFETY)
	@$(BIN)/coverage report
	@echo "== what needs no time of its own, two at a time"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(SAFETY:%=--ignore=%) $(LIVE:%=--ignore=%)
	@echo "== the closed loop and all else that runs for real (this takes a quarter of an hour)"
	@$(BIN)/python -m pytest -q $(LIVE)

lint: setup
	@echo "== ruff, mypy, import contracts"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

setup: $(VENV)/.done

# the stamp is renewed when what is to be installed changes; a second run starts at once
$(VENV)/.done: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "calmloop needs Python 3.11 to 3.14 with the venv module (Debian: apt install python3-venv)"; exit 2; }
	@echo "== virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== installing (about 120 MB of wheels the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --only-binary :all: --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# hashes and no addresses; needs `pip install uv` somewhere
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --extra dev \
		pyproject.toml build-requirements.in -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
