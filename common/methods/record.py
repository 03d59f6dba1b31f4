"""What a row of the table is, as a record, and all of them by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from common.loss import uses_scores


@dataclass(frozen=True)
class Method:
    """One row of the table.

    label, color: in tables and figures. loss: of the rows trained with a preference loss, a name in `LOSSES`. nll_on:
    the answers whose likelihood is added to that loss, with the settings' `nll_weight`: all chosen ones alike, accepted
    ones (that term is dSC, so such a row is a control and no refined DPO), or of every pair the answer that scored better.
    sft_on: what a supervised row learns, see `training.supervised`. search: knob -> the lowest and highest value that
    tuning tries, on a logarithmic scale. edits: whether tokens that both answers share count less, by the settings' `unchanged_weight`.
    references: what the loss compares the policy with, see `loss.weighted_references`; all but "own" read the settings'
    `second_reference`. extrapolates: the row whose training this one turns up, see `training.extrapolate`. rounds: of a
    row whose student answers, is judged and trains in turns, its arm in `training.rounds.arms`. explores: whether the
    student's own answer of the round enters the loss besides, by the settings' `optimism`. types: of a row with a
    policy for each hidden type of annotator, whether EM finds who is of which type ("em"), or clusters decide
    ("clusters"), see `training.annotators`. remakes: of a row whose student makes its rejected answers as it trains,
    what it makes anew of a good answer, see `training.self_augmented`; accepted_only: its good answers are accepted
    revisions, not all. trials_of: the method whose trials decide this one's setting, "" for its own.
    """

    name: str
    label: str
    color: str
    loss: str = ""
    nll_on: Literal["", "all", "accepted", "better"] = ""
    sft_on: Literal["", "all", "accepted", "best", "weighted", "conditioned", "edits"] = ""
    search: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    edits: bool = False
    references: Literal["own", "combined", "second", "both"] = "own"
    extrapolates: str = ""
    rounds: str = ""
    explores: bool = False
    types: Literal["", "em", "clusters"] = ""
    remakes: Literal["", "segments", "answers"] = ""
    accepted_only: bool = False
    trials_of: str = ""

    @property
    def kind(self) -> Literal["untrained", "supervised", "preference"]:
        return "preference" if self.loss else "supervised" if self.sft_on else "untrained"

    @property
    def sees_scores(self) -> bool:
        """Whether what it trains depends on the external scores."""
        return (
            bool(self.rounds)
            or self.accepted_only
            or self.sft_on not in ("", "all", "edits")
            or self.nll_on in ("accepted", "better")
            or bool(self.loss)
            and uses_scores(self.loss)
        )

    @property
    def needs_pairs_alone(self) -> bool:
        """Whether it is trained on pairs and a student, without prompts to choose by, a score to ask for, another model,
        a judge or annotators."""
        needs_more = self.extrapolates or self.rounds or self.types or self.sft_on == "conditioned"
        return self.kind != "untrained" and not needs_more and self.references == "own"

    @property
    def takes_answers(self) -> bool:
        """Whether single answers will do, which need not be pairs."""
        return (
            self.sft_on in ("all", "best", "weighted", "conditioned") or bool(self.remakes) and not self.accepted_only
        )

    @property
    def learns(self) -> Literal["pairs", "answers"]:
        """What is counted as used of pairs: both answers of a pair, where each is a row of its own."""
        return "answers" if self.sft_on in ("weighted", "conditioned") else "pairs"

    @property
    def tuned_as(self) -> str:
        """The method whose trials decide its setting, "" for an untrained row."""
        return "" if self.kind == "untrained" else self.trials_of or self.extrapolates or self.name


METHODS: dict[str, Method] = {}
"""Every row there is, by name, in the order of tables. A new loss is written in `loss.py`, gets a record here, and its
knob a field in `RDPOConfig`: no other place."""


def is_trained(method: str) -> bool:
    """Whether a row is trained here, so that every seed gives another student."""
    return method in METHODS and METHODS[method].kind != "untrained"


def sees_scores(method: str) -> bool:
    """Whether a row that is trained here depends on the external scores."""
    return method in METHODS and METHODS[method].sees_scores


def label_of(method: str) -> str:
    """What a row is called in tables; what exists is called by its own name."""
    return METHODS[method].label if method in METHODS else method
