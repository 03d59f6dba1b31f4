"""Judges and a rater's labels: a judge learned from them, one calibrated on them, and any judge checked against them.

A labels file holds one answer a line with the labels of one rater's two readings, the second blind to the first:
`{"id": ..., "prompt": ..., "answer": ..., "score": [1, 1]}`; for sycophancy `sentiment` and `quality` stand in the
place of `score`. 1 is what the judge should put into the upper half of its scale. A line whose texts may not be copied
has only its `id` (`answer_id`), and a second file supplies them: `prompt` and `answer`, or judged pages
(`recorded.load_judged`). Every table is JSONL, or whatever else `readers.read_rows` reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, create_model

from common.data.readers import read_table
from common.data.recorded import JudgedAnswer, load_judged
from common.judge.base import FeedbackJudge, Judge, Judgement
from common.judge.local import LocalJudge
from common.schema import answer_id, fingerprint
from common.statistics import agreement

LABELS = {
    "0": 0,
    "0.0": 0,
    "1": 1,
    "1.0": 1,
}  # a table's cells may be texts, and pandas writes whole numbers so; True is neither
Label = Annotated[Literal[0, 1], BeforeValidator(lambda cell: LABELS.get(str(cell).strip(), str(cell)))]
Readings = Annotated[
    tuple[Label, Label],
    BeforeValidator(lambda cell: re.findall(r"[^\s,;]+", cell.strip("[]() ")) if isinstance(cell, str) else cell),
]
"""A rater's labels of two readings; in a CSV `1 1`, or `[1, 1]`."""


class AnswerRow(BaseModel):
    prompt: str
    answer: str


class LabelRow(BaseModel):
    id: str = ""
    prompt: str | None = None
    answer: str | None = None


class Labelled(NamedTuple):
    """An answer that a rater labelled: 1 for what the judge should score high, else 0."""

    prompt: str
    answer: str
    label: int


def judge_agreement(judge: Judge, labelled: Sequence[Labelled]) -> dict[str, Any]:
    """The judge against a rater's labels: look at this before trusting it.

    The judge says 1 where its score lies in the upper half of its scale, as the tables count it. Returns share of
    `equal` verdicts, Cohen's `kappa`, `n`, `sensitivity` and `specificity` (shares of the answers labelled 1 and 0 whose
    verdict is that; None where there are none), how many answers stayed `unscored` (they are in none of these), and the
    `errors`, each with prompt, answer, label, score and raw reply.
    """
    return _agreement(labelled, _judged(judge, labelled), sum(judge.scale) / 2)


class CalibratedJudge:
    """A judge whose scores are mapped to the probability of a rater's label 1: Platt scaling, a logistic regression on
    the score, which moves the point that counts as half and keeps the order of the answers. It has two parameters, so a
    few dozen labels are enough (isotonic regression wants hundreds).

    Raises ValueError when labels or scores are all the same, or the scores fall where the labels rise.
    """

    scale = (0.0, 1.0)

    def __init__(self, judge: Judge, scores: Sequence[float], labels: Sequence[int]):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(set(labels)) < 2 or len(set(scores)) < 2:
            raise ValueError(
                f"{judge.name} cannot be calibrated: that takes answers of both labels and different scores"
            )
        self._judge, self.name = judge, f"{judge.name}, calibrated"
        self._model = make_pipeline(StandardScaler(), LogisticRegression()).fit([[score] for score in scores], labels)
        if self._model[-1].coef_[0, 0] <= 0:
            raise ValueError(
                f"{judge.name} scores answers of label 1 lower than those of label 0; turn its question around or take another judge"
            )

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """One judgement per answer; what the judge leaves unscored stays so."""
        return self.map(self._judge.judge(prompts, answers))

    def map(self, judged: Sequence[Judgement]) -> list[Judgement]:
        """The judge's own judgements with calibrated scores."""
        return [
            j if j.score is None else Judgement(float(self._model.predict_proba([[j.score]])[0, 1]), j.reply)
            for j in judged
        ]


def calibrate(
    judge: Judge, labelled: Sequence[Labelled], seed: int = 0
) -> tuple[CalibratedJudge, dict[str, dict[str, Any]]]:
    """A calibrated judge, fitted on one half of the labels, and its `judge_agreement` on the other half beside that of
    the judge as it is. The halves hold both labels in equal shares; each answer is judged once."""
    from sklearn.model_selection import train_test_split

    fit, check = train_test_split(
        range(len(labelled)), test_size=0.5, stratify=[item.label for item in labelled], random_state=seed
    )
    judged = _judged(judge, labelled)
    scored = [(judged[i].score, labelled[i].label) for i in fit if judged[i].score is not None]
    calibrated = CalibratedJudge(judge, [score for score, _ in scored], [label for _, label in scored])
    held_out, verdicts = [labelled[i] for i in check], [judged[i] for i in check]
    return calibrated, {
        "as it is": _agreement(held_out, verdicts, sum(judge.scale) / 2),
        "calibrated": _agreement(held_out, calibrated.map(verdicts), 0.5),
    }


def _judged(judge: Judge, labelled: Sequence[Labelled]) -> list[Judgement]:
    return judge.judge([item.prompt for item in labelled], [item.answer for item in labelled])


def _agreement(labelled: Sequence[Labelled], judged: Sequence[Judgement], middle: float) -> dict[str, Any]:
    scored = [
        (item, judgement) for item, judgement in zip(labelled, judged, strict=True) if judgement.score is not None
    ]
    verdicts = [int(judgement.score > middle) for _, judgement in scored]
    errors = [
        {**item._asdict(), "score": judgement.score, "reply": judgement.reply}
        for (item, judgement), verdict in zip(scored, verdicts)
        if verdict != item.label
    ]
    right = {
        label: [verdict == label for (item, _), verdict in zip(scored, verdicts) if item.label == label]
        for label in (1, 0)
    }
    return {
        **agreement([item.label for item, _ in scored], verdicts),
        **{
            name: sum(right[label]) / len(right[label]) if right[label] else None
            for name, label in (("sensitivity", 1), ("specificity", 0))
        },
        "unscored": len(labelled) - len(scored),
        "errors": errors,
    }


def _texts(path: Path) -> list[AnswerRow | JudgedAnswer]:
    """Prompts and answers of a table, or of judged pages as `recorded.load_judged` reads them."""
    return (
        load_judged(path)
        if path.is_dir() or path.suffix == ".md"
        else [row.read(AnswerRow) for row in read_table(path)]
    )


def read_labels(path: str | Path, criterion: str = "score", texts: str | Path = "") -> tuple[list[Labelled], list[int]]:
    """(answers with the label of the first reading, labels of the second).

    Raises ValueError naming file and line for a line without two labels 0 or 1 of the criterion, without its texts, or
    with an answer that another line labels.
    """
    found = {answer_id(row.prompt, row.answer): row for row in _texts(Path(texts))} if texts else {}
    row_type = create_model("LabelledRow", __base__=LabelRow, **{criterion: (Readings, ...)})
    labelled, again, places = [], [], {}
    for row in read_table(path):
        read = row.read(row_type)
        source = read if read.prompt and read.answer is not None else found.get(read.id)
        if source is None:
            where = (
                f"{texts} has no answer of this id"
                if texts
                else "only an id; name, as a second file of labels, the one with the prompt and answer that it stands for"
            )
            raise ValueError(f"{row.where}: {where}")
        if (before := places.setdefault(answer_id(source.prompt, source.answer), row.where)) != row.where:
            raise ValueError(f"{row.where}: the same prompt and answer as in {before}; delete one of them")
        first, second = getattr(read, criterion)
        labelled.append(Labelled(source.prompt, source.answer, first))
        again.append(second)
    return labelled, again


def trusted(
    judge: Judge | FeedbackJudge, labels_file: str | Path, texts: str | Path = "", least_kappa: float = 0.0
) -> tuple[Judge | FeedbackJudge, dict[str, Any]]:
    """The judge to use, and per criterion how the rater agrees with themselves and the judge with the rater's first
    labels.

    A reward head or yes/no judge is calibrated on one half of the labels and checked on the other; what comes back is
    the calibrated judge. Any other judge comes back as it is.

    Raises:
        ValueError: Cohen's kappa is below `least_kappa`, or undefined; or the labels cannot be read.
    """
    if not isinstance(judge, FeedbackJudge):
        judge, found = _trusted(judge, "score", labels_file, texts, least_kappa)
        return judge, {"score": found}
    sentiment, felt = _trusted(judge.sentiment, "sentiment", labels_file, texts, least_kappa)
    quality, good = _trusted(judge.quality, "quality", labels_file, texts, least_kappa)
    return FeedbackJudge(sentiment, quality), {"sentiment": felt, "quality": good}


def _trusted(
    judge: Judge, criterion: str, labels_file: str | Path, texts: str | Path, least_kappa: float
) -> tuple[Judge, dict[str, Any]]:
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
        raise ValueError(
            f"{judge.name} cannot be trusted with {criterion}: its kappa against {labels_file} is {seen}, and least_kappa = {least_kappa:g}; take another judge, or read its errors with a lower limit"
        )
    return judge, found
