# Two commands, nothing else: `make demo` and `make test`. Each makes what it needs.

VENV    := .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
VIDEO   ?=
SET     ?=

.PHONY: demo test test-slow bench clean

# The agent on a real source (make demo VIDEO=file|rtsp://…|/dev/video0) or on the drawn one. SET passes section.key=value.
demo: $(VENV)/core
	@$(BIN)/python run_agent.py run --config configs/demo.yaml $(if $(VIDEO),source.uri="$(VIDEO)") $(SET)

# Every check, the same locally and in CI.
test: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not gpu"

# What takes minutes: the agent and its children killed fifty times, ten hours of stream time.
test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/bench
	@missed=0; for question in transport staleness decode end_to_end memory statistical; do \
		$(BIN)/python -m benchmarks.$$question --quick || missed=1; done; exit $$missed

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# An environment is made once, and again when its pins change.
$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/dev: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ $(VENV)/core

$(VENV)/bench: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,bench]"
	@touch $@ $(VENV)/core $(VENV)/dev
