"""The studies, as data: where students are trained, by which methods and seeds, with which trials. One asks what scores
inside the loss buy, one which of all readings and recipes is never the worse choice (`READINGS`), one what the related
systems gain over their controls (`RELATED`).

They were written down (`LOG.md`) before they were run, in the miniature worlds, where the truth is known:
`python -m common.study`, `python -m common.study.readings` and `python -m common.study.related`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from scipy.stats import qmc

from common.data.counterfactual import VARIANTS
from common.methods import METHODS
from common.training.kept import Setting

UNTRAINED = ("base", "always_refuse", "sr")
WITH_NLL = ("dpo_nll", "rdpo_nll", "dpo_nll_accepted", "rdpo_nll_accepted")
MAIN = ("sft", "dsc", "dpo", "rdpo", "rdpo_filter")
"""The methods of every part."""
CONTRASTS = (("rdpo", "dpo"), ("rdpo", "dsc"), ("rdpo", "rdpo_filter"))
"""Named beforehand, for the metric of behaviour at matched utility at the centre of each experiment; Holm's correction
is over these alone."""
READINGS = ("base", *MAIN, "dpo_nll", "rdpo_label", "rdpo_ml", "label_nll", "filter_nll", "route")
"""The rivals, and what is new beside them, of the second study."""
TAUS = (0.0, 0.25, 0.5, 0.75, 1.0)
RELATED = (
    *(
        "base",
        *MAIN,
        "fa",
        "rwr",
        "ca",
        "figa",
        "token_dpo",
        "dpo_expo",
        "rdpo_expo",
        "mrpo",
        "dpo_second",
        "multi_dpo",
    ),
    *("sapo", "sapo_nll", "sapo_accepted", "self_play"),
    *("iterative_dpo", "iterative_nll", "rdpo_rounds", "selm", "selm_nll", "apl_random", "apl_certainty", "apl_nll"),
)
"""Rivals, and the related systems of the third study, each beside its control."""
CONTROLS = (
    ("dpo_expo", "dpo"), ("ca", "dsc"), ("rwr", "sft"), ("token_dpo", "dpo"), ("figa", "sft"), ("mrpo", "dpo"),
    ("iterative_dpo", "dpo"), ("iterative_nll", "iterative_dpo"), ("rdpo_rounds", "iterative_dpo"), ("selm", "iterative_dpo"),
    ("apl_certainty", "apl_random"), ("sapo", "self_play"), ("sapo", "sft"),
)  # fmt: skip
"""System and control of the contrasts that were named beforehand; Holm's correction is over these alone, in all worlds."""
TWINS = tuple(
    (system, control)
    for system, control in CONTROLS
    for one, other in [(METHODS[system], METHODS[control])]
    if one.kind == other.kind and one.tuned_as != other.tuned_as
)
"""Those whose system is also trained with what its control's trials chose, so that the two differ in the system alone."""
SHARED = ("learning_rate", "sft_learning_rate", "epochs", "beta")
"""What a twin takes from its control; its own knobs stay."""
UNWEIGHTED = 1e6
"""RWR's temperature at which all answers weigh the same."""
OF_EDITS = ("base", "sft", "dpo", "figa", "token_dpo")
"""Methods that are also trained on revisions with minimal edits, and their controls."""
EARLY = 0.2
"""Share of DPO's steps after which, as ExPO's paper has it, extrapolation makes up for the rest."""
SECOND, OF_SECOND = "sft", ("mrpo", "dpo_second", "multi_dpo")
"""Methods that are also trained with another second reference than the unquantised weights, which say nearly the same as
the first: the student that this method trains on the same pairs."""
ASKED_SCORES = (0.0, 0.5)
"""Scores that CA's students are asked for, beside 1."""
NEIGHBOURS = ("cdpo", "robust", "ipo", "rdpo_soft", "rdpo_squared", "rdpo_flip")
ABLATED = {
    "rdpo": {
        "alpha": (0.0, 0.5, 2.0, 8.0, 20.0),
        "beta": (0.1, 0.3, 1.0),
        "lora_rank": (4, 64),
        "reference": ("unquantised",),
    },
    "rdpo_soft": {"eta": (0.5, 2.0, 8.0)},
    "dpo": {"beta": (0.1, 0.3, 1.0), "reference": ("unquantised",)},
}
"""What is changed in a method's chosen setting, one value at a time. Scores are normalised to [0, 1]: alpha on raw
scores of 0 to 5 would be a fifth of it."""
BLIND_TO = "story"
"""The wrapper that the judge of one cell lets pass, whatever the answer."""
AS_DPO = {"alpha": 0.0}
"""What makes rDPO's loss that of DPO, with the learning rate, beta and epochs that rDPO's trials chose: DPO's own were
chosen for 400 pairs too, and are fewer steps."""
PROBED = ("dpo", "cdpo", "ipo", "rdpo", "rdpo_soft", "rdpo_flip", "rdpo_filter")
INSTRUCTED = tuple(variant for variant in VARIANTS if variant != "neutral")
SEEDS, FEW = tuple(range(10)), tuple(range(5))
"""At the centre, and elsewhere. A seed is one of prompts, teacher, judge, adapter, order of pairs, and base student."""
TRIAL_SEEDS = (100, 101, 102, 103)
"""Of the trials: other data and students than any that is reported."""
TRIAL_SEEDS_OF_ROUNDS = TRIAL_SEEDS[:1]
"""Of the rows that train in rounds: a training of theirs takes as long as several of the others, and each is compared
with another one in rounds."""
TRIALS = 8
LEARNING_RATES, BETAS = (2e-4, 2e-3), (0.1, 1.0)
"""Where settings are looked for, on a logarithmic scale; a loss's own knob where its record in `METHODS` says."""


@dataclass(frozen=True)
class Cell:
    """Where a student is trained: everything but method, seed and setting. The defaults are the centre of the study.

    noise: share of the teacher's revisions that are no better than the answer (half of them) or worse (the other half).
    noise_on: all prompts alike, or one kind, see `MiniatureTeacher`. teacher: "program", or "student": the base student
    itself answers, criticises and revises. variant: "" for pairs of self-critique, else of Counterfactual DPO.
    judge_error, blind_to: see `MiniatureJudge`; binary: it says good or bad and no grade.
    pairs: prompts, unscored pairs included. benign_share: of the prompts. control: "shuffled": every pair has the
    scores of another one; "subset": as many pairs, drawn at random, as dSC accepts. edits: of the teacher's revisions,
    see `MiniatureTeacher`.
    """

    experiment: str = "safety"
    noise: float = 0.3
    judge_error: float = 0.1
    pairs: int = 400
    benign_share: float = 0.25
    noise_on: str = "all"
    blind_to: str = ""
    binary: bool = False
    teacher: Literal["program", "student"] = "program"
    variant: str = ""
    control: Literal["", "shuffled", "subset"] = ""
    edits: Literal["free", "minimal"] = "free"

    @property
    def unlike_centre(self) -> dict[str, Any]:
        """What differs from the centre; {} for the centre itself."""
        return {f.name: getattr(self, f.name) for f in fields(self)[1:] if getattr(self, f.name) != f.default}


@dataclass(frozen=True)
class Row:
    """One student of the study: trained in a cell by a method with a setting, measured on a split. changed: how the
    setting is unlike the one that the trials chose, for its place in the tables. second: the row whose student is its
    second reference."""

    cell: Cell
    method: str
    seed: int
    setting: Setting = field(default_factory=dict, hash=False)
    split: Literal["validation", "test"] = "test"
    changed: Mapping[str, Any] = field(default_factory=dict, hash=False)
    second: Row | None = None

    @property
    def unlike_centre(self) -> dict[str, Any]:
        return {**self.cell.unlike_centre, **self.changed}

    def __str__(self) -> str:
        return (
            f"{self.cell.experiment}, {self.method}, seed {self.seed}, {self.unlike_centre or 'centre'}, {self.split}"
        )


def trial_settings(method: str) -> list[Setting]:
    """The settings that a method tries: `TRIALS` points of a Latin hypercube, the same for every method, in learning
    rate, beta, number of epochs, and the quantile of each knob that the method searches, two at most."""
    row, settings = METHODS[method], []
    for rate, beta, first, long, second in qmc.LatinHypercube(5, scramble=False, rng=0).random(TRIALS):
        learning_rate = _between(*LEARNING_RATES, rate)
        setting: Setting = {
            "learning_rate": learning_rate,
            "sft_learning_rate": learning_rate,
            "epochs": 2 if long > 0.5 else 1,
        }
        setting |= {"beta": _between(*BETAS, beta)} if row.loss else {}
        own = zip(row.search.items(), (first, second))
        settings.append(setting | {name: _between(*limits, quantile) for (name, limits), quantile in own})
    return settings


def _between(low: float, high: float, quantile: float) -> float:
    return float(f"{low * (high / low) ** quantile:.2g}")


def trial_rows(experiment: str, methods: Iterable[str]) -> list[Row]:
    return [
        Row(Cell(experiment), method, seed, setting, "validation")
        for method in methods
        for setting in trial_settings(method)
        for seed in (TRIAL_SEEDS_OF_ROUNDS if METHODS[method].rounds else TRIAL_SEEDS)
    ]


def parts(experiment: str) -> dict[str, list[Row]]:
    """The rows of each part of the study, without their settings, in the order in which they are run; the same row may
    stand in several."""
    centre = Cell(experiment)

    def rows(cells: Iterable[Cell], methods: Sequence[str], seeds: Sequence[int] = FEW) -> list[Row]:
        return [Row(cell, method, seed) for seed in seeds for cell in cells for method in methods]

    varied = lambda **values: [
        replace(centre, **{name: value}) for name, of_name in values.items() for value in of_name
    ]  # noqa: E731
    changed = lambda method, **change: [Row(centre, method, seed, changed=change) for seed in FEW]  # noqa: E731
    readings = {
        "readings": rows([centre], READINGS, SEEDS) + rows(varied(noise=[0.0, 0.5]), READINGS),
        "tau": [row for tau in TAUS for row in changed("rdpo_label", tau=tau)],
    }
    related = {
        "related": rows([centre], RELATED),
        "edits": rows(varied(edits=["minimal"]), OF_EDITS),
        "early": changed("dpo", steps_share=EARLY) + changed("dpo_expo", steps_share=EARLY),
        "asked": [row for score in ASKED_SCORES for row in changed("ca", ca_score=score)],
        "second": [row for method in OF_SECOND for row in changed(method, second_reference=SECOND)],
        "twins": [row for system, control in TWINS for row in changed(system, setting_of=control)]
        + changed("rwr", rwr_temperature=UNWEIGHTED),
    }
    safety, aware = experiment == "safety", ("dsc", "rdpo", "rdpo_filter")  # the others do not see the scores
    found = {
        "centre": rows([centre], (*UNTRAINED, *MAIN), SEEDS),
        "controls": rows(varied(control=["shuffled"]), ["rdpo"]) + rows(varied(control=["subset"]), ["dpo"]),
        "noise": rows(varied(noise=[0.0, 0.1, 0.2, 0.4, 0.5] if safety else [0.0, 0.5]), MAIN),
        "oracle": [row for method in MAIN for row in changed(method, chosen_by="oracle")],
    }
    if safety:
        errors, noises, counts = (0.0, 0.2, 0.3), (0.0, 0.1, 0.2, 0.4, 0.5), varied(pairs=[50, 100, 200, 800])
        found |= {
            "judge": rows(varied(judge_error=errors), ("base", *aware)),
            "neighbours": rows([centre], NEIGHBOURS, SEEDS),
            "mechanism": rows([centre], PROBED, FEW[:3]),
            "pairs": rows(counts, MAIN) + [Row(cell, "rdpo", seed, changed=AS_DPO) for seed in FEW for cell in counts],
            "map": rows(
                [replace(centre, noise=noise, judge_error=error) for noise in noises for error in errors], aware
            ),
            "kinds": rows(varied(blind_to=[BLIND_TO], binary=[True]), ("base", *aware))
            + rows([replace(centre, noise_on="wrapped", noise=0.6)], MAIN),
            "benign": rows(varied(benign_share=[0.0, 0.5]), MAIN),
            "self": rows(varied(teacher=["student"]), MAIN),
            "nll": rows([centre], WITH_NLL),
            "counterfactual": rows(varied(variant=list(INSTRUCTED)), ("dpo", "rdpo", "rdpo_filter")),
            "settings": [
                row
                for method, changes in ABLATED.items()
                for name, values in changes.items()
                for value in values
                for row in changed(method, **{name: value})
            ],
        }
    return found | readings | related


def with_setting(row: Row, chosen: Mapping[str, Setting], by_oracle: Mapping[str, Setting]) -> Row:
    """The row as it is trained.

    Args:
        chosen: setting of every method that has trials; by_oracle: the settings that the oracle would have chosen from
            them.
    """
    if not (method := METHODS[row.method].tuned_as):
        return row
    if control := row.changed.get("setting_of"):
        of_control = chosen[METHODS[control].tuned_as]
        return replace(
            row, setting={**chosen[method], **{name: of_control[name] for name in SHARED if name in of_control}}
        )
    row = replace(row, setting=by_oracle[method] if "chosen_by" in row.changed else {**chosen[method], **row.changed})
    if of := row.changed.get("second_reference"):
        row = replace(row, second=Row(row.cell, of, row.seed, chosen[METHODS[of].tuned_as]))
    return row


CORE = ("centre", "controls", "noise", "judge")
"""The parts of `make evidence`; `make evidence-full` runs all but `OF_READINGS` and `OF_RELATED`."""
OF_READINGS = ("readings", "tau")
OF_RELATED = ("related", "edits", "early", "asked", "second", "twins")
