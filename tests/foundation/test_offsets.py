"""The index of a store: `pytest tests/foundation/test_offsets.py`."""

import random
import tracemalloc

import pytest

from common.storage.offsets import Offsets


def test_it_holds_what_a_dict_holds():
    rng, offsets, expected = random.Random(0), Offsets(), {}
    for number in range(5_000):
        name = f"p{rng.randrange(3_000)}"
        offsets[name] = expected[name] = 7 * number
        assert len(offsets) == len(expected)
    assert all(offsets[name] == offset for name, offset in expected.items())
    assert [f"p{i}" in offsets for i in range(4_000)] == [f"p{i}" in expected for i in range(4_000)]
    with pytest.raises(KeyError, match="unknown"):
        offsets["unknown"]


def test_ids_of_one_slot_are_told_from_each_other(monkeypatch):
    monkeypatch.setattr("common.storage.offsets.hash", {"a": 8, "b": 16, "c": 24, "none": 0, "far": 32}.get, raising=False)
    offsets = Offsets()
    for number, name in enumerate(("a", "b", "c", "none")):
        offsets[name] = number
    assert [offsets[name] for name in ("a", "b", "c", "none")] == [0, 1, 2, 3] and "far" not in offsets


@pytest.mark.slow
def test_an_id_takes_at_most_50_bytes():
    tracemalloc.start()
    offsets = Offsets()
    for number in range(50_000):
        offsets[f"record {number}"] = number
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 50 * 50_000
