"""Labels of an audit, kept as they are given, in the format that the notebooks' parameter `labels` reads.

A line an answer: `{"id": ..., "prompt": ..., "answer": ..., "score": [1, 1]}`, the labels of two readings; 1 is good. A line
read once has one label, and `common/judge/agreement.py` refuses it until the second reading.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from common.audit.sample import Item
from common.data.readers import Text, by_id, read_table
from common.judge.agreement import Label
from common.storage import write_whole

READINGS = 2


class KeptRow(BaseModel):
    id: Text
    prompt: Text
    answer: str
    score: list[Label] = Field(min_length=1, max_length=READINGS)


class Labels:
    """The labels in a file, by id. Raises ValueError for a file that does not end in .jsonl, and naming the line that
    is no label."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise ValueError(f"{path}: labels are kept as JSON lines; give --output a file that ends in .jsonl")
        self.rows = by_id(read_table(path), KeptRow) if self.path.exists() and self.path.stat().st_size else {}

    def add(self, item: Item, label: int) -> None:
        """Adds the label of the item's next reading, and writes the file anew, whole."""
        before = self.rows[item.id].score if item.id in self.rows else []
        self.rows[item.id] = KeptRow(**item._asdict(), score=[*before, label])
        lines = [json.dumps(row.model_dump(), ensure_ascii=False) for row in self.rows.values()]
        write_whole(self.path, "\n".join(lines) + "\n")

    def first(self) -> dict[str, int]:
        """The label of the first reading by id."""
        return {i: row.score[0] for i, row in self.rows.items()}

    def readings_of(self, item: Item) -> int:
        return len(self.rows[item.id].score) if item.id in self.rows else 0

    def reading(self, items: Sequence[Item]) -> int:
        """Which reading is next, 1 or 2; 0 where all items have been read twice."""
        least = min(map(self.readings_of, items))
        return least + 1 if least < READINGS else 0
