"""A judge learnt from labelled answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from common.data.readers import read_table
from common.judge.agreement import Label
from common.judge.base import Judgement
from common.schema import fingerprint


class LearnedRow(BaseModel):
    text: str
    label: Label


class LearnedJudge:
    """A reward model learned from labelled answers: logistic regression on words and word pairs. No network, no GPU.

    It judges style more than truth and holds only for text like that it was fitted on: check it on labelled answers of
    the model at hand before trusting it. Scores are probabilities in [0, 1] that the answer belongs to label 1.
    """

    scale = (0.0, 1.0)

    def __init__(self, answers: Sequence[str], labels: Sequence[int], name: str = "learned judge"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        if len(set(labels)) < 2:
            raise ValueError("a judge is learned from answers of both labels, 0 and 1")
        self.name = name
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        self._model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000)).fit(answers, labels)

    @classmethod
    def from_file(cls, path: str | Path) -> LearnedJudge:
        """Learned from a table of `text` and `label` (1 scores high, or 0), whose content stands in the judge's name.

        Raises ValueError naming the line that lacks one of them.
        """
        rows = [row.read(LearnedRow) for row in read_table(path)]
        texts, labels = [row.text for row in rows], [row.label for row in rows]
        return cls(texts, labels, f"learned from {Path(path).name} {fingerprint(texts, labels)}")

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """One judgement per answer, to six digits, as far as every CPU finds the same; the prompt is not read."""
        return (
            [Judgement(round(float(p), 6), f"p = {p:.3f}") for p in self._model.predict_proba(answers)[:, 1]]
            if answers
            else []
        )


def cross_fitted_scores(
    answers: Sequence[str], labels: Sequence[int], groups: Sequence[str], folds: int = 5
) -> list[float]:
    """Scores of a `LearnedJudge` for the very answers it learns from: each answer is scored by a judge that saw no
    answer of its group."""
    from sklearn.model_selection import GroupKFold

    scores = [0.0] * len(answers)
    for fit, held_out in GroupKFold(folds).split(answers, labels, groups):
        judge = LearnedJudge([answers[i] for i in fit], [labels[i] for i in fit])
        for i, judgement in zip(held_out, judge.judge([""] * len(held_out), [answers[i] for i in held_out])):
            scores[i] = judgement.score
    return scores
