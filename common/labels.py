"""Labelled answers, and what they say of a judge before it is trusted.

A labels file holds one answer a line with the labels of one rater's two readings, the second blind to the first:
`{"id": ..., "prompt": ..., "answer": ..., "score": [1, 1]}`; for sycophancy `sentiment` and `quality` stand in the place of
`score`. 1 is what the judge should put into the upper half of its scale. A line whose texts may not be copied has only
its `id`, the fingerprint of prompt and answer, and a second file of `prompt` and `answer` supplies them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.judge import FeedbackJudge, Judge, Labelled, calibrate, judge_agreement
from common.local_judges import LocalJudge
from common.schema import fingerprint
from common.statistics import agreement
from common.storage import read_lines


def read_labels(path: str | Path, criterion: str = "score", texts: str | Path = "") -> tuple[list[Labelled], list[int]]:
    """(answers with the label of the first reading, labels of the second).

    Raises ValueError naming file and line for a line without two labels 0 or 1 of the criterion, or without its texts.
    """
    found = {fingerprint(row["prompt"], row["answer"]): row for _, row in read_lines(texts)} if texts else {}
    labelled, again = [], []
    for number, row in read_lines(path):
        readings = row.get(criterion)
        if not isinstance(readings, list) or len(readings) != 2 or not {*readings} <= {0, 1}:
            raise ValueError(f"{path}, line {number}: {criterion} must hold the labels of two readings, each 0 or 1, not {readings!r}")
        source = row if "answer" in row else found.get(row.get("id"))
        if source is None:
            where = f"{texts} has no answer of this id" if texts else "only an id; give labels_texts, a JSONL file with the prompt and answer that it stands for"
            raise ValueError(f"{path}, line {number}: {where}")
        labelled.append(Labelled(source["prompt"], source["answer"], readings[0]))
        again.append(readings[1])
    return labelled, again


def trusted(judge: Judge | FeedbackJudge, labels_file: str | Path, texts: str | Path = "", least_kappa: float = 0.0) -> tuple[Judge | FeedbackJudge, dict[str, Any]]:
    """The judge to use, and per criterion how the rater agrees with themselves and the judge with the rater's first labels.

    A reward head or yes/no judge is calibrated on one half of the labels and checked on the other; what comes back is the
    calibrated judge. Any other judge comes back as it is.

    Raises:
        ValueError: Cohen's kappa is below `least_kappa`, or undefined; or the labels cannot be read.
    """
    if not isinstance(judge, FeedbackJudge):
        judge, found = _trusted(judge, "score", labels_file, texts, least_kappa)
        return judge, {"score": found}
    sentiment, felt = _trusted(judge.sentiment, "sentiment", labels_file, texts, least_kappa)
    quality, good = _trusted(judge.quality, "quality", labels_file, texts, least_kappa)
    return FeedbackJudge(sentiment, quality), {"sentiment": felt, "quality": good}


def _trusted(judge: Judge, criterion: str, labels_file: str | Path, texts: str | Path, least_kappa: float) -> tuple[Judge, dict[str, Any]]:
    labelled, again = read_labels(labels_file, criterion, texts)
    found = {"rater twice": agreement([item.label for item in labelled], again)}
    if isinstance(judge, LocalJudge):
        judge, checks = calibrate(judge, labelled)
        judge.name += f" on {fingerprint(labelled)}"
        found |= checks
        kappa = checks["calibrated"]["kappa"]
    else:
        found["judge"] = judge_agreement(judge, labelled)
        kappa = found["judge"]["kappa"]
    if kappa is None or kappa < least_kappa:
        seen = "undefined" if kappa is None else f"{kappa:.2f}"
        raise ValueError(f"{judge.name} cannot be trusted with {criterion}: its kappa against {labels_file} is {seen}, and least_kappa = {least_kappa:g}; take another judge, or read its errors with a lower limit")
    return judge, found
