# The commands of the README; each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-native lint bench clean

setup: $(READY)

$(READY): setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest

# The native library is built and tested by itself: the toolchain does not use it yet.
test-native: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest custom_ops/tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(READY)
	$(BIN)/python benchmarks/bench_cli.py
	$(BIN)/python benchmarks/bench_export.py
	$(BIN)/python benchmarks/bench_latency.py
	$(BIN)/python benchmarks/bench_examples.py

clean:
	rm -rf build dist *.egg-info
