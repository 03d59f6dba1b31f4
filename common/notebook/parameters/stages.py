"""The parameters of each stage: typed, with defaults and ranges, checked before any work starts.

A notebook declares in its first cell the parameters that a reader may want to change. All others may be given as well:
by `papermill -p`, by `python -m common.batch -p`, in a profile, or in the YAML file that `settings` names.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from common.data.counterfactual import variant_named
from common.data.formats.record import check_score_range
from common.methods import RoundSettings, SelfAugmentedSettings, TrainSettings, check_methods, check_references
from common.notebook.parameters.checked import Checked
from common.notebook.providers import read_providers
from common.runtime import resolve
from common.schema import ScoreScale
from common.specs import Spec, spec_of
from common.storage.shards import shard_of

INPUTS = {"reward_score": "pairs.jsonl", "train_rdpo": "scored.jsonl"}
"""What a notebook begins with, in the folder of its run."""
MINIATURES = ("miniature", "micro")
"""Names of students that the laboratory makes, see `common.miniature.lab`."""
TRAINING = TrainSettings()


class Stage(Checked):
    """What all stages have.

    output: folder of the run, from the project root. providers: YAML file of endpoints (`common.notebook.providers`).
    settings: YAML file with more parameters of this stage. local_batch: conversations that a local teacher or judge
    answers at a time.
    """

    experiment: str
    output: str
    providers: str = ""
    settings: str = ""
    local_batch: int = 16

    def _checks(self) -> list[Callable[[], object]]:
        return [lambda: read_providers(self.providers)]


class GenerateData(Stage):
    """Of `generate_data`.

    pairs: self_critique, recorded, or counterfactual_ and a variant. teacher: who answers, criticises and revises.
    respond_with: who gives the first answers, where that is not the teacher. source: file or Hub data set (name@commit)
    of prompts; "" for the miniature's own. prompts: how many; with a source at most so many, 0 for all. shard: "3/8" for
    the third of eight parts of them, to be merged by `common.storage.shards`. benign_share: of harmless requests among
    the miniature's. noise_no_better, noise_worse, noise_on, edits: see `MiniatureTeacher`. pilot: chains of a real
    teacher that are looked at before the others, 0 for none; least_yield: share of usable ones among them. failed_limit:
    share of failed prompts that stops the run. cut_at_sentence: an answer that is cut off ends with its last whole
    sentence. prompts_file: other texts, a YAML file or a version in `common.prompts`.
    """

    pairs: str = "self_critique"
    teacher: str = "miniature"
    respond_with: str = "teacher"
    source: str = ""
    prompts: int = 800
    shard: str = ""
    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0
    benign_share: float = 0.25
    noise_no_better: float = 0.15
    noise_worse: float = 0.15
    noise_on: str = "all"
    edits: str = "free"
    pilot: int = 16
    least_yield: float = 0.3
    failed_limit: float = 0.02
    cut_at_sentence: bool = False
    prompts_file: str = ""

    def _checks(self) -> list[Callable[[], object]]:
        roles = {"teacher": self.teacher} | (
            {} if self.respond_with == "teacher" else {"respond_with": self.respond_with}
        )
        return [
            *super()._checks(),
            lambda: variant_named(self.pairs),
            lambda: shard_of(self.shard),
            *(partial(self.asked, role, name) for role, name in roles.items()),
            self._check_edits,
        ]

    def _check_edits(self) -> None:
        if self.edits not in ("free", "minimal"):
            raise ValueError(f"edits = {self.edits!r}: a revision's edits are free or minimal")
        if self.edits == "minimal" and not (self.in_world and self.pairs == "self_critique"):
            raise ValueError(
                f"edits = 'minimal' is of the miniature's teacher, which revises; ask a real one with prompts_file = {self.experiment}-minimal, and leave edits out"
            )

    def asked(self, role: str, name: str) -> Spec:
        """Who is named as teacher or first respondent. Raises ValueError for nobody."""
        return spec_of(role, name, alone=("miniature", "recorded"), named=("endpoint", "local"))

    @property
    def in_world(self) -> bool:
        """Whether the miniature's teacher is asked."""
        return self.teacher == "miniature" and self.pairs != "recorded"


class FromPairs(Stage):
    """What the stages that begin with pairs have.

    pairs_file: "" for what the step before wrote into `output` (`INPUTS`); else that of another run, or data in a format
    of docs/own-data.md from a file, a saved folder or the Hub, whose scores have `score_range` and, by attribute,
    `weights`.
    """

    pairs_file: str = ""
    score_range: list[float] = Field(default_factory=lambda: [0.0, 1.0])
    weights: dict[str, float] = Field(default_factory=dict)

    def _checks(self) -> list[Callable[[], object]]:
        return [*super()._checks(), lambda: check_range(self.score_range)]


class RewardScore(FromPairs):
    """Of `reward_score`.

    judge: who scores; scores that the pairs bring are not read. judge_error, judge_blind_to, judge_unclear: of the
    miniature's, see `MiniatureJudge`. labels: file of labelled answers that a real judge is checked on first, and the
    file of texts where it holds ids; least_kappa: a judge that agrees less stops the run. scale: of the judge, "" for
    the experiment's. unscored_limit, failed_limit: shares that stop the run. max_new_tokens: of a verdict; one that is
    cut off or not understood gets twice that.
    """

    judge: str = "miniature"
    judge_error: float = 0.1
    judge_blind_to: str = ""
    judge_unclear: float = 0.01
    labels: list[str] = Field(default_factory=list)
    least_kappa: float = 0.4
    scale: str = ""
    unscored_limit: float = 0.02
    failed_limit: float = 0.02
    max_new_tokens: int = 256
    prompts_file: str = ""
    seed: int = 0

    def _checks(self) -> list[Callable[[], object]]:
        return [
            *super()._checks(),
            lambda: judge_named("judge", self.judge),
            lambda: check_labels(self.labels),
            lambda: check_scale(self.scale),
        ]

    @property
    def in_world(self) -> bool:
        """Whether the miniature's judge is asked."""
        return self.judge == "miniature"


class TrainRDPO(FromPairs):
    """Of `train_rdpo`; the defaults of training are those of `TrainSettings`.

    held_out: file of prompts that are evaluated on, in place of those in the pairs file. methods: rows of the table.
    seeds: of pairs drawn, adapters and order. evaluate_on: validation, or test for the final table. finished: folder
    that keeps every result with excerpts for texts. student: folder, Hub name (name@commit) or a miniature. pad_token:
    an existing token to pad with. train_pairs: drawn anew by every seed, 0 for all. swapped: shares of them whose
    answers are exchanged, each a row. knobs: of the losses; tau may be "judge", see `students.settings_of`. tuned:
    trials.json of `common.notebook.tune`. rounds: of rows that train in rounds, see `RoundSettings`. self_augmented: see
    `SelfAugmentedSettings`. evaluation_prompts: at most, a set. final_judge: of a real student's answers; reward_judge:
    who scored the pairs, in the miniature as step 2 noted it. match_utility: a real student's adapters are tried at
    every strength too, on validation. paraphrases: file of `common.paraphrase` with other wordings of the held-out
    prompts, for `same_outcome`. labels, least_kappa: as in `RewardScore`.
    """

    held_out: str = ""
    methods: list[str] = Field(default_factory=lambda: ["rdpo"])
    seeds: list[int] = Field(default_factory=lambda: [0])
    evaluate_on: str = "validation"
    finished: str = ""
    student: str = "miniature"
    pad_token: str = ""
    train_pairs: int = 400
    swapped: list[float] = Field(default_factory=lambda: [0.0])
    tuned: str = ""
    learning_rate: float = TRAINING.learning_rate
    sft_learning_rate: float = TRAINING.sft_learning_rate
    epochs: int = TRAINING.epochs
    batch_size: int = TRAINING.batch_size
    micro_batch: int = TRAINING.micro_batch
    beta: float = TRAINING.beta
    knobs: dict[str, float | Literal["judge"]] = Field(default_factory=dict)
    nll_weight: float = TRAINING.nll_weight
    kl_budget: float = TRAINING.kl_budget
    steps_share: float = TRAINING.steps_share
    unchanged_weight: float = TRAINING.unchanged_weight
    rwr_temperature: float = TRAINING.rwr_temperature
    ca_score: float = TRAINING.ca_score
    lora_rank: int = TRAINING.lora_rank
    max_length: int = TRAINING.max_length
    reference: Literal["adapters off", "unquantised"] = TRAINING.reference
    second_reference: str = TRAINING.second_reference
    mrpo_eta: float = TRAINING.mrpo_eta
    mrpo_weight: float | None = TRAINING.mrpo_weight
    rounds: dict[str, Any] = Field(default_factory=dict)
    optimism: float = TRAINING.optimism
    self_augmented: dict[str, Any] = Field(default_factory=dict)
    annotator_types: int = TRAINING.annotator_types
    em_steps: int = TRAINING.em_steps
    em_start: Literal["clusters", "dirichlet"] = TRAINING.em_start
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = TRAINING.report_to
    evaluation_prompts: int = 200
    max_new_tokens: int = 80
    repetition_penalty: float = 1.1
    final_judge: str = ""
    reward_judge: str = ""
    match_utility: bool = False
    paraphrases: str = ""
    labels: list[str] = Field(default_factory=list)
    least_kappa: float = 0.4

    def _checks(self) -> list[Callable[[], object]]:
        judges = {"final_judge": self.final_judge, "reward_judge": self.reward_judge}
        named = [partial(judge_named, role, name) for role, name in judges.items() if name]
        return [
            *super()._checks(),
            lambda: check_estimated(self.knobs),
            lambda: check_methods(self.methods),
            lambda: check_references(self.methods, self.training),
            lambda: check_labels(self.labels),
            *named,
        ]

    @property
    def in_world(self) -> bool:
        """Whether the student is one of the miniature's."""
        return self.student in MINIATURES

    @property
    def training(self) -> TrainSettings:
        """The settings that all methods share, without what the judge is to tell."""
        given = {
            name: getattr(self, name) for name in TrainSettings.__dataclass_fields__ if name in TrainRDPO.model_fields
        }
        return TrainSettings(
            **given
            | {"knobs": {name: value for name, value in self.knobs.items() if value != "judge"}}
            | {"rounds": RoundSettings.of(self.rounds)}
            | {"self_augmented": SelfAugmentedSettings.of(self.self_augmented)}
        )


class PaperTables(Checked):
    """Of `paper_tables`. profile: for the notes. runs: folder of finished runs. output: of tables and figures. labels:
    folder of labelled answers. paper_numbers: CSV (experiment, method, metric, value) of a reader's own, to show
    beside."""

    profile: str = "miniature"
    runs: str = "runs/miniature"
    output: str = "runs/miniature/tables"
    labels: str = ""
    paper_numbers: str = ""


PARAMETERS: dict[str, type[Checked]] = {
    "generate_data": GenerateData,
    "reward_score": RewardScore,
    "train_rdpo": TrainRDPO,
    "paper_tables": PaperTables,
}
"""Notebook -> its parameters."""


def parameters(stage: str, namespace: MutableMapping[str, Any]) -> Any:
    """The parameters of a notebook, from the names in its namespace. Call it in the cell after `parameters`.

    Any plain value that is no parameter can only have come from outside and is an unknown one: when it is first called
    in a kernel, all in the namespace, later those of the cell before, for cells further down leave names of their own.
    Raises what `Stage.of` does.
    """
    given = {name: value for name, value in namespace.items() if _is_given(name, value)}
    outside = namespace.setdefault("_there_at_first", frozenset(given)) | _assigned_in(namespace.get("In", [])[-2:-1])
    fields = PARAMETERS[stage].model_fields
    return PARAMETERS[stage].of({name: value for name, value in given.items() if name in outside or name in fields})


def judge_named(role: str, name: str) -> Spec:
    """Who is named as a judge. Raises ValueError for nobody."""
    return spec_of(
        role,
        name,
        alone=("miniature", "recorded"),
        named=("endpoint", "local", "reward", "yes_no", "learned", "lexicon"),
    )


def check_scale(scale: str) -> None:
    """Raises ValueError for no scale of `ScoreScale`."""
    if scale and scale not in ScoreScale.__members__:
        raise ValueError(f"unknown scale {scale!r}; there are {', '.join(ScoreScale.__members__)}")


def check_estimated(knobs: Mapping[str, float | str]) -> None:
    """Raises ValueError for a knob other than tau that the judge is to tell."""
    for name, value in knobs.items():
        if value == "judge" and name != "tau":
            raise ValueError(f"knobs: {name} = judge: only tau is estimated from the judge; give {name} a number")


def check_labels(labels: Sequence[str]) -> None:
    """Raises ValueError for more than two files."""
    if len(labels) > 2:
        raise ValueError(f"labels = {labels}: one file of labels, and one of texts where the labels hold ids")


def check_range(score_range: Sequence[float]) -> None:
    """Raises ValueError for anything but lowest and highest score."""
    if len(score_range) != 2:
        raise ValueError(f"score_range = {score_range}: give two numbers, the lowest and the highest possible score")
    check_score_range(*score_range)


def input_of(stage: str, p: FromPairs) -> Path:
    """The pairs that a notebook begins with: `pairs_file`, or what the step before wrote into `output`."""
    return resolve(p.pairs_file or Path(p.output) / INPUTS[stage])


def _assigned_in(cells: Sequence[str]) -> set[str]:
    """Names that the cells, which were run, assign at their top."""
    statements = [statement for cell in cells for statement in ast.parse(cell).body]
    targets = [one for it in statements for one in getattr(it, "targets", [getattr(it, "target", None)])]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _is_given(name: str, value: Any) -> bool:
    hidden = name.startswith("_") or name in ("In", "Out")
    return not hidden and isinstance(value, str | int | float | bool | list | dict | tuple | None)
