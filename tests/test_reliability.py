"""Short cuts of the long suites in reliability.py, which prints and keeps the figures: `pytest tests/test_reliability.py`."""

import pytest
import reliability

MEMORY_OF_AN_EXAMPLE = 1_000  # bytes: the ids and offsets of three turns, a pair and a scored pair, and no text


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


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


def test_disk_and_memory_of_an_example_do_not_grow_with_their_number():
    figures = reliability.growth(3_000)
    few, many = figures["disk_bytes_per_example"]
    assert many == pytest.approx(few, rel=0.01)
    assert figures["memory_bytes_per_further_example"] < MEMORY_OF_AN_EXAMPLE < many / 4


def test_kernels_side_by_side_do_not_collide(tmp_path):
    assert reliability.kernels(4, tmp_path)["failed"] == {}
