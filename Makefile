PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

VARIANTS := encourage discourage contrastive negation

.PHONY: help reproduce counterfactual test reliability bench lab small results

help:
	@echo "make reproduce  all notebooks on the miniature profile, then tables and figures (CPU, offline, minutes)"
	@echo "make counterfactual  adds the rows of Counterfactual DPO to the tables of make reproduce"
	@echo "make test       the test suite"
	@echo "make reliability  kills, faults, throughput, size and kernel starts at length (20 minutes), into results/reliability.json"
	@echo "make bench [ROWS=file.jsonl]  training against TRL's and batched evaluation, speed and memory, into results/benchmarks.json (CPU, an hour; ROWS as for small)"
	@echo "make lab        Jupyter on the notebooks"
	@echo "make small ROWS=file.jsonl  a real 135M chat model on real role-play pairs (CPU, an hour and a half)"
	@echo "make results    copies the tables and figures that the README shows into results/"

$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed; set PYTHON=')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

reproduce: $(INSTALLED)
	$(BIN)/python -m common.batch miniature -p evaluate_on test --jobs 3

counterfactual: $(INSTALLED)
	$(BIN)/python -m common.batch miniature $(VARIANTS:%=--pairs counterfactual_%) --method base --method dpo -p evaluate_on test --jobs 3

test: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q tests

reliability: $(INSTALLED)
	$(BIN)/python tests/reliability.py

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/train_step.py $(if $(ROWS),--rows $(ROWS))
	$(if $(ROWS),$(BIN)/python tests/benchmarks/generation.py --rows $(ROWS))

lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir=.

small: $(INSTALLED)
	$(BIN)/python -m common.small $(ROWS)

results:
	mkdir -p results/miniature
	cp -r runs/miniature/tables/*/ results/miniature/
