# Needs Python 3.10 to 3.12; everything else is set up in .venv.
PYTHON ?= python3
VENV := .venv
PINS := requirements.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LEAN := .venv-lean
LATEST := .venv-latest
FOUNDRY := .venv-foundry
TESTS ?= -m "not long" # of test-latest
JOBS ?= 2
# A file's tests in one process, since they share what takes long to make.
IN_PARALLEL := -n $(JOBS) --dist loadfile
# All that --lean leaves, but what takes long and hangs on no version.
LEAN_TESTS ?= tests $(foreach name,fetching faults faulty_s3,--ignore=tests/reading/test_$(name).py)
SHOWN := boto3|botocore|filelock|moto|mosaicml|mosaicml-streaming|numpy|pyarrow|torch|torchvision|transformers|webdataset

# Where this is set, every process that the tests start compiles all of torch anew, which takes longer than its test.
unexport PYTHONDONTWRITEBYTECODE

COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.10 --no-annotate --no-header --quiet

.PHONY: quickstart test test-types test-long test-lean test-foundry test-latest setup clean-setup pins

quickstart: $(READY)
	$(BIN)/ted-stream prepare digits --out data/digits --overwrite
	$(BIN)/ted-stream compare configs/quickstart.yaml --methods none,shorter,random,importance_sampling,ted --seeds 3

# One thread, since the tests' tensors are small: on few cores torch's threads wait for each other.
test: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	OMP_NUM_THREADS=1 $(BIN)/pytest $(IN_PARALLEL) -m "not long"

test-types: $(READY)
	$(BIN)/pyright

# All of them take an hour on two cores: PART=2/8 runs the second of eight parts.
test-long: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest $(IN_PARALLEL) -m long $(if $(PART),--part $(PART))

# Without Composer, and so with a newer torch: the default install and [transformers].
test-lean:
	$(MAKE) setup VENV=$(LEAN) PINS=requirements-lean.txt
	OMP_NUM_THREADS=1 $(LEAN)/bin/pytest $(IN_PARALLEL) --lean -m "not long" $(LEAN_TESTS)

# With llm-foundry, which pins an older streaming, too; nothing is taken from a hub.
test-foundry:
	$(MAKE) setup VENV=$(FOUNDRY) PINS=requirements-foundry.txt
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(FOUNDRY)/bin/pytest tests/trainers/test_foundry.py
	OMP_NUM_THREADS=1 $(FOUNDRY)/bin/pytest -m "not long" tests/reading tests/test_sampler.py

# With the newest versions that pyproject.toml allows, instead of those of requirements.txt.
test-latest:
	$(MAKE) $(LATEST)/bin/python VENV=$(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --upgrade uv
	$(LATEST)/bin/python -m uv pip install --python $(LATEST)/bin/python --quiet --upgrade --group dev -e ".[all]"
	@$(LATEST)/bin/python -m uv pip freeze --python $(LATEST)/bin/python --quiet | grep -E "^($(SHOWN))=="
	$(LATEST)/bin/pytest $(TESTS)

setup: $(READY)

# After a change of dependencies; with COMPILE_FLAGS=--upgrade, to the newest versions.
pins: $(READY)
	$(COMPILE) $(COMPILE_FLAGS) --extra all --group dev --output-file requirements.txt
	$(COMPILE) $(COMPILE_FLAGS) --extra transformers --group test --output-file requirements-lean.txt
	$(COMPILE) $(COMPILE_FLAGS) --extra foundry --extra webdataset --group test-foundry --output-file requirements-foundry.txt

# Forces the next target to install again.
clean-setup:
	rm -f $(READY)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: $(PYTHON) is not Python 3.10 to 3.12; name one: make PYTHON=python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
	  { echo "error: $(PYTHON) has no ensurepip (on Debian: install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(READY): $(PINS) pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip install --python $(BIN)/python --quiet -r $(PINS)
	$(BIN)/python -m uv pip install --python $(BIN)/python --quiet --no-deps -e .
	touch $@
