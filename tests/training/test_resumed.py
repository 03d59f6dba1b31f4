"""A long training that is killed goes on from its last checkpoint (pytest tests/training/test_resumed.py)."""

import os
import signal

import pytest
import torch
from transformers import TrainerCallback

from common.methods import TrainSettings
from common.training import train as trainings
from common.training.kept import trained_once

FAST = TrainSettings(batch_size=4, learning_rate=3e-3, sft_learning_rate=3e-3, max_length=256, epochs=2, lora_rank=4)
FLOAT32 = {"compute_dtype": torch.float32}
AT = 5
"""The step at which a training is killed; checkpoints are written every two."""


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A checkpoint every two steps, and reference log-probabilities of their own."""
    monkeypatch.setattr(trainings, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(trainings, "resolve", lambda path: tmp_path / "cache")


def adapter_of(student):
    return {name: parameter for name, parameter in student.model.named_parameters() if "lora" in name}


def killed(method, micro, pairs, folder, settings=FAST):
    """Signal that a process ended with, which killed itself in its training; a fork, so that libraries are loaded once."""
    if not (child := os.fork()):
        try:
            torch.set_num_threads(1)  # the others are not in a fork
            report = trainings._report_progress

            class Kill(TrainerCallback):
                def on_step_begin(self, args, state, control, **kwargs):
                    if state.global_step == AT:
                        os.kill(os.getpid(), signal.SIGKILL)

            trainings._report_progress = lambda trainer, label: [report(trainer, label), trainer.add_callback(Kill())]
            trained_once(method, micro, pairs, settings, folder, **FLOAT32)
        finally:
            os._exit(1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "filter_nll", "ca", "figa"])
def test_a_killed_training_goes_on_and_ends_with_the_adapter_of_one_that_was_not(method, micro, pairs, tmp_path, capsys):
    pairs = [pair for pair in pairs if pair.is_scored][:16]
    whole = trained_once(method, micro, pairs, FAST, tmp_path / "whole", **FLOAT32)
    assert "goes on from" not in capsys.readouterr().out and not list((tmp_path / "whole/trainer").glob("checkpoint-*"))
    assert killed(method, micro, pairs, tmp_path / "cut") == signal.SIGKILL
    assert [path.name for path in (tmp_path / "cut/trainer").glob("checkpoint-*")] == ["checkpoint-4"]
    again = trained_once(method, micro, pairs, FAST, tmp_path / "cut", **FLOAT32)
    assert "goes on from checkpoint-4" in capsys.readouterr().out and not list((tmp_path / "cut/trainer").glob("checkpoint-*"))
    assert all(torch.equal(parameter, adapter_of(again)[name]) for name, parameter in adapter_of(whole).items())
    losses = [[step["loss"] for step in student.history if "loss" in step] for student in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) > AT


@pytest.mark.slow
def test_checkpoints_of_another_training_are_not_gone_on_from(micro, pairs, tmp_path, capsys):
    pairs, other = [pair for pair in pairs if pair.is_scored][:16], FAST.changed(beta=0.5)
    assert killed("dpo", micro, pairs, tmp_path / "cut") == signal.SIGKILL
    (tmp_path / "cut/trainer/logs").write_text("of a tracker")
    again = trained_once("dpo", micro, pairs, other, tmp_path / "cut", **FLOAT32)
    assert "goes on from" not in capsys.readouterr().out and (tmp_path / "cut/trainer/logs").exists()
    alone = trained_once("dpo", micro, pairs, other, tmp_path / "alone", **FLOAT32)
    assert all(torch.equal(parameter, adapter_of(again)[name]) for name, parameter in adapter_of(alone).items())
