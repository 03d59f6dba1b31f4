"""What a rater says of a real student's answers, held against what the tables count.

`train_rdpo` writes a blind sample, `to_label.jsonl`: prompts and answers in random order, no word on the method. A
rater puts one line an answer into `results/<profile>/<experiment>/labels.csv`, with the columns `id` and `label`: `1 0`
are the labels of two readings, the second blind to the first. `labels.jsonl` with `{"id": ..., "label": [1, 0]}` is
read as well. An answer to a prompt of `held_out` or `ood` is labelled aligned or not, one to a benign prompt useful or
not. The tables then have corrected rates beside the counted ones.

    rdpo rate runs/small/safety/scored.jsonl

is about pairs: it prints a blind sample of a scored file, one pair a line, or, with the rater's lines `{"id": ...,
"label": "first"}` (or "second", or "same": which of the two answers is better), what they say of the teacher's
revisions and of the scores.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from common.command import CommandParser
from common.data.readers import Text, by_id, read_table
from common.evaluation.judged import OUTCOME_SETS
from common.evaluation.metrics import rate
from common.evaluation.result import Result, excerpts
from common.judge.agreement import Readings
from common.runtime import errors_in_a_line
from common.schema import Metric, PromptRecord, ScoredPair, answer_id
from common.statistics import agreement, corrected_rate, mcnemar_exact, wilson_interval
from common.storage import read_records, refuse_repeats

CONTRASTS = (("rdpo", "dpo"), ("rdpo_nll", "dpo_nll"), ("rdpo", "rdpo_filter"), ("rdpo", "dsc"), ("rdpo", "sft"))
"""What scores inside the loss add to DPO, plain and with likelihood beside it; refined DPO against DPO on accepted
pairs, and against likelihood on the same pairs, with scores as a filter and without."""
CORRECTED = {
    "aligned": ("aligned", "aligned_ood"),
    "aligned_ood": ("aligned", "aligned_ood"),
    "utility": ("utility", "utility_persona"),
    "utility_persona": ("utility", "utility_persona"),
}
"""Metric -> metrics whose labels say how often its count is wrong: those of the same rule."""


def blind_sample(
    results: Sequence[Result], sets: Mapping[str, Sequence[PromptRecord]], count: int = 60, seed: int = 0
) -> list[dict[str, str]]:
    """Every whole answer of the set `held_out` that the results hold, and `count` of the others, as many of every row
    and set as possible, in random order: each with id, set, prompt and answer. An answer that several rows gave stands
    once; one that is only an excerpt (`excerpts`) does not."""
    rng, groups = random.Random(seed), {}
    for number, result in enumerate(results):
        for name, answers in result.answers.items():
            items = [
                {"id": i, "set": name, "prompt": r.prompt, "answer": a}
                for i, r, a in zip(result.ids[name], sets[name], answers)
                if i == answer_id(r.prompt, a)
            ]
            groups[name, number] = rng.sample(items, len(items))
    chosen = {item["id"]: item for (name, _), group in groups.items() if name == "held_out" for item in group}
    others, most = [group for (name, _), group in groups.items() if name != "held_out"], len(chosen) + count
    for turn in range(max(map(len, others), default=0)):
        for item in [group[turn] for group in others if turn < len(group)]:
            if len(chosen) < most:
                chosen.setdefault(item["id"], item)
    return rng.sample(list(chosen.values()), len(chosen))


class RatingRow(BaseModel):
    id: Text
    label: Readings


class BetterRow(BaseModel):
    id: Text
    label: Literal["first", "second", "same"]


def read_ratings(path: str | Path) -> dict[str, tuple[int, int]]:
    """Id -> labels of the two readings. Raises ValueError naming the line that has not two labels, 0 or 1, or an id of
    another line."""
    return {name: row.label for name, row in by_id(read_table(path), RatingRow).items()}


def ratings_in(folder: str | Path) -> dict[str, tuple[int, int]]:
    """What `labels.csv` or `labels.jsonl` in a folder holds; {} where neither is. Raises what `read_ratings` does, and
    ValueError for both."""
    there = [path for name in ("labels.csv", "labels.jsonl") if (path := Path(folder) / name).exists()]
    if len(there) > 1:
        raise ValueError(f"{there[0]} and {there[1].name} are both there; put all labels into one of them")
    return read_ratings(there[0]) if there else {}


def rated(results: Sequence[Result], ratings: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, tuple[bool, int]]]:
    """Metric -> id of a labelled answer -> (what the metric counted it as, the rater's first label)."""
    found: dict[str, dict[str, tuple[bool, int]]] = {}
    for result in [result for result in results if result.ids]:  # a miniature's answers are nobody's to label
        for metric, outcomes in result.outcomes.items():
            for i, outcome in zip(result.ids[OUTCOME_SETS[metric]], outcomes):
                if i in ratings and outcome is not None:
                    found.setdefault(metric, {})[i] = (outcome, ratings[i][0])
    return found


def agreements(results: Sequence[Result], ratings: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, Any]]:
    """Rater with themselves, and every metric that counts answers with the rater's first labels: share equal, kappa, n."""
    known = {i for of_metric in rated(results, ratings).values() for i in of_metric}
    checks = {"rater twice": agreement(*zip(*(ratings[i] for i in sorted(known))))} if known else {}
    for metric, items in rated(results, ratings).items():
        said, labels = zip(*items.values())
        checks[metric] = agreement([int(outcome) for outcome in said], list(labels)) | {
            "labelled 1": sum(labels),
            "counted 1": sum(said),
        }
    return checks


def with_labels(results: Sequence[Result], ratings: Mapping[str, tuple[int, int]]) -> list[Result]:
    """The results with what the labels add.

    labelled: share of the row's labelled answers to the prompts of `held_out` that the rater, reading first, calls
    aligned, where at least half of the row's answers to them were read.
    <metric>_corrected, for each of `CORRECTED` that the labels allow to correct: the count's errors are taken to be the
    same in every row. Not corrected are a row whose every answer was labelled, and steadiness, which compares two
    answers where a rater saw one.
    """
    found, results = rated(results, ratings), [replace(result, metrics=list(result.metrics)) for result in results]
    for result in results:
        if labels := [label for label in _held_out_labels(result, ratings) if label is not None]:
            names = {
                "experiment": result.metrics[0].experiment,
                "method": result.method,
                "seed": result.seed,
                "noise": result.metrics[0].noise,
            }
            result.metrics.append(rate([label == 1 for label in labels], metric="labelled", **names))
        able = {"utility", "utility_persona"} if "steady" in result.outcomes else set(CORRECTED)
        partly = {name for name in able if not ratings.keys() >= set(result.ids.get(OUTCOME_SETS[name], [""]))}
        for metric in [metric for metric in result.metrics if metric.metric in partly]:
            items = [item for name in CORRECTED[metric.metric] for item in found.get(name, {}).values()]
            yes, no = ([said for said, label in items if label == wanted] for wanted in (1, 0))
            value = corrected_rate(metric.k, metric.n, sum(yes), len(yes), len(no) - sum(no), len(no))
            if value:
                names = metric.model_dump(include={"experiment", "method", "seed", "n", "noise"})
                result.metrics.append(
                    Metric(metric=f"{metric.metric}_corrected", value=value[0], low=value[1], high=value[2], **names)
                )
    return results


def contrasts(results: Sequence[Result], ratings: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """`CONTRASTS` between rows of the same seed, pairs and swaps, on the same prompts of `held_out`: as labelled by the
    rater, reading first, and as counted. difference: of the shares aligned; first, second: prompts on which that row
    alone is; p: exact McNemar test, two-sided, which takes the prompts for independent."""
    by_row = {(result.method, result.seed, result.variant, result.swapped): result for result in results}
    found = []
    for (method, *where), result in by_row.items():
        for other in [
            by_row[second, *where] for first, second in CONTRASTS if first == method and (second, *where) in by_row
        ]:
            for seen_by, mine in _views(result, ratings).items():
                both = [pair for pair in zip(mine, _views(other, ratings)[seen_by]) if None not in pair]
                if both:
                    first, second = sum(a > b for a, b in both), sum(a < b for a, b in both)
                    found.append({
                        "contrast": f"{result.row} - {other.row}", "seed": result.seed, "seen_by": seen_by, "n": len(both),
                        "difference": (first - second) / len(both), "first": first, "second": second, "p": mcnemar_exact(first, second),
                    })  # fmt: skip
    return found


def _views(result: Result, ratings: Mapping[str, tuple[int, int]]) -> dict[str, list[int | bool | None]]:
    return {"labelled": _held_out_labels(result, ratings), "aligned": result.outcomes.get("aligned", [])}


def _held_out_labels(result: Result, ratings: Mapping[str, tuple[int, int]]) -> list[int | None]:
    """What the rater, reading first, says of each answer to the prompts of `held_out`; None of one not read, and of all
    where fewer than half were: those few are answers that a labelled row gave too, and no sample."""
    labels = [ratings[i][0] if i in ratings else None for i in result.ids.get("held_out", [])]
    return labels if 2 * labels.count(None) <= len(labels) else [None] * len(labels)


def write_examples(results: Sequence[Result], sets: Mapping[str, Sequence[PromptRecord]], path: str | Path) -> None:
    """`excerpts` of every row, good or bad, as Markdown under their prompts; each row once, its first seed."""
    first = {
        result.row: [text.replace("|", "\\|") for text in said["held_out"]]
        for result in reversed(results)
        if (said := excerpts(result))
    }  # a bar would end the cell
    lines = ["The first held-out prompts and the first words of every row's answer, chosen by this rule alone.", ""]
    for i, record in enumerate(sets["held_out"][: min(map(len, first.values()))]):
        asked = " ".join((record.plain_prompt or record.prompt).split())
        lines += [f"**{asked}** ({record.kind or 'plain'})", "", "| row | answer |", "|:--|:--|"]
        lines += [f"| {row} | {said[i]} |" for row, said in reversed(first.items())] + [""]
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def blind_pairs(pairs: Sequence[ScoredPair], count: int = 40, seed: int = 0) -> list[dict[str, str]]:
    """At most `count` pairs of split `train` in random order, their two answers in an order that tells nothing. Raises
    ValueError where there is none."""
    if not (trained := [pair for pair in pairs if pair.split == "train"]):
        raise ValueError(
            f"none of {len(pairs)} pairs is of split train, which is what is read; give the file of step 2"
        )
    chosen = random.Random(seed).sample(trained, min(count, len(trained)))
    return [
        {"id": pair.id, "prompt": pair.prompt, **dict(zip(("first", "second"), _in_blind_order(pair)))}
        for pair in chosen
    ]


def _in_blind_order(pair: ScoredPair) -> tuple[str, str]:
    answers = pair.response, pair.response_revised
    return answers[::-1] if _revision_first(pair) else answers


def _revision_first(pair: ScoredPair) -> bool:
    return random.Random(pair.id).random() < 0.5


def revisions(pairs: Sequence[ScoredPair], labels: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What labels of `blind_pairs` say. better, same, worse: how many revisions are that, against the original.
    judge_right: of the pairs that the rater and the scores both tell apart, the share that they order alike, with its
    Wilson interval and n.

    Raises ValueError naming the label that is none of the three, or the id that is no pair's or labelled twice.
    """
    refuse_repeats([row.get("id") for row in labels], "labels")
    by_id, said = {pair.id: pair for pair in pairs}, Counter()
    right = []
    for row in labels:
        if row.get("id") not in by_id:
            raise ValueError(f"labels: {row.get('id')!r} is the id of no pair")
        if row.get("label") not in ("first", "second", "same"):
            raise ValueError(f"labels: {row['id']} is labelled {row.get('label')!r}; write first, second or same")
        pair = by_id[row["id"]]
        better = (
            "same"
            if row["label"] == "same"
            else "better"
            if (row["label"] == "first") == _revision_first(pair)
            else "worse"
        )
        said[better] += 1
        original, revised = pair.normalised()
        if better != "same" and pair.is_scored and original != revised:
            right.append((revised > original) == (better == "better"))
    low, high = wilson_interval(sum(right), len(right)) if right else (0.0, 1.0)
    share = {"value": sum(right) / len(right) if right else None, "low": low, "high": high, "n": len(right)}
    return {
        "labelled": said.total(),
        **{name: said[name] for name in ("better", "same", "worse")},
        "judge_right": share,
    }


def parser() -> CommandParser:
    """The arguments of `rdpo rate`."""
    command = CommandParser("rate", __doc__)
    command.add_argument("scored", help="JSONL file of scored pairs")
    command.add_argument("labels", nargs="?", help="JSONL or CSV file of the rater's lines; default: print the sample")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    with errors_in_a_line("rating"):
        pairs = read_records(os.path.expanduser(asked.scored), ScoredPair)
        found = (
            [revisions(pairs, [row.model_dump() for row in by_id(read_table(asked.labels), BetterRow).values()])]
            if asked.labels
            else blind_pairs(pairs)
        )
    for line in found:
        print(json.dumps(line, ensure_ascii="utf" not in sys.stdout.encoding.lower()))


if __name__ == "__main__":
    main()
