"""Steps 1 and 2 in shards, which run anywhere and at any time, and their merge.

    rdpo merge runs/paper/safety

The folder is that of an experiment's run. What its folders `shard-1-of-8` to `shard-8-of-8` hold of `pairs.jsonl`,
`scored.jsonl` and kept replies becomes one file each, as if it had been made without shards: the same command without
`--shard` then finds everything finished, and asks again for what failed alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from common.command import CommandParser
from common.schema import added, mark_of_pairs
from common.storage.files import claim, note_of, read_note
from common.storage.lines import read_lines
from common.storage.offsets import Offsets
from common.storage.store import JsonlStore

FILES = {"pairs.jsonl": "generate_data", "scored.jsonl": "reward_score"}
"""What is merged, and the step that writes it."""
Item = TypeVar("Item")


def shard_of(text: str) -> tuple[int, int]:
    """(number from 1 on, how many) of a shard written as `3/8`; (1, 1) for "". Raises ValueError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text or "1/1")
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(f"shard = {text!r}: expected i/n such as 3/8, with i from 1 to n")
    return int(match[1]), int(match[2])


def taken(items: Sequence[Item], shard: str) -> Sequence[Item]:
    """The items of a shard: every n-th, so that all shards take equally long."""
    number, count = shard_of(shard)
    return items if count == 1 else [items[i] for i in range(number - 1, len(items), count)]


def folder_of(shard: str) -> str:
    """The name of a shard's folder in that of the run."""
    return "shard-{}-of-{}".format(*shard_of(shard))


def merge(folder: str | Path) -> dict[str, int]:
    """Merges the shards in the folder of a run; returns how many records each merged file holds.

    A second call adds nothing. Raises ValueError naming the shard: one is missing or not finished, has lost the note of
    how it was made, was made in another way than the first, or holds an id that another one holds.
    """
    folder = Path(folder)
    shards = _all_shards(folder)
    merged = {}
    for name, stage in FILES.items():
        if any((shard / name).exists() for shard in shards):
            merged[name] = _merge(folder, name, stage, shards)
    for name in sorted({path.name for shard in shards for path in shard.glob("*_replies.jsonl")}):
        with JsonlStore(folder / name) as store:
            for _, reply in (line for shard in shards if (shard / name).exists() for line in read_lines(shard / name)):
                if reply["id"] not in store:
                    store.append(reply)
            merged[name] = len(store)
    return merged


def _all_shards(folder: Path) -> list[Path]:
    found = {path.name: path for path in folder.iterdir() if re.fullmatch(r"shard-\d+-of-\d+", path.name)}
    if not found:
        raise ValueError(f"{folder} holds no shards; --shard 1/8 of common.batch makes the first of eight")
    counts = sorted({int(name.rpartition("-")[2]) for name in found})
    if len(counts) > 1:
        raise ValueError(f"{folder} holds shards of {' and of '.join(map(str, counts))}; remove those of one kind")
    names = [folder_of(f"{number}/{counts[0]}") for number in range(1, counts[0] + 1)]
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{folder} lacks {', '.join(missing[:3])} ({len(missing)} of {counts[0]}); run it first")
    return [found[name] for name in names]


def _merge(folder: Path, name: str, stage: str, shards: Sequence[Path]) -> int:
    first, asked = {}, []
    for shard in shards:
        how = _how_finished(shard, name, stage)
        if name == "scored.jsonl" and how.pop("pairs", None) != _texts(shard):
            raise ValueError(f"{shard}: its {name} was made of other pairs than it holds; run {stage} there again")
        asked += [how.pop("records")] if "records" in how else []
        first = first or how
        if changed := sorted(key for key in how.keys() | first.keys() if how.get(key) != first.get(key)):
            raise ValueError(
                f"{shard}: its {name} was made with another {', '.join(changed)} than that of {shards[0].name}"
            )
    of_all = {"pairs": _texts(folder)} if name == "scored.jsonl" else {"records": added(asked)}
    target = claim(folder / name, first | of_all)
    with JsonlStore(target) as store:
        holders = Offsets()  # id -> number of its shard
        for number, shard in enumerate(shards):
            for line, record in read_lines(shard / name):
                if (record_id := record["id"]) in holders:
                    other = shards[holders[record_id]].name
                    raise ValueError(f"{shard / name}, line {line}: {other} holds the id {record_id!r} too")
                holders[record_id] = number
                if record_id not in store:
                    store.append(record)
        return len(store)


def _how_finished(shard: Path, name: str, stage: str) -> dict[str, Any]:
    """How a shard's file was made, by its note. Raises ValueError where the note is lost, or the step's manifest, which
    is written when it ends, is missing or notes that something else was made."""
    path, manifest = shard / name, shard / f"{stage}.manifest.json"
    if not path.exists() or not manifest.exists():
        raise ValueError(f"{shard}: {stage} is not finished there; run it first")
    if not (how := read_note(note := note_of(path))):
        raise ValueError(
            f"{note}: missing or empty, and nothing else says how {name} was made; copy it from the machine that made the shard, or delete {stage}.done.json beside it and run {stage} there again"
        )
    if read_note(manifest).get("made_of") != how:
        raise ValueError(f"{manifest}: is not of what {name} was last begun with; run {stage} there again")
    return how


def _texts(folder: Path) -> str:
    """What `reward_score` puts into its mark of the pairs of a folder."""
    return mark_of_pairs(pair for _, pair in read_lines(folder / "pairs.jsonl"))


def parser() -> CommandParser:
    """The arguments of `rdpo merge`."""
    command = CommandParser("merge", __doc__)
    command.add_argument("folder", type=Path, help="of an experiment's run, such as runs/paper/safety")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    try:
        for name, count in merge(asked.folder).items():
            print(f"{name}: {count} records")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
