"""Tables of measurements: nothing is lost on the way to CSV and back (pytest tests/report/test_measurements.py)."""

import pytest

from common.report.measurements import interval_of, read_measurements, student_of, write_measurements
from common.runtime import ROOT
from common.statistics import wilson_interval

COMMITTED = sorted((ROOT / "results").rglob("table.csv"))


def measurement(metric, value, n, low, high, seed=0, **cell):
    return {"experiment": "safety", "method": "dpo", "noise": 0.3, "judge_error": 0.1, "seed": seed, "cell": cell, "metric": metric, "value": value, "n": n, "low": low, "high": high}


def test_what_is_written_is_read_again_and_what_can_be_computed_is_not_written(tmp_path):
    low, high = (round(bound, 4) for bound in wilson_interval(140, 150))
    given = [
        measurement("kl", -1.25, 150, -1.5, -1.0), measurement("pairs_used", 400, 1, 400, 400), measurement("utility", 0.9333, 150, low, high),
        measurement("utility", 0.5, 1, 0.5, 0.5, alpha=8.0, chosen_by="oracle"), measurement("kl", 0.1, 1, 0.0, 0.1 + 0.2, seed=1),
    ]  # fmt: skip
    path = write_measurements(tmp_path / "new" / "table.csv", reversed(given))
    found = read_measurements(path)
    ordered = sorted(given, key=lambda one: (student_of(one), one["metric"]))
    told = {"low": None, "high": None}
    assert [one | told for one in found] == [one | told for one in ordered] and [interval_of(one) for one in found] == [(one["low"], one["high"]) for one in ordered]
    assert [type(one["value"]) for one in found if one["metric"] == "pairs_used"] == [int]
    assert path.read_text() == (
        "experiment,method,noise,judge_error,seed,cell,kl,kl_n,kl_low,kl_high,pairs_used,utility,utility_n\n"
        'safety,dpo,0.3,0.1,0,"{""alpha"":8.0,""chosen_by"":""oracle""}",,,,,,0.5,\n'
        "safety,dpo,0.3,0.1,0,{},-1.25,150,-1.5,-1.0,400,0.9333,150\n"
        "safety,dpo,0.3,0.1,1,{},0.1,1,0.0,0.30000000000000004,,,\n"
    )


def test_a_student_may_be_named_by_less(tmp_path):
    given = [{"experiment": "safety", "method": "endpoint:a, b", "noise": None, "seed": 0, "metric": "utility", "value": 1.0, "n": 1, "low": None, "high": None}]
    assert read_measurements(write_measurements(tmp_path / "table.csv", given)) == given and read_measurements(write_measurements(tmp_path / "none.csv", [])) == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.parent.relative_to(ROOT / "results")))
def test_committed_tables_are_what_would_be_written_of_them(path, tmp_path):
    measurements = read_measurements(path)
    again = write_measurements(tmp_path / "table.csv", reversed(measurements))
    assert read_measurements(again) == measurements and again.read_bytes() == path.read_bytes()
    assert all(one["n"] > 0 and (one["low"] is None or one["low"] <= one["value"] <= one["high"]) for one in measurements)
