"""The answers of a finished run that are labelled: a few, blind and in random order."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.data.formats.read import read_preferences
from common.evaluation.result import Result
from common.prompts import PROMPTS
from common.runtime import resolve
from common.schema import answer_id
from common.storage import read_lines

MOST = 32
"""Answers that one audit asks a person to read."""
BASE_SHARE = 4
"""One answer in so many is the base student's, where the run has one."""
VERDICT, SET = "judged", "held_out"
"""The outcome that is one judge's verdict on one answer, and the set that it is about."""


class Item(NamedTuple):
    """An answer to label; id: `schema.answer_id`."""

    id: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Row:
    """A row of the run. verdicts: what the judge found of every answer with a verdict, by id, one entry a prompt."""

    name: str
    seed: int
    verdicts: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Audit:
    """question: what the judge was asked, with "yes" for a good answer. items: in the order in which they are shown."""

    folder: Path
    question: str
    rows: tuple[Row, ...]
    items: tuple[Item, ...]


def open_audit(place: str | Path, count: int = MOST) -> Audit:
    """The audit of a run's folder, or of one `metrics.json` and the base student beside it.

    Raises FileNotFoundError or ValueError, each in one sentence: no finished row, no judge's verdicts on single answers,
    prompts that are not to be found, or more than `MOST` answers.
    """
    if not 1 <= count <= MOST:
        raise ValueError(f"{count} answers; give 1 to {MOST}, which a person reads in one go")
    folder, results = _results(Path(place).expanduser())
    judged = [result for result in results if result.ids.get(SET) and VERDICT in result.outcomes]
    if not judged:
        raise ValueError(
            f"{place} has no judge's verdicts on single answers, so there is nothing to audit: only rows of real students in safety and "
            "roleplay-robustness have them (worlds have an oracle, steadiness compares two answers, own_data asks no judge)"
        )
    experiment, prompts = judged[0].metrics[0].experiment, _prompts(folder)
    pools = [_items(result, prompts) for result in judged]
    if not any(pools):
        raise ValueError(
            f"the prompts of the answers are not to be found; put the pairs file that was evaluated on into {folder} as scored.jsonl"
        )
    rows = tuple(Row(result.row, result.seed, tuple(_verdicts(result))) for result in judged)
    chosen = _drawn(pools, [row.name == "base" for row in rows], count)
    return Audit(folder, PROMPTS[experiment].yes_no_question, rows, tuple(chosen))


def _results(place: Path) -> tuple[Path, list[Result]]:
    """The run's folder, and its rows: of one row that row and the base student of the same seed."""
    file = place / "metrics.json" if place.is_dir() else place
    if file.is_file():
        beside = file.parent.parent / "base" / "metrics.json"
        files = [file, *([beside] if beside.is_file() and not beside.samefile(file) else [])]
        return file.absolute().parents[2], [Result.read(one) for one in files]
    if files := sorted(place.glob("seed-*/*/metrics.json")):
        return place, [Result.read(one) for one in files]
    raise FileNotFoundError(f"no metrics.json in {place}; give the folder of a run of train_rdpo, or one metrics.json")


def _prompts(folder: Path) -> list[str]:
    """Every prompt that the run's files hold, without repeats."""
    manifest = folder / "train_rdpo.manifest.json"
    given = json.loads(manifest.read_text(encoding="utf-8"))["parameters"] if manifest.is_file() else {}
    files = [resolve(given[name]) for name in ("held_out", "pairs_file") if given.get(name)]
    files += [folder / "scored.jsonl", folder / "to_label.jsonl"]
    return list(dict.fromkeys(prompt for file in files if file.exists() for prompt in _prompts_in(file, given)))


def _prompts_in(file: Path, given: Mapping[str, Any]) -> list[str]:
    """The prompts of our own JSON lines, or of pairs in a format of others, read as the run read them. given: the run's
    parameters."""
    if file.suffix == ".jsonl":
        first = next((fields for _, fields in read_lines(file)), None)
        if first is None or "id" in first and isinstance(first.get("prompt"), str):
            return [fields["prompt"] for _, fields in read_lines(file)]
    score_range, weights = given.get("score_range", (0.0, 1.0)), given.get("weights")
    return [pair.prompt for pair in read_preferences(file, tuple(score_range), weights).pairs]


def _verdicts(result: Result) -> Iterator[tuple[str, bool]]:
    for i, verdict in zip(result.ids[SET], result.outcomes[VERDICT], strict=True):
        if verdict is not None:
            yield i, verdict


def _items(result: Result, prompts: Sequence[str]) -> list[Item]:
    """The answers that have a verdict, are there in full, and whose prompt is known."""
    judged, found = dict(_verdicts(result)), []
    for i, answer in zip(result.ids[SET], result.answers.get(SET, [])):
        prompt = next((prompt for prompt in prompts if i in judged and answer_id(prompt, answer) == i), None)
        found += [Item(i, prompt, answer)] if prompt is not None else []
    return found


def _drawn(pools: Sequence[list[Item]], is_base: Sequence[bool], count: int) -> list[Item]:
    """At most `count` answers in random order, as many of every trained row as possible; the same for the same run."""
    rng, chosen = random.Random(0), {}
    shuffled = [(base, rng.sample(pool, len(pool))) for base, pool in zip(is_base, pools)]
    of_base = [pool for base, pool in shuffled if base]
    trained = [pool for base, pool in shuffled if not base]
    for groups, most in ((of_base, count // BASE_SHARE if any(trained) else count), (trained, count)):
        for turn in range(max(map(len, groups), default=0)):
            for item in [group[turn] for group in groups if turn < len(group)]:
                if len(chosen) < most:
                    chosen.setdefault(item.id, item)
    return rng.sample(list(chosen.values()), len(chosen))
