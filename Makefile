# PYTHON makes the environment, VENV is where it lies: make venv PYTHON=python3.12 VENV=../venv
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := outputs/demo
RUN = $(BIN)/pnapo-bench run --model tiny --out $(DEMO)

.DEFAULT_GOAL := help
.PHONY: help venv check test wheel demo clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '%-12s %s\n' "$$name" "$$text"; done

venv: $(INSTALLED) ## create .venv with the tested versions (again when they change)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"Python 3.11 or newer is needed, $(PYTHON) is %s; try: make venv PYTHON=python3.12" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

check: venv ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pnapo_bench methods evals tests benchmarks

test: venv ## all tests
	$(BIN)/pytest

# setuptools copies into build/ without emptying it, so a file that was deleted would still reach the wheel.
wheel: venv ## build dist/*.whl
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation

demo: venv ## train three methods on the embedded model and compare them
	@echo "demo: base, then sft, diffusion-dpo and pnapo with seeds 0 and 1, into $(DEMO); stopped, it continues"
	$(RUN) --method base --seed 0
	@for method in sft diffusion-dpo pnapo; do for seed in 0 1; do \
		echo "demo: $$method, seed $$seed"; $(RUN) --method $$method --seed $$seed || exit; done; done
	$(BIN)/pnapo-bench report $(DEMO) --save $(DEMO)/report

clean: ## remove what was built (not .venv, not outputs)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
