# Every target starts from nothing: it makes .venv, installs what it needs once, then does its job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SECONDS := 600
WORKERS := 2
TASK := cbed_tiny
STAMP := $(VENV)/.installed

.PHONY: help install demo test soak lint format bench clean
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[zoo,lmdb,slurm,climate,dev]'
	touch $@

install: $(STAMP)  ## create .venv with the pinned versions

demo: $(STAMP)  ## crystals from their diffraction, two ranks, gradsched; TASK=super_resolution
	$(BIN)/python -m zoo.train experiment=$(TASK)

test: $(STAMP)  ## run all tests, a file on one of two workers; WORKERS=0: one after the other
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

soak: $(STAMP)  ## random graphs and faults on four ranks for ten minutes; SECONDS= for another time
	$(BIN)/python -m tests.soak --seconds $(SECONDS)

lint: $(STAMP)  ## ruff, format check, mypy --strict on the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## step time against DDP and others on shaped links; FULL=1: every net and ratio
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.step_time $(if $(FULL),--full --resume --output outputs/step_time.json)

clean:  ## remove .venv and all outputs
	rm -rf $(VENV) outputs
