# Two commands do everything on a fresh machine with Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint gpu clean

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/hybridserve demo --output out/demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

# For anyone with an NVIDIA card. PYTHON may be an interpreter that already has torch with CUDA:
# `make gpu BIN=/usr/bin` style overrides are honoured, nothing is installed over it.
gpu: $(if $(filter .venv/bin,$(BIN)),$(STAMP))
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf $(VENV) out build *.egg-info
