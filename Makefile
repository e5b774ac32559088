# make demo    a virtual environment, hasten, and the shipped demo model at work
# make test    all tests; suites that repeat by the hundred run a fixed part
# make exhaustive  the whole of those suites, after saying what they cover
# make fuzz    malformed input by the thousand, from a new seed; FUZZ="--kind checkpoints --seed 7" names kind and seed
# make native  the tests of the C++ kernels, with AddressSanitizer and UBSan; HASTEN_EXHAUSTIVE=1 tries every head size
# make check   exactly what CI runs
# make clients LangChain, LiteLLM and lm-eval against a server; installs them beside hasten (4 minutes and 1.1 GB)
# make peers   hasten beside other engines on this CPU; installs them all (20 minutes and 15 GB), measures for 30 minutes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 LITELLM_LOCAL_MODEL_COST_MAP=True
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
CPP := $(shell find src tests benchmarks -name '*.cpp' -o -name '*.h')
NEEDS := pyproject.toml constraints.txt CMakeLists.txt $(shell find src/hasten/ops/cpu/native -name '*.cpp' -o -name '*.h')
# One thread per test process: two processes of one thread beat one process of two on small models.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: demo test exhaustive fuzz check native format lint types docs clients peers clean

demo: $(VENV)/installed
	@echo '$$ hasten generate demo "def binary_search("'
	@$(BIN)/hasten generate demo "def binary_search(" --max-tokens 90 --repetition-penalty 1.1 --seed 1
	@echo
	@echo '$$ hasten bench throughput demo --num-prompts 8 --input-len 64 --output-len 32'
	@$(BIN)/hasten bench throughput demo --num-prompts 8 --input-len 64 --output-len 32

test: $(VENV)/installed-dev
	@$(PYTEST)

exhaustive: $(VENV)/installed-dev
	@$(BIN)/python -m tests.exhaustive
	@HASTEN_EXHAUSTIVE=1 $(PYTEST) $$($(BIN)/python -m tests.exhaustive --files)

check: $(VENV)/installed-dev lint types native
	@$(PYTEST)

fuzz: $(VENV)/installed-dev
	@HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz $(FUZZ)

native: $(VENV)/installed-dev
	@echo "native kernels, with sanitizers"
	@PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/native -G Ninja -DHASTEN_TESTS=ON -DHASTEN_SANITIZE=ON > build-native.log 2>&1 \
	  && PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/native --target native_tests >> build-native.log 2>&1 || { cat build-native.log; exit 1; }
	@rm -f build-native.log
	@build/native/native_tests

lint: $(VENV)/installed-dev
	@echo "format, lint, import layers"
	@$(BIN)/ruff format --check --quiet . || { echo "Run 'make format' to format these files."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/clang-format --dry-run --Werror $(CPP) || { echo "Run 'make format' to format these files."; exit 1; }
	@$(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

types: $(VENV)/installed-dev
	@echo "types (mypy --strict)"
	@$(BIN)/mypy

format: $(VENV)/installed-dev
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)
	@$(BIN)/ruff check --fix .

docs: $(VENV)/installed-dev
	@$(BIN)/python docs/generate.py

clients: $(VENV)/installed-dev $(CLIENTS)/installed
	@HASTEN_PYTHON=$(CURDIR)/$(BIN)/python $(OFFLINE) $(CLIENTS)/bin/python -m pytest -q -c tests/clients/other/pytest.ini \
	  --rootdir tests/clients/other tests/clients/other

# make peers PEERS="--model demo --quick"   another model, a quick look; --help names all options
peers: $(VENV)/installed
	@$(BIN)/python benchmarks/peers.py $(PEERS)

clean:
	rm -rf $(VENV) $(CLIENTS) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "hasten needs Python 3.11 or newer, and '$(PYTHON)' was not found." \
	  "Install it, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hasten needs Python 3.11 or newer;" \
	  "'$(PYTHON)' is $$($(PYTHON) --version). Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python could not create a virtual environment." \
	  "On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

# The build's own tools come first and pinned, so that it needs no second, unpinned download.
$(VENV)/installed: $(NEEDS) | $(BIN)/python
	@echo "installing hasten and what it needs into $(VENV) (the first time this downloads PyTorch; a few minutes)"
	@$(PIP) install -c constraints.txt scikit-build-core cmake ninja
	@$(PIP) install -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing the development tools into $(VENV)"
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

$(CLIENTS)/installed: tests/clients/requirements.txt | $(BIN)/python
	@echo "installing clients of other projects into $(CLIENTS) (a few minutes)"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@
