"""The settings of a training: what all rows share, and what some of them read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, Self, get_type_hints

from common.loss import LOSSES, knobs_of
from common.methods.existing import by_identity, check_methods, existing
from common.methods.record import METHODS, is_trained
from common.runtime import checked, nearest
from common.specs import spec_of


class Group:
    """Settings that only some rows read, given together as a mapping. title: of the mapping."""

    title: ClassVar[str]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The settings that a mapping gives. Raises ValueError for a name that is none of them."""
        there = [one.name for one in fields(cls)]
        if unknown := [name for name in given if name not in there]:
            raise ValueError(
                f"{cls.title}: unknown setting {unknown[0]!r}{nearest(unknown[0], there)}; there are {', '.join(there)}"
            )
        return cls(**given)

    def __post_init__(self):
        """Raises ValueError for a number out of its range."""
        kinds = get_type_hints(type(self))
        for name in (one.name for one in fields(self)):
            try:
                checked(name, getattr(self, name), kinds[name])
            except ValueError as error:
                raise ValueError(f"{self.title}: {error}") from None


@dataclass(frozen=True)
class RoundSettings(Group):
    """What only rows that train in rounds read; all defaults are ours.

    count: rounds of those that train on a new part of the prompts each; prompts: in such a part, 0 divides all of them
    equally. schedule: of active preference learning, the pairs that have been judged by the end of each round, ties
    among them; the authors go to 768 of thousands of prompts, ours is for hundreds. epochs: of the training of each of its rounds, on all pairs so far, of which there are
    few at first; the authors take 50 and 70. candidate_temperature: of the two answers to a prompt. over_generate: candidates for each pair that is
    looked for, where a row chooses among them. entropy_samples: answers that a prompt's entropy is estimated from.
    cut_at_sentence: an answer that was cut off ends with its last whole sentence and counts as whole, for a student whose
    answers seldom end within max_new_tokens.
    """

    title: ClassVar[str] = "rounds"

    count: int = 3
    prompts: int = 0
    schedule: list[int] = field(default_factory=lambda: [16, 32, 48], hash=False)
    epochs: int = 50
    candidate_temperature: float = 0.7
    over_generate: int = 8
    entropy_samples: int = 16
    cut_at_sentence: bool = False

    def read_by(self, arm: str) -> dict[str, Any]:
        """What the rows of an arm read of them; `cut_at_sentence` where it is on."""
        read = {name: getattr(self, name) for name in READ_BY[arm]}
        return read | ({"cut_at_sentence": True} if self.cut_at_sentence else {})

    def __post_init__(self):
        """Raises ValueError for a number out of its range and a schedule that does not rise."""
        super().__post_init__()
        if any(after <= before for before, after in zip(self.schedule, self.schedule[1:])):
            raise ValueError(
                f"rounds: schedule = {self.schedule} does not rise; every round needs more pairs than the one before"
            )


SCHEDULED = ("schedule", "epochs", "candidate_temperature")
READ_BY = {
    "slices": ("count", "prompts"),
    "random": SCHEDULED,
    "certainty": (*SCHEDULED, "over_generate"),
    "entropy": (*SCHEDULED, "over_generate", "entropy_samples"),
    "hybrid": (*SCHEDULED, "over_generate", "entropy_samples"),
}
"""Arm -> the round settings that its rows read."""


@dataclass(frozen=True)
class SelfAugmentedSettings(Group):
    """What only rows of SAPO read.

    segment: tokens of a good answer that are made anew, at most. ema: share of its own weights that the moving copy,
    which makes them, keeps at a step, in [0, 1]; 0 is the policy itself, 1 the student before training. buffer: pairs
    that a batch is drawn from, at most. The defaults are the authors', but for a segment of 16: theirs has 256 tokens,
    more than most answers here.
    """

    title: ClassVar[str] = "self_augmented"

    segment: int = 16
    ema: float = 0.5
    buffer: int = 2000


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
    train in rounds. optimism: of the rows that explore, see `RDPOConfig`; the default is alpha of SELM's authors for
    Zephyr and Phi-3. self_augmented: of those of SAPO. max_length: tokens of prompt and completion. reference: of the
    preference losses, the student with its adapter off ("adapters off", as TRL does with PEFT), or "unquantised", the
    weights that NF4 was made of, which a step-0 policy differs from and memory must hold besides. second_reference: of
    the rows with a second one, "unquantised", `adapter:FOLDER` on the student, or `model:NAME` with the student's
    tokenizer; mrpo_eta, mrpo_weight: see `RDPOConfig`. annotator_types: hidden types of annotators, with a policy each;
    em_steps: of EM, at most; em_start: what it begins with, `clusters` of annotators or probabilities that are drawn
    ("dirichlet"). report_to: a tracker that is installed, which is told of every logged step; no part of a mark.
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
    optimism: float = 0.001
    self_augmented: SelfAugmentedSettings = SelfAugmentedSettings()
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
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"

    def as_dict(self, method: str) -> dict[str, Any]:
        """What a method's training reads of them, the seed included: another method's knob is no part of its mark, nor
        is the usual reference, nor `micro_batch` where parts of a batch make the training of the whole. Empty for a row
        that is not trained."""
        if not is_trained(method):
            return {}
        row = METHODS[method]
        own = ["learning_rate", "beta"] if row.loss else ["sft_learning_rate"]
        own += ["nll_weight"] if row.nll_on else []
        own += ["kl_budget"] if row.loss and self.kl_budget else []
        own += ["unchanged_weight"] if row.edits else []
        own += ["optimism"] if row.explores else []
        own += {"weighted": ["rwr_temperature"], "conditioned": ["ca_score"]}.get(row.sft_on, [])
        own += ["micro_batch"] if row.sft_on == "edits" and self.micro_batch else []
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
        if row.remakes == "segments":
            values["self_augmented"] = asdict(self.self_augmented)
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
        second_reference of another form, a micro_batch that does not divide the batch, and a tracker that is not
        installed."""
        for name, kind in get_type_hints(TrainSettings).items():
            if name not in ("knobs", "rounds", "self_augmented"):
                checked(name, getattr(self, name), kind)
        there = _knob_names()
        for name, value in self.knobs.items():
            if name not in there:
                raise ValueError(f"unknown setting {name!r}; knobs of losses are {', '.join(sorted(there))}")
            checked(name, value, float)
        if self.second_reference:
            spec_of("second_reference", self.second_reference, alone=("unquantised",), named=("adapter", "model"))
        if self.report_to != "none" and not find_spec(self.report_to):
            raise ValueError(
                f"report_to = {self.report_to!r}, which is not installed: .venv/bin/pip install {self.report_to}"
            )
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch = {self.micro_batch} does not divide batch_size = {self.batch_size}; 0 computes the batch whole"
            )


def check_references(methods: Sequence[str], settings: TrainSettings) -> None:
    """Raises ValueError for a row that has no second reference to read or makes its own reference, and what
    `check_methods` does for one that is not there."""
    moving = [method for method in methods if method in METHODS and METHODS[method].remakes]
    if moving and settings.reference != "adapters off":
        raise ValueError(
            f"{moving[0]}: the reference is the policy of an earlier step; leave reference = {settings.reference} out"
        )
    if reads := [method for method in methods if method in METHODS and METHODS[method].references != "own"]:
        if not settings.second_reference:
            raise ValueError(
                f"{reads[0]} compares with a second model; set second_reference to unquantised, adapter:FOLDER or model:NAME"
            )
        try:
            check_methods([settings.second_reference] if existing(settings.second_reference) else [])
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"second_reference: {error}") from None


def setting_names() -> set[str]:
    """The names that `TrainSettings.changed` takes: of fields, and of the knobs of losses."""
    return {*TrainSettings.__dataclass_fields__, *_knob_names()}


def _knob_names() -> set[str]:
    return {name for loss in LOSSES for name in knobs_of(loss)}
