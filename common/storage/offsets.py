"""Where each record of a file begins, found by its id, in little memory."""

from __future__ import annotations

from array import array

FULL = 0.75
"""Share of the slots in use at which their number doubles."""


class Offsets:
    """Id -> offset in bytes, by a 64-bit hash of the id: 21 to 43 bytes an id, where a dict takes some 200.

    Python's own hash of texts, keyed anew in every process: that any two of a million ids share one has a chance of
    3e-8. Slots are searched in a row from the place that the hash names (open addressing, linear probing).
    """

    def __init__(self):
        self._count, self._most = 0, FULL * 8
        self._keys, self._offsets = array("q", bytes(64)), array("q", bytes(64))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, record_id: str) -> bool:
        return self._keys[self._slot(hash(record_id) or 1)] != 0

    def __getitem__(self, record_id: str) -> int:
        """Raises KeyError."""
        slot = self._slot(hash(record_id) or 1)
        if not self._keys[slot]:
            raise KeyError(record_id)
        return self._offsets[slot]

    def __setitem__(self, record_id: str, offset: int) -> None:
        key = hash(record_id) or 1
        slot = self._slot(key)
        self._offsets[slot] = offset
        if not self._keys[slot]:
            self._keys[slot] = key
            self._count += 1
            if self._count > self._most:
                self._double()

    def _double(self) -> None:
        last = 2 * len(self._keys) - 1
        keys, offsets = array("q", bytes(8 * last + 8)), array("q", bytes(8 * last + 8))
        for key, offset in zip(self._keys, self._offsets):
            if key:
                slot = key & last
                while keys[slot]:
                    slot = (slot + 1) & last
                keys[slot], offsets[slot] = key, offset
        self._keys, self._offsets, self._most = keys, offsets, FULL * len(keys)

    def _slot(self, key: int) -> int:
        """Of the key, or the free one where it belongs; 0 marks a free slot."""
        keys = self._keys
        last = len(keys) - 1  # the number of slots is a power of two
        slot = key & last
        while keys[slot] and keys[slot] != key:
            slot = (slot + 1) & last
        return slot
