"""Strict parameters and paths (pytest tests/foundation/test_runtime.py)."""

import importlib
import io
import math

import pytest

from common.__main__ import COMMANDS
from common.methods import TrainSettings
from common.notebook.parameters import check_parameters
from common.runtime import ROOT, escape_what_the_terminal_lacks, resolve


def namespace(**given):
    cell = "seed: int = 0\nrate: float = 0.5\nname: str = 'a'\nmethods: list[str] = ['rdpo']\nseeds: list[int] = [0]\non: bool = False\n"
    values = {}
    exec(compile(cell, "cell", "exec", dont_inherit=True), values)
    return {**values, **given}


def test_defaults_pass_and_come_back():
    assert check_parameters(namespace()) == {"seed": 0, "rate": 0.5, "name": "a", "methods": ["rdpo"], "seeds": [0], "on": False}


def test_a_misspelt_name_is_an_error_with_a_suggestion():
    with pytest.raises(ValueError, match="unknown parameter sed, did you mean seed"):
        check_parameters(namespace(sed=3))


@pytest.mark.parametrize("given", [{"seed": "3"}, {"seed": 1.5}, {"rate": "high"}, {"name": 3}, {"on": "yes"}, {"seeds": "a,b"}, {"seeds": [0.5]}], ids=str)
def test_a_mistyped_value_names_the_parameter(given):
    with pytest.raises(ValueError, match=f"parameter {next(iter(given))} = "):
        check_parameters(namespace(**given))


def test_every_problem_is_named_at_once():
    with pytest.raises(ValueError, match="unknown parameter betaa.*parameter seed"):
        check_parameters(namespace(betaa=1, seed="x"))


@pytest.mark.parametrize("given, expected", [("dpo,rdpo", ["dpo", "rdpo"]), ("dpo", ["dpo"]), (["sft"], ["sft"])])
def test_lists_come_as_lists_or_as_one_string(given, expected):
    assert check_parameters(namespace(methods=given))["methods"] == expected


@pytest.mark.parametrize("given", ["0,1,2", [0, 1, 2], (0, 1, 2), "[0, 1, 2]", "(0,1,2)", " [ 0,1 , 2] ", "'0','1','2'"], ids=str)
def test_lists_of_numbers_too(given):
    assert check_parameters(namespace(seeds=given))["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("given", ["[dpo, rdpo]", '["dpo", "rdpo"]', "'dpo', 'rdpo'", "dpo,rdpo,", ("dpo", "rdpo")], ids=str)
def test_lists_in_brackets_and_quotes(given):
    assert check_parameters(namespace(methods=given))["methods"] == ["dpo", "rdpo"]


@pytest.mark.parametrize("given, said", [
    ({"rate": math.nan}, "rate = nan: input should be a finite number"), ({"rate": math.inf}, "rate = inf: .*finite"), ({"rate": -math.inf}, "rate = -inf: .*finite"),
    ({"seed": -1}, "seed = -1: input should be greater than or equal to 0"), ({"seed": 2**32}, "seed = 4294967296: "), ({"seeds": [0, -1]}, r"seeds = \[0, -1\]: .*greater"),
    ({"seeds": []}, r"seeds = \[\]: .*at least 1 item"), ({"seeds": ""}, r"seeds = \[\]: "), ({"seeds": "0,0"}, r"seeds = \['0', '0'\]: a value stands twice"), ({"methods": "dpo,dpo"}, "methods = .*stands twice"),
    ({"name": "x" * 5000, "rate": "y" * 5000}, "rate = 'yyyy"),
], ids=str)  # fmt: skip
def test_a_number_that_cannot_be_is_named(given, said):
    with pytest.raises(ValueError, match=f"^parameter {said}") as refused:
        check_parameters(namespace(**given))
    assert len(str(refused.value)) < 300


def test_prices_may_be_alike():
    values = {}
    exec(compile("prices: list[float] = [0.0, 0.0]", "cell", "exec", dont_inherit=True), values)
    assert check_parameters(values) == {"prices": [0.0, 0.0]}


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


def test_an_integer_is_a_number_and_modules_are_not_parameters():
    assert check_parameters(namespace(rate=1, pytest=pytest))["rate"] == 1


def test_relative_paths_start_at_the_project_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("runs/x") == ROOT / "runs/x" and resolve("/a/b").as_posix() == "/a/b"


def test_every_command_is_listed_and_there():
    commands = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in (ROOT / "common").rglob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    assert commands - {"common"} == set(COMMANDS)
    assert all(callable(importlib.import_module(name if name != "common.study" else "common.study.run").main) for name in COMMANDS)
