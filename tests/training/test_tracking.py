"""Trackers: one run a row, with the settings of the row (pytest tests/training/test_tracking.py)."""

import json
import sqlite3

import pytest
import torch
from tiny_models import tiny_causal_model

from common import own_data
from common.methods import METHODS, TrainSettings, is_trained
from common.schema import ScoredPair
from common.training.kept import training_of
from common.training.train import train

PAIRS = [
    ScoredPair(id=f"{i}", experiment="safety", split="train", prompt=f"Is answer {i} harmless?", response=f"No, I cannot do it {i}.", response_revised=f"Yes, I can help {i}.",
               score_response=0.0, score_revised=1.0)
    for i in range(8)
]  # fmt: skip
SETTINGS = TrainSettings(batch_size=4, epochs=1, max_length=128, knobs={"alpha": 2.0})


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny_causal_model(tmp_path_factory.mktemp("student"))


def test_tensorboard_has_one_run_a_row_with_its_settings(student, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: .venv/bin/pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    hparams = {}
    for method in ("rdpo", "sft"):
        folder = tmp_path / "run" / "seed-0" / method
        trained = train(method, student, PAIRS, SETTINGS.changed(report_to="tensorboard"), folder / "trainer", compute_dtype=torch.float32)
        [run] = {path.parent for path in folder.rglob("events.out.tfevents.*")}
        events = EventAccumulator(str(run)).Reload()
        assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([step["loss"] for step in trained.history if "loss" in step])
        [start] = [plugin for tag, plugin in events.summary_metadata.items() if tag == "_hparams_/session_start_info"]
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        told = HParamsPluginData.FromString(start.plugin_data.content).session_start_info.hparams
        hparams[method] = {name: value.number_value or value.string_value for name, value in told.items()}
    assert hparams["rdpo"]["row"] == "rdpo" and hparams["rdpo"]["alpha"] == 2.0 and hparams["rdpo"]["beta"] == SETTINGS.beta and hparams["rdpo"]["epochs"] == 1
    assert hparams["sft"]["row"] == "sft" and hparams["sft"]["sft_learning_rate"] == SETTINGS.sft_learning_rate and "alpha" not in hparams["sft"]


def test_wandb_offline_has_one_run_a_row(student, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: .venv/bin/pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for method in ("rdpo", "sft"):
        train(method, student, PAIRS, SETTINGS.changed(report_to="wandb"), tmp_path / method / "trainer", compute_dtype=torch.float32)
    written = [path.read_bytes() for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    assert [b"sft_learning_rate" in run for run in written].count(True) == 1 and len(written) == 2


def test_trackio_has_one_run_a_row(student, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed: .venv/bin/pip install trackio")
    for method in ("rdpo", "sft"):
        train(method, student, PAIRS, SETTINGS.changed(report_to="trackio"), tmp_path / method / "trainer", compute_dtype=torch.float32)
    [store] = (tmp_path / "trackio").rglob("*.db")
    configs = {name.rpartition("/")[2]: json.loads(config) for name, config in sqlite3.connect(store).execute("select run_name, config from configs")}
    assert configs["rdpo"]["row"] == "rdpo" and configs["rdpo"]["alpha"] == 2.0 and configs["sft"]["row"] == "sft"


def test_a_tracker_is_no_part_of_a_mark(student, monkeypatch):
    monkeypatch.setattr("common.methods.settings.find_spec", lambda name: True)
    for method in filter(is_trained, METHODS):
        if METHODS[method].references == "own":
            assert training_of(method, student, PAIRS, SETTINGS) == training_of(method, student, PAIRS, SETTINGS.changed(report_to="wandb"))


def test_a_tracker_that_is_unknown_or_not_installed_is_said_before_any_training(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="report_to = 'tensorbord': input should be 'none', 'tensorboard', 'trackio' or 'wandb'"):
        TrainSettings(report_to="tensorbord")
    monkeypatch.setattr("common.methods.settings.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="report_to = 'wandb', which is not installed: .venv/bin/pip install wandb"):
        TrainSettings(report_to="wandb")
    rows = [{"prompt": f"Is answer {n} harmless?", "chosen": f"Yes {n}.", "rejected": f"No {n}.", "score_chosen": 0.9, "score_rejected": 0.1} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit, match="own_data: report_to = 'wandb', which is not installed"):
        own_data.main([str(tmp_path / "rows.jsonl"), "--student", "nobody", "--output", str(tmp_path / "out"), "--report-to", "wandb"])
    assert not (tmp_path / "out").exists()
