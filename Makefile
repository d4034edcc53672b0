# make run     install what is missing and take calls (http://localhost:8080, sip:moshi@this-machine)
# make test    the whole suite: unit, then slow, then calls with real programs
# make unit    the quick part of it
# make check   ruff and mypy
# make fuzz    atheris on every parser and the user agent, FUZZ_SECONDS (20) each
# make bench   every bench, briefly; one of them: make bench BENCH=bench/NAME.py ARGS=
#
# PYTHON chooses the interpreter (3.11 to 3.13), VENV the folder, CONFIG the configuration of `run`.
# ARGS is passed on.

VENV ?= .venv
CONFIG ?= configs/default.toml
BENCH ?= $(shell grep -ls '__main__' bench/*.py)

BIN := $(VENV)/bin
# What pytest makes of the tests is kept for the next part, wherever Python is told to keep nothing.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
QUICK := not slow and not peer and not gpu
PIP := $(BIN)/python -m pip --disable-pip-version-check
ATHERIS := atheris>=3,<4
ORACLE := moshi==0.2.13 einops sphn

.PHONY: run test unit peers check fuzz bench clean help
.DELETE_ON_ERROR:

run: $(VENV)/.ready-to-run
	@exec $(BIN)/moshi-gateway serve --config $(CONFIG) $(ARGS)

# The quick part and what takes long on all cores; then, one after another, the calls with real programs, which are
# timed. pytest's 5: ARGS chose none.
test: $(VENV)/.ready-to-test peers
	$(PYTEST) -n auto -rs -m "$(QUICK)" $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -n auto -rsR -m "slow and not peer and not gpu" $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -rsR -m "peer or gpu" $(ARGS) || [ $$? -eq 5 ]

unit: $(VENV)/.ready-to-test
	$(PYTEST) -n auto -rs -m "$(QUICK)" $(ARGS)

peers:
	@scripts/peers.sh

check: $(VENV)/.ready-to-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

fuzz: $(VENV)/.ready-to-test
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) install --quiet '$(ATHERIS)'
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-20} $(BIN)/python -m fuzz $(ARGS)

bench: ARGS ?= --quick
bench: $(VENV)/.ready-to-test
	@for bench in $(BENCH); do echo "== $$bench $(ARGS)"; $(BIN)/python $$bench $(ARGS) || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .numba_cache .fuzz

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# The stamps lie inside the virtual environment, so that removing it removes them.
$(VENV)/.made:
	@python=$$(scripts/python.sh) && echo "$$python -m venv $(VENV)" && "$$python" -m venv $(VENV)
	@touch $@

$(VENV)/.ready-to-run: $(VENV)/.made pyproject.toml
	@echo "installing into $(VENV); the first time this takes a minute or two"
	@$(PIP) install --quiet --editable '.[engine]'
	@echo "compiling the audio path; half a minute, once"
	@$(BIN)/python -m gateway.warm
	@touch $@

# The oracle's own pins cannot be met beside ours (see tests), so it comes without its dependencies.
$(VENV)/.ready-to-test: $(VENV)/.made pyproject.toml
	@echo "installing into $(VENV) with what the tests need; the first time this takes a few minutes"
	@$(PIP) install --quiet --editable '.[engine,dev]'
	@$(PIP) install --quiet --no-deps $(ORACLE)
	@echo "compiling the audio path; half a minute, once"
	@$(BIN)/python -m gateway.warm
	@touch $@ $(VENV)/.ready-to-run
