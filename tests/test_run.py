"""Strict parameters and paths (pytest tests/test_run.py)."""

import pytest

from common.run import ROOT, check_parameters, resolve


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


@pytest.mark.parametrize("given", ["0,1,2", [0, 1, 2]])
def test_lists_of_numbers_too(given):
    assert check_parameters(namespace(seeds=given))["seeds"] == [0, 1, 2]


def test_an_integer_is_a_number_and_modules_are_not_parameters():
    assert check_parameters(namespace(rate=1, pytest=pytest))["rate"] == 1


def test_relative_paths_start_at_the_project_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("runs/x") == ROOT / "runs/x" and resolve("/a/b").as_posix() == "/a/b"
