"""The committed example and figures of the page are what the code gives (pytest tests/doctor/test_example.py)."""

import json
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from common.doctor.diagnosis import examine
from common.doctor.report import terminal
from common.runtime import ROOT


@pytest.fixture(scope="module")
def benchmark():
    spec = spec_from_file_location("doctor_benchmark", ROOT / "tests/benchmarks/doctor.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept():
    return json.loads((ROOT / "results/doctor.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_committed_example_is_what_the_code_prints_and_finds(benchmark, kept, tmp_path):
    pairs = benchmark.world_pairs("safety", 0, tmp_path)
    assert (ROOT / "results/doctor/doctor.txt").read_text(encoding="utf-8") == terminal(examine(pairs, benchmark.EXAMPLE)) + "\n"
    assert [benchmark.recall(pairs, share, 0) for share in benchmark.SHARES] == [kept["miniature"]["safety"]["swaps"][str(share)][0] for share in benchmark.SHARES]


def test_the_page_shows_the_committed_example():
    shown = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8").split("<!-- example: results/doctor/doctor.txt -->\n```\n")[1].split("```\n")[0]
    assert shown == (ROOT / "results" / "doctor" / "doctor.txt").read_text(encoding="utf-8")


def test_the_table_is_of_generated_and_real_pairs_of_all_experiments(benchmark, kept):
    assert kept["miniature"].keys() == kept["real pairs"].keys() == {"safety", "roleplay-robustness", "sycophancy"}
    assert (ROOT / "results/doctor/table.md").read_text(encoding="utf-8") == benchmark.table(kept)


def test_missing_real_pairs_are_named(benchmark, tmp_path, capsys):
    assert benchmark.real_pairs(tmp_path) == {}
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"no file {tmp_path}/sycophancy/counterfactual_neutral/scored.jsonl: the row of sycophancy stays as it was" and len(said) == 3
