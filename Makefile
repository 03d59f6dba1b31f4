PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
WORKERS := -n auto --maxprocesses 4 --dist loadfile --ignore tests/scale

VARIANTS := encourage discourage contrastive negation

.PHONY: help reproduce counterfactual evidence evidence-full related test test-slow test-scale reliability bench gpu lab small small-full small-chain local results

help:
	@echo "make reproduce  all notebooks on the miniature profile, then tables and figures (CPU, offline, minutes)"
	@echo "make counterfactual  adds the rows of Counterfactual DPO to the tables of make reproduce"
	@echo "make evidence   the core of the study: when scores inside the loss pay, many seeds, noise dialled (CPU, about 3 hours on 2 cores, resumable), into results/evidence"
	@echo "make evidence-full  all its parts"
	@echo "make related    the related systems, each beside its control, and three by measures of their own (CPU, about 5 hours on 2 cores, resumable), into results/related"
	@echo "make test       the test suite, five minutes"
	@echo "make test-slow  the tests of two seconds and more: trainings, notebooks, kills, a real model where it is (CPU, seven minutes)"
	@echo "make test-scale  installs Ray and tests runs on a cluster of two nodes, both on this machine"
	@echo "make reliability  kills, faults, throughput, size, a million chains and kernel starts at length (40 minutes), into results/reliability.json"
	@echo "make bench [ROWS=file.jsonl]  training against TRL's and batched evaluation, speed and memory, into results/benchmarks.json (CPU, about four hours; ROWS: persona pairs, see the script)"
	@echo "make gpu [DRY=1]  equality, speed and memory on one GPU against TRL's, random weights of 1B and 7B, into runs/gpu (8 minutes; DRY: every part on a CPU with tiny students, a minute)"
	@echo "make lab        Jupyter on the notebooks"
	@echo "make small [DATA=folder]  a real 135M chat model on real pairs, all three experiments (CPU, an hour and a half; data and model are downloaded)"
	@echo "make small-full  thirteen methods, with and without swapped pairs, two seeds (CPU, many hours, resumable)"
	@echo "make small-chain  the whole chain without recorded data: that model as teacher, judge and student"
	@echo "make local TEACHER_URL=http://127.0.0.1:8080/v1 [STUDENT=folder] [SHORT=1]  the whole chain with a teacher behind any server (CPU, some evenings, resumable; SHORT: twelve prompts)"
	@echo "make results    copies the tables and figures of your runs into results/"

$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed; set PYTHON=')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

reproduce: $(INSTALLED)
	$(BIN)/python -m common.batch miniature -p evaluate_on test --jobs 3

counterfactual: $(INSTALLED)
	$(BIN)/python -m common.batch miniature $(VARIANTS:%=--pairs counterfactual_%) --method base --method prompted --method sft --method dpo -p evaluate_on test --jobs 3

evidence: $(INSTALLED)
	$(BIN)/python -m common.study

related: $(INSTALLED)
	$(BIN)/python -m common.study.related
	$(BIN)/python -m common.study.systems

evidence-full: $(INSTALLED)
	$(BIN)/python -m common.study --full

test: $(INSTALLED)
	$(PYTEST) $(WORKERS) -m "not slow" tests

test-slow: $(INSTALLED)
	$(PYTEST) $(WORKERS) -m slow tests

test-scale: $(INSTALLED)
	@$(BIN)/python -c "import ray" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check --retries 1 -e '.[scale]' || true
	@if $(BIN)/python -c "import ray" 2>/dev/null; then $(PYTEST) tests/scale; \
	else echo "Ray is not installed and cannot be installed here, so tests/scale is left out"; fi

reliability: $(INSTALLED)
	$(BIN)/python tests/reliability.py

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/train_step.py $(if $(ROWS),--rows $(ROWS))
	$(if $(ROWS),$(BIN)/python tests/benchmarks/generation.py --rows $(ROWS))

gpu: $(INSTALLED)
	$(BIN)/python tests/benchmarks/gpu.py $(if $(DRY),--dry)

lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir=.

small: $(INSTALLED)
	$(if $(DATA),$(BIN)/python -m common.profiles.small.prepare $(DATA))
	$(BIN)/python -m common.batch small

small-full: $(INSTALLED)
	$(BIN)/python -m common.batch small -f full

small-chain: $(INSTALLED)
	$(BIN)/python -m common.batch small -f chain --pairs self_critique --to small-chain --jobs 2

local: $(INSTALLED)
	$(BIN)/python -m common.local $(or $(TEACHER_URL),$(error name the server: make local TEACHER_URL=http://127.0.0.1:8080/v1)) $(if $(STUDENT),--student $(STUDENT)) $(if $(SHORT),--short)

results:
	[ ! -f runs/small/data/rows.json ] || (mkdir -p results/small && cp runs/small/data/rows.json results/small/)
	for profile in miniature small small-chain; do \
		for tables in runs/$$profile/tables/*/; do \
			[ -d $$tables ] && mkdir -p results/$$profile && cp -r $$tables results/$$profile/ || true; \
		done; \
		rm -f results/$$profile/*/table.tex results/$$profile/*/table.html; \
	done
	rm -f results/small-chain/*/*.png
	for examples in runs/small/*/examples.md runs/small/*/counterfactual_neutral/examples.md; do \
		[ -f $$examples ] && cp $$examples results/small/$$(echo $$examples | cut -d/ -f3)/ || true; \
	done
	[ ! -f runs/own_data/metrics.json ] || $(BIN)/python -c "from dataclasses import replace; from common.evaluation.result import Result; replace(Result.read('runs/own_data/metrics.json'), answers={}, history=[]).write('results/own_data.json')"
