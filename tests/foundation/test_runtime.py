"""Strict parameters and paths (pytest tests/foundation/test_runtime.py)."""

import io
import math
import os

import pytest

from common.__main__ import MODULES
from common.methods import TrainSettings
from common.runtime import ROOT, escape_what_the_terminal_lacks, resolve


@pytest.mark.parametrize("name", ["learning_rate", "sft_learning_rate", "beta", "alpha", "eta", "label_smoothing", "nll_weight"])
def test_training_settings_are_finite_and_in_their_range(name):
    for value in (math.nan, math.inf, -math.inf, -1e-3):
        with pytest.raises(ValueError, match=f"{name} = {value}: input should be"):
            TrainSettings().changed(**{name: value})


@pytest.mark.parametrize("given", [{"epochs": 0}, {"batch_size": 0}, {"lora_rank": 0}, {"max_length": 0}, {"seed": -1}, {"beta": 0.0}, {"label_smoothing": 0.5}, {"micro_batch": -1}, {"reference": "none"}, {"epochs": 1.5}], ids=str)
def test_training_settings_that_train_nothing_are_named(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} = "):
        TrainSettings().changed(**given)
    assert TrainSettings(knobs={"alpha": 0.0, "eta": 0, "label_smoothing": 0.0}, nll_weight=0.0)


def test_a_terminal_without_a_character_gets_an_escape(monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", printed)
    escape_what_the_terminal_lacks()
    print("naïve 🙂")
    printed.flush()
    assert printed.buffer.getvalue() == b"na\\xefve \\U0001f642\n"


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/x") == tmp_path / "x" and resolve("~nobody-here/x") == ROOT / "~nobody-here/x"



def test_relative_paths_start_at_the_project_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("runs/x") == ROOT / "runs/x" and resolve("/a/b").as_posix() == "/a/b"


def test_every_command_is_listed_and_there():
    commands = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in (ROOT / "common").rglob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    assert commands - {"common"} == {name.removesuffix(".__main__").removesuffix(".run") for name in MODULES.values()}


def test_a_front_end_gets_a_bar_and_papermill_plain_lines():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(env={**os.environ, "JPY_SESSION_NAME": "inherited by whatever a notebook starts"})
    try:
        printed = {}
        for typing in (True, False):  # as JupyterLab, VS Code and Colab ask; as papermill does
            lines = []
            client.execute_interactive(
                "from common.runtime import Progress\np = Progress('rows', 2)\nprint('a bar' if p.bar is not None else 'no bar')\np(2)",
                allow_stdin=typing, timeout=60, output_hook=lambda message, lines=lines: lines.append(message["content"].get("text", "")),
            )  # fmt: skip
            printed[typing] = "".join(lines)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "a bar" in printed[True] and "rows: 2/2" not in printed[True]
    assert "no bar" in printed[False] and "rows: 2/2" in printed[False]
