"""One row of the table each: base, always-refuse, SR, base prompted, SFT, dSC, DPO, refined DPO (rDPO) and its neighbours.

Every trained method gets the same pairs (scored on both sides), the same LoRA, batch and number of epochs; what differs
is what it does with pairs and scores. Readings of the paper's baselines are ours:
SR = self-refinement at inference (the untrained student criticises and rewrites its own answer), SFT = on all
revisions, dSC = SFT on revisions that scored strictly higher than the original (arXiv 2312.01957).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from common.loss import LOSSES, check_method, knobs_of, uses_scores
from common.runtime import checked, nearest, resolve
from common.specs import place_and_commit, spec_of
from common.student.identity import identity, located


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
    row whose student answers, is judged and trains in turns, its arm in `training.rounds.arms`. types: of a row with a
    policy for each hidden type of annotator, whether EM finds who is of which type ("em"), or clusters decide
    ("clusters"), see `training.annotators`. trials_of: the method whose trials decide this one's setting, "" for its
    own.
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
    types: Literal["", "em", "clusters"] = ""
    trials_of: str = ""

    @property
    def kind(self) -> Literal["untrained", "supervised", "preference"]:
        return "preference" if self.loss else "supervised" if self.sft_on else "untrained"

    @property
    def sees_scores(self) -> bool:
        """Whether what it trains depends on the external scores."""
        return (
            bool(self.rounds)
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
    def tuned_as(self) -> str:
        """The method whose trials decide its setting, "" for an untrained row."""
        return "" if self.kind == "untrained" else self.trials_of or self.extrapolates or self.name


@dataclass(frozen=True)
class RoundSettings:
    """What only rows that train in rounds read; all defaults are ours.

    count: rounds of those that train on a new part of the prompts each; prompts: in such a part, 0 divides all of them
    equally. schedule: of active preference learning, the pairs that have been judged in favour of one answer by the end
    of each round. candidate_temperature: of the two answers to a prompt. over_generate: candidates for each pair that is
    looked for, where a row chooses among them. entropy_samples: answers that a prompt's entropy is estimated from.
    """

    count: int = 3
    prompts: int = 0
    schedule: list[int] = field(default_factory=lambda: [64, 128, 192], hash=False)
    candidate_temperature: float = 0.7
    over_generate: int = 8
    entropy_samples: int = 16

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RoundSettings:
        """The settings that a mapping gives. Raises ValueError for a name that is none of them."""
        if unknown := [name for name in given if name not in cls.__dataclass_fields__]:
            raise ValueError(
                f"rounds: unknown setting {unknown[0]!r}{nearest(unknown[0], cls.__dataclass_fields__)}; there are {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**given)

    def read_by(self, arm: str) -> dict[str, Any]:
        """What the rows of an arm read of them."""
        return {name: getattr(self, name) for name in READ_BY[arm]}

    def __post_init__(self):
        """Raises ValueError for a number out of its range and a schedule that does not rise."""
        for name, kind in get_type_hints(RoundSettings).items():
            try:
                checked(name, getattr(self, name), kind)
            except ValueError as error:
                raise ValueError(f"rounds: {error}") from None
        if any(after <= before for before, after in zip(self.schedule, self.schedule[1:])):
            raise ValueError(
                f"rounds: schedule = {self.schedule} does not rise; every round needs more pairs than the one before"
            )


SCHEDULED = ("schedule", "candidate_temperature")
READ_BY = {
    "slices": ("count", "prompts"),
    "random": SCHEDULED,
    "certainty": (*SCHEDULED, "over_generate"),
    "entropy": (*SCHEDULED, "over_generate", "entropy_samples"),
    "hybrid": (*SCHEDULED, "over_generate", "entropy_samples"),
}
"""Arm -> the round settings that its rows read."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings that all trained methods share; all defaults are ours.

    batch_size: pairs a step; micro_batch: pairs computed at a time, the batch in parts, for a machine's memory; 0
    computes it whole.
    learning_rate: of the preference losses; sft_learning_rate: of SFT and dSC, whose gradients have another size.
    beta: see `RDPOConfig`. knobs: of the losses, such as alpha of `rdpo`; others keep their loss's default. nll_weight:
    of the rows with an NLL term. kl_budget: see `RDPOConfig`. steps_share: a training ends after that share of its
    steps, at the learning rates of the whole. unchanged_weight: of the rows that look at edits, see `RDPOConfig`.
    rwr_temperature: of RWR's weights; ca_score: what a student of CA is asked for, in [0, 1]. rounds: of the rows that
    train in rounds. max_length: tokens of prompt and completion. reference: of the preference losses, the student with
    its adapter off ("adapters off", as TRL does with PEFT), or "unquantised", the weights that NF4 was made of, which a
    step-0 policy differs from and memory must hold besides. second_reference: of the rows with a second one,
    "unquantised", `adapter:FOLDER` on the student, or `model:NAME` with the student's tokenizer; mrpo_eta, mrpo_weight:
    see `RDPOConfig`. annotator_types: hidden types of annotators, with a policy each; em_steps: of EM, at most;
    em_start: what it begins with, `clusters` of annotators or probabilities that are drawn ("dirichlet").
    """

    learning_rate: float = 1e-4
    sft_learning_rate: float = 2e-4
    epochs: int = 2
    batch_size: int = 16
    micro_batch: int = 0
    beta: float = 0.1
    knobs: Mapping[str, float] = field(default_factory=dict)
    nll_weight: float = 1.0
    kl_budget: float = 0.0
    steps_share: float = 1.0
    unchanged_weight: float = 0.1
    rwr_temperature: float = 0.25
    ca_score: float = 1.0
    rounds: RoundSettings = RoundSettings()
    lora_rank: int = 16
    max_length: int = 1024
    seed: int = 0
    reference: Literal["adapters off", "unquantised"] = "adapters off"
    second_reference: str = ""
    mrpo_eta: float = 0.1
    mrpo_weight: float | None = None
    annotator_types: int = 2
    em_steps: int = 5
    em_start: Literal["clusters", "dirichlet"] = "clusters"

    def as_dict(self, method: str) -> dict[str, Any]:
        """What a method's training reads of them, the seed included: another method's knob is no part of its mark, nor
        is `micro_batch`, nor the usual reference. Empty for a row that is not trained."""
        if not is_trained(method):
            return {}
        row = METHODS[method]
        own = ["learning_rate", "beta"] if row.loss else ["sft_learning_rate"]
        own += ["nll_weight"] if row.nll_on else []
        own += ["kl_budget"] if row.loss and self.kl_budget else []
        own += ["unchanged_weight"] if row.edits else []
        own += {"weighted": ["rwr_temperature"], "conditioned": ["ca_score"]}.get(row.sft_on, [])
        own += ["steps_share"] if self.steps_share != 1.0 else []
        own += ["mrpo_eta", "mrpo_weight"] if row.references in ("combined", "both") else []
        own += {"em": ["annotator_types", "em_steps", "em_start"], "clusters": ["annotator_types"]}.get(row.types, [])
        own += ["reference"] if row.loss and self.reference != "adapters off" else []
        values = {
            name: getattr(self, name) for name in (*own, "epochs", "batch_size", "lora_rank", "max_length", "seed")
        }
        if row.references != "own":
            values["second_reference"] = by_identity(self.second_reference)
        if row.rounds:
            values["rounds"] = self.rounds.read_by(row.rounds)
        return values | self.knobs_of(row.loss)

    def asked_for(self, method: str) -> float | None:
        """The score that a row's answers are asked for, None where that is no matter of scores."""
        return self.ca_score if method in METHODS and METHODS[method].sft_on == "conditioned" else None

    def knobs_of(self, loss: str) -> dict[str, float]:
        """The knobs of a loss, as it is trained with; {} for none."""
        return {name: self.knobs.get(name, default) for name, default in (knobs_of(loss) if loss else {}).items()}

    def changed(self, **values: Any) -> TrainSettings:
        """The same with other values, of fields or of knobs by their own names. Raises ValueError for a name that is
        neither."""
        own = {name: value for name, value in values.items() if name in TrainSettings.__dataclass_fields__}
        return replace(
            self,
            **{"knobs": {**self.knobs, **{name: value for name, value in values.items() if name not in own}}, **own},
        )

    def __post_init__(self):
        """Raises ValueError for a number that is not finite or out of its range, an unknown knob, a
        second_reference of another form, and a micro_batch that does not divide the batch."""
        for name, kind in get_type_hints(TrainSettings).items():
            if name not in ("knobs", "rounds"):
                checked(name, getattr(self, name), kind)
        there = {name for loss in LOSSES for name in knobs_of(loss)}
        for name, value in self.knobs.items():
            if name not in there:
                raise ValueError(f"unknown setting {name!r}; knobs of losses are {', '.join(sorted(there))}")
            checked(name, value, float)
        if self.second_reference:
            spec_of("second_reference", self.second_reference, alone=("unquantised",), named=("adapter", "model"))
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch = {self.micro_batch} does not divide batch_size = {self.batch_size}; 0 computes the batch whole"
            )


METHODS: dict[str, Method] = {}
"""Every row there is, by name, in the order of tables. A new loss is written in `loss.py`, gets a record here, and its
knob a field in `RDPOConfig`: no other place."""


def register(*methods: Method) -> None:
    """Adds rows to `METHODS`. Raises ValueError for a name that is taken, a loss that is not in `LOSSES`, a search of
    what is neither a knob of it nor a setting, and trials of a method that is not there."""
    for method in methods:
        if method.name in METHODS:
            raise ValueError(f"the method {method.name!r} is there already")
        own = [name for name in method.search if name not in TrainSettings.__dataclass_fields__]
        if method.loss:
            check_method(method.loss, own)
        elif own:
            raise ValueError(f"{method.name} searches {', '.join(own)}, which no supervised row has")
        if method.trials_of and method.trials_of not in METHODS:
            raise ValueError(f"{method.name} takes its setting from {method.trials_of!r}, which is no method")
        METHODS[method.name] = method


register(
    Method("base", "base student", "#444444"),
    Method("always_refuse", "always refuse", "#999999"),
    Method("sr", "SR (our reading)", "#8c564b"),
    Method("prompted", "base, prompted", "#bc80bd"),
    Method("sft", "SFT", "#2ca02c", sft_on="all"),
    Method("dsc", "dSC", "#17becf", sft_on="accepted"),
    Method("fa", "FA", "#98df8a", sft_on="best"),
    Method("rwr", "RWR", "#637939", sft_on="weighted", search={"rwr_temperature": (0.05, 2.0)}),
    Method("ca", "CA", "#9edae5", sft_on="conditioned"),
    Method("figa", "FIGA", "#b5cf6b", sft_on="edits"),
    Method("dpo", "DPO", "#d62728", loss="dpo"),
    Method("cdpo", "cDPO", "#ff9896", loss="cdpo", search={"label_smoothing": (0.05, 0.4)}),
    Method("robust", "robust DPO", "#e377c2", loss="robust", search={"label_smoothing": (0.05, 0.4)}),
    Method("ipo", "IPO", "#bcbd22", loss="ipo"),
    Method("rdpo", "rDPO (offset)", "#1f77b4", loss="rdpo", search={"alpha": (0.5, 4.0)}),
    Method("rdpo_label", "rDPO (label)", "#17a398", loss="rdpo_label", search={"tau": (0.25, 0.75), "eta": (0.5, 8.0)}),
    Method("rdpo_ml", "rDPO (rating likelihood)", "#c5b0d5", loss="rdpo_ml", search={"eta": (0.5, 8.0), "variance": (0.25, 4.0)}),
    Method("rdpo_soft", "rDPO (soft)", "#5b9bd5", loss="rdpo_soft", search={"eta": (0.5, 8.0)}),
    Method("rdpo_squared", "rDPO (squared)", "#9467bd", loss="rdpo_squared", search={"eta": (0.5, 8.0)}),
    Method("rdpo_filter", "DPO on accepted pairs", "#ff7f0e", loss="rdpo_filter"),
    Method("rdpo_flip", "rDPO (flip)", "#7f7f7f", loss="rdpo_flip"),
    Method("dpo_nll", "DPO + NLL", "#8b0000", loss="dpo", nll_on="all", trials_of="dpo"),
    Method("rdpo_nll", "rDPO (offset) + NLL", "#08306b", loss="rdpo", nll_on="all", trials_of="rdpo"),
    Method("dpo_nll_accepted", "DPO + NLL on accepted", "#cb181d", loss="dpo", nll_on="accepted", trials_of="dpo"),
    Method("rdpo_nll_accepted", "rDPO (offset) + NLL on accepted", "#2171b5", loss="rdpo", nll_on="accepted", trials_of="rdpo"),
    Method("label_nll", "rDPO (label) + NLL", "#0b5345", loss="rdpo_label", nll_on="all", search={"tau": (0.25, 0.75), "eta": (0.5, 8.0)}),
    Method("filter_nll", "DPO + NLL, both on accepted", "#b35900", loss="rdpo_filter", nll_on="accepted"),
    Method("token_dpo", "DPO on edited tokens", "#f28e2b", loss="dpo", edits=True, search={"unchanged_weight": (0.03, 0.5)}),
    Method("mrpo", "MRPO", "#a6761d", loss="dpo", references="combined", search={"mrpo_eta": (0.01, 1.0)}),
    Method("rdpo_mrpo", "rDPO (offset) + MRPO", "#66a61e", loss="rdpo", references="combined", trials_of="rdpo"),
    Method("dpo_second", "DPO, second reference", "#e7298a", loss="dpo", references="second", trials_of="dpo"),
    Method("multi_dpo", "multi-reference DPO", "#7570b3", loss="dpo", references="both", trials_of="mrpo"),
    Method("dpo_expo", "DPO + ExPO", "#e45756", loss="dpo", extrapolates="dpo"),
    Method("rdpo_expo", "rDPO (offset) + ExPO", "#4c78a8", loss="rdpo", extrapolates="rdpo"),
    Method("iterative_dpo", "iterative DPO", "#e6550d", loss="dpo", rounds="slices"),
    Method("iterative_nll", "iterative DPO + NLL", "#a63603", loss="dpo", nll_on="all", rounds="slices"),
    Method("rdpo_rounds", "rDPO (offset) in rounds", "#3182bd", loss="rdpo", rounds="slices", search={"alpha": (0.5, 4.0)}),
    Method("apl_random", "DPO on random pairs", "#969696", loss="dpo", rounds="random"),
    Method("apl_entropy", "APL (entropy)", "#756bb1", loss="dpo", rounds="entropy"),
    Method("apl_certainty", "APL (certainty)", "#31a354", loss="dpo", rounds="certainty"),
    Method("apl_hybrid", "APL (hybrid)", "#006d2c", loss="dpo", rounds="hybrid"),
    Method("em_dpo", "EM-DPO", "#fdb462", loss="dpo", types="em", trials_of="dpo"),
    Method("cluster_dpo", "Cluster-DPO", "#80b1d3", loss="dpo", types="clusters", trials_of="dpo"),
    Method("route", "routed by score", "#6a3d9a", loss="route", nll_on="better", search={"clear": (0.1, 0.8)}),
)  # fmt: skip

EXISTING = {
    "adapter": "a PEFT folder on top of the student",
    "model": "a folder or Hub name in the student's place",
    "endpoint": "a model behind an endpoint",
}
"""Rows that are evaluated as they are, written `adapter:FOLDER`, `model:FOLDER_OR_HUB_NAME` or `endpoint:MODEL`: an
adapter on the student as the student is loaded and with the tokenizer beside it, at half its strength as
`adapter:FOLDER@0.5`, a model with its own weights
(`student.load_as_it_is`), never rounded to NF4."""


def check_methods(methods: Sequence[str]) -> None:
    """Raises ValueError for a name that is no row of the table, FileNotFoundError for an adapter or a folder that is
    not there."""
    unknown = [method for method in methods if method not in METHODS and not existing(method)]
    if unknown:
        raise ValueError(
            f"unknown method {', '.join(unknown)}{nearest(unknown[0], METHODS)}; there are {', '.join(METHODS)}, and what exists as {', '.join(f'{kind}:...' for kind in EXISTING)}"
        )
    for method in methods:
        place = existing_place(method) if existing(method) in ("adapter", "model") else Path()
        if existing(method) == "adapter" and not Path(place, "adapter_config.json").exists():
            raise FileNotFoundError(
                f"{method}: no adapter_config.json in {place}; give the folder that PEFT's save_pretrained wrote"
            )
        if (
            existing(method) == "model"
            and Path(place, "adapter_config.json").exists()
            and not Path(place, "config.json").exists()
        ):
            raise ValueError(f"{method}: {place} holds an adapter and no model; write adapter: in place of model:")


def check_references(methods: Sequence[str], settings: TrainSettings) -> None:
    """Raises ValueError for a row that has no second reference to read, and what `check_methods` does for one that is
    not there."""
    if reads := [method for method in methods if method in METHODS and METHODS[method].references != "own"]:
        if not settings.second_reference:
            raise ValueError(
                f"{reads[0]} compares with a second model; set second_reference to unquantised, adapter:FOLDER or model:NAME"
            )
        try:
            check_methods([settings.second_reference] if existing(settings.second_reference) else [])
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"second_reference: {error}") from None


def existing(method: str) -> str:
    """Which kind of `EXISTING` a row is, "" for a row that is trained or made here."""
    kind, _, name = method.partition(":")
    return kind if kind in EXISTING and name else ""


def is_trained(method: str) -> bool:
    """Whether a row is trained here, so that every seed gives another student."""
    return method in METHODS and METHODS[method].kind != "untrained"


def sees_scores(method: str) -> bool:
    """Whether a row that is trained here depends on the external scores."""
    return method in METHODS and METHODS[method].sees_scores


def label_of(method: str) -> str:
    """What a row is called in tables; what exists is called by its own name."""
    return METHODS[method].label if method in METHODS else method


def existing_place(method: str) -> Path | str:
    """The folder of an `adapter:` or `model:`, or the Hub name of a `model:`, without its strength or commit. Raises
    what `identity.located` does."""
    return located(_parted(method)[0])


def existing_commit(method: str) -> str:
    """The commit of a `model:NAME@commit`, "" for none."""
    return _parted(method)[1] if existing(method) == "model" else ""


def by_identity(method: str) -> str:
    """An `adapter:` or `model:` by what it is, wherever it lies, for marks; any other name as it is. Raises what
    `existing_place` does."""
    kind = existing(method)
    if kind not in ("adapter", "model"):
        return method
    strength = existing_strength(method)
    behind = existing_commit(method) or (f"{strength:g}" if strength != 1.0 else "")
    return f"{kind}:{identity(existing_place(method))}{behind and '@' + behind}"


def existing_strength(method: str) -> float:
    """How many times an adapter counts: .5 in `adapter:FOLDER@0.5`, 1 where nothing is said."""
    strength = _parted(method)[1] if existing(method) == "adapter" else ""
    return float(strength) if strength else 1.0


def _parted(method: str) -> tuple[str, str]:
    """(folder or Hub name; what stands behind its @: the strength of an adapter, the commit of a model)."""
    kind, _, text = method.partition(":")
    if kind != "adapter":
        return place_and_commit(text)
    folder, _, strength = text.rpartition("@")
    is_strength = folder and re.fullmatch(r"\d+(\.\d+)?|\.\d+", strength) and not resolve(text).exists()
    return (folder, strength) if is_strength else (text, "")
