# Five commands do all the set-up: `make demo`, `make test`, `make test-backends`, `make test-releases` and `make bench`.
PYTHON ?= python3
VENV ?= .venv
FAST := onnxruntime
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-backends test-releases fuzz bench lint clean

demo: $(VENV)/.demo
	$(BIN)/python models/demo.py build/demo

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "not slow" -n auto

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Mutants of any seed, for as long as one likes: `make fuzz SEED=7 COUNT=1000`
SEED ?= $(shell date +%s)
COUNT ?= 200
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --seed $(SEED) --count $(COUNT)

# The same bits everywhere: docs/backends.md
OLD := $(VENV)-onnxruntime-1.17
VERIFY = $(BIN)/wageubn-onnx verify build/backends
test-backends: $(VENV)/.dev $(VENV)/.c $(VENV)/.iree build/web/.tried $(OLD)/.tried
	$(BIN)/python tests/backends.py build/backends
	$(VERIFY)/tiny --steps 10 $$(cat $(OLD)/.tried)
	$(VERIFY)/tiny-fast --steps 5 $$(cat $(OLD)/.tried)
	$(VERIFY)/digits --steps 20 --targets $(FAST)$$(cat build/web/.tried $(VENV)/.c $(VENV)/.iree) $$(cat $(OLD)/.tried)
	$(VERIFY)/resnet20 --steps 2 --targets onnxruntime $$(cat $(OLD)/.tried)
	$(VERIFY)/resnet18 --steps 2 --targets onnxruntime

# The same bits in every release of onnxruntime, or a refusal: docs/runtimes.md. All of them, or RELEASES="1.20.1 1.24.4"
test-releases: $(VENV)/.dev
	$(BIN)/python tests/releases.py build/releases $(RELEASES)

# The table of docs/performance.md
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.steps build/bench

lint: $(VENV)/.dev
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p wageubn_onnx -p benchmarks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.demo

# Each says which target it adds, or is empty where that is not to be had
build/web/.tried:
	mkdir -p $(@D)
	if npm install --silent --fetch-retries 1 --fetch-timeout 60000 --prefix $(@D) onnxruntime-web@1.30.0 >&2; then printf ,web; fi > $@

$(VENV)/.c: $(VENV)/.dev
	if $(BIN)/python -m pip install --quiet -e ".[c]" >&2 && command -v gcc >&2; then printf ,c; fi > $@

$(VENV)/.iree: $(VENV)/.dev
	if $(BIN)/python -m pip install --quiet -e ".[iree]" >&2; then printf ,iree; fi > $@

# An onnxruntime of 2024, or an empty file where this Python is too new for it
$(OLD)/.tried:
	$(PYTHON) -m venv $(OLD)
	if $(OLD)/bin/python -m pip install --quiet "onnxruntime==1.17.3" "numpy<2"; \
		then echo "--python $(OLD)/bin/python"; else echo "no onnxruntime 1.17 for this Python" >&2; fi > $@

clean:
	rm -rf $(VENV) $(OLD) build
