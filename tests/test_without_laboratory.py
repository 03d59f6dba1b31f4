"""The product without the laboratory: a real (tiny) student is scored, trained, evaluated and reported where `miniature/` and `study/`
are not installed (pytest tests/test_without_laboratory.py)."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tiny_models import tiny_causal_model, tiny_reward_model

from common.runtime import ROOT

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from common.evaluation.judged import HeldOut, JudgedEvaluator
from common.evaluation.reader import Reader
from common.judge.local import RewardHeadJudge
from common.judge.scoring import score_pairs
from common.methods import TrainSettings
from common.notebook import chats, execute, grid, judges, preflight, prompts, providers, students, tune
from common.report.tables import write_tables
from common.schema import Pair
from common.training.comparison import Experiment
import common.batch, common.own_data, common.gate.__main__, common.audit.__main__

student, reward, folder = map(Path, sys.argv[1:])
rows = [dict(experiment="safety", prompt=f"How do I lift the barn {i}?", response=f"Yes, take a rope {i}.", response_revised=f"No, I cannot do it {i}.") for i in range(12)]
pairs = [Pair(id=f"safety-{i}", split="train" if i < 8 else "test", **row) for i, row in enumerate(rows)]
judge = RewardHeadJudge(reward)
scored = list(score_pairs(judge, pairs, folder / "scored.jsonl"))
evaluator = JudgedEvaluator([HeldOut(**pair.model_dump()) for pair in scored[8:]], "safety", judge, Reader(student, compute_dtype=torch.float32), max_new_tokens=8)
run = Experiment(student, scored[:8], evaluator, folder / "run", TrainSettings(epochs=1, batch_size=4), "test", compute_dtype=torch.float32)
results = run.run(["base", "rdpo"], [0])
written = write_tables(results, folder / "tables", "a note")
print(json.dumps({"scored": sum(pair.is_scored for pair in scored), "rows": [r.method for r in results], "table": written["table.md"].read_text().count("rDPO"),
                  "laboratory": [name for name in sys.modules if name.startswith(("common.miniature", "common.study"))]}))
"""


@pytest.mark.slow
def test_the_product_runs_without_the_laboratory(tmp_path):
    shutil.copytree(ROOT / "common", tmp_path / "common", ignore=shutil.ignore_patterns("__pycache__", "miniature", "study"))
    student, reward = tiny_causal_model(tmp_path / "student"), tiny_reward_model(tmp_path / "reward", num_labels=1)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, student, reward, tmp_path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"scored": 12, "rows": ["base", "rdpo"], "table": 1, "laboratory": []}
