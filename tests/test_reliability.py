"""Short cuts of the long suites in reliability.py, which prints and keeps the figures: `pytest tests/test_reliability.py`."""

import json

import pytest
import reliability
from fault_server import FAULTS

from common.runtime import resolve

MEMORY_OF_AN_EXAMPLE = 1_000  # bytes: the ids and offsets of three turns, a pair and a scored pair, and no text


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.slow
def test_kill_minus_nine_loses_nothing_and_pays_twice_only_what_was_in_flight(tmp_path):
    figures = reliability.kills(6, tmp_path)
    assert figures["kills"] == 6 and figures["lost"] == 0
    assert figures["unsaved_at_one_kill_at_most"] <= reliability.CONCURRENCY
    assert figures["paid_twice"] <= 6 * reliability.CONCURRENCY
    assert figures["equal_to_uninterrupted"] and figures["requests_of_a_second_run"] == 0


@pytest.mark.parametrize("kind", ["500", "reset", "refused", "length", "content_filter"])
def test_every_prompt_ends_in_a_recorded_state_at_30_percent_faults(kind, tmp_path):
    cell = reliability.faults([0.3], 16, tmp_path, [kind])[kind]["0.3"]
    assert (cell["stopped"], cell["neither"], cell["errors"]) == ("", 0, 0)
    assert cell["pairs"] == 16 or set(cell["failed"]) == {kind}


@pytest.mark.slow
def test_disk_and_memory_of_an_example_do_not_grow_with_their_number():
    figures = reliability.growth(3_000)
    few, many = figures["disk_bytes_per_example"]
    assert many == pytest.approx(few, rel=0.01)
    assert figures["memory_bytes_per_further_example"] < MEMORY_OF_AN_EXAMPLE < many / 4


@pytest.mark.slow
def test_a_teacher_goes_on_where_a_kill_left_it(tmp_path):
    figures = reliability.million(2_000, tmp_path)
    assert 1_200 <= figures["killed_at"] < 2_000 and figures["peak_memory_bytes"] < 100_000_000


@pytest.mark.slow
def test_kernels_side_by_side_do_not_collide(tmp_path):
    assert reliability.kernels(4, tmp_path)["failed"] == {}


def figures_of(part):
    return json.loads(reliability.RESULTS.read_text(encoding="utf-8"))[part]["figures"]


def test_the_figures_kept_are_small():
    assert reliability.RESULTS.stat().st_size < 40_000


def test_200_kills_lost_nothing_and_cost_at_most_what_was_in_flight():
    figures = figures_of("kills")
    assert figures["kills"] >= 200 and figures["lost"] == 0
    assert figures["unsaved_at_one_kill_at_most"] <= figures["in_flight_at_most"]
    assert figures["paid_twice"] <= figures["kills"] * figures["in_flight_at_most"]
    assert figures["equal_to_uninterrupted"] and figures["requests_of_a_second_run"] == 0


def test_every_prompt_ended_in_a_recorded_state_under_every_fault_at_every_rate():
    table = figures_of("faults")
    assert set(table) == {*FAULTS, "refused"} and all(set(cells) == set(map(str, reliability.RATES)) for cells in table.values())
    cells = [(kind, rate, cell) for kind, row in table.items() for rate, cell in row.items()]
    assert [(kind, rate) for kind, rate, cell in cells if cell["neither"] or cell["stopped"] or cell["pairs"] + sum(cell["failed"].values()) != cell["prompts"]] == []
    assert [kind for kind, rate, cell in cells if rate == "0.3" and cell["errors"] > 0.01 * cell["prompts"]] == []


def test_32_requests_at_once_are_25_times_as_fast_as_one():
    figures = figures_of("throughput")
    assert (figures["concurrency"], figures["delay_s"]) == (32, 0.5) and figures["ratio"] >= 25


def test_100_000_examples_took_as_much_disk_each_as_10_000_and_no_memory_for_their_text():
    figures = figures_of("growth")
    few, many = figures["disk_bytes_per_example"]
    assert figures["examples"][1] >= 100_000 and many == pytest.approx(few, rel=0.01)
    assert figures["memory_bytes_per_further_example"] < MEMORY_OF_AN_EXAMPLE


def test_the_page_on_scale_gives_these_figures():
    figures, page = figures_of("growth"), (resolve("docs") / "scale.md").read_text(encoding="utf-8")
    assert "one of {1:,} (`growth` in ".format(*figures["examples"]) in page
    assert f"took {figures['memory_bytes_per_further_example']} bytes of memory and {figures['disk_bytes_per_example'][1] / 1000:.1f} kB on disk." in page


def test_200_kernels_started_side_by_side_without_a_collision():
    figures = figures_of("kernels")
    assert figures["starts"] >= 200 and figures["side_by_side"] > 1 and figures["failed"] == {}


def test_the_short_local_run_came_to_its_table_and_asked_for_no_reply_twice():
    figures = figures_of("local")
    assert figures["first"]["replies"] == figures["again"]["replies"] > 0 and figures["lines_of_table"] == 2
    assert figures["again"]["seconds"] < figures["first"]["seconds"] < 1200
