"""Settings of `common.trainer.rdpo.RDPOTrainer`, and what its model card says of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from trl import DPOConfig, DPOTrainer

from common.loss import REFERENCES, check_method, knobs_of, preference_loss, uses_scores

IGNORED_OPTIONS = (
    "loss_type",
    "loss_weights",
    "use_weighting",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "discopop_tau",
)
PAPER = {
    "title": "Refined Direct Preference Optimization with Synthetic Data for Behavioral Alignment of LLMs",
    "id": "2402.08005",
    "citation": "@article{gallego2024refined,\n    title  = {{Refined Direct Preference Optimization with Synthetic Data for Behavioral Alignment of LLMs}},\n"
    "    author = {Victor Gallego},\n    year   = 2024,\n    eprint = {arXiv:2402.08005}\n}",
}


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class RDPOConfig(DPOConfig):
    """TRL's `DPOConfig` with the settings of refined DPO; `HfArgumentParser`, `TrlParser` and YAML files take them too.

    Args:
        method: a name in `common.loss.LOSSES`, or a callable (see `preference_loss`), which is saved by its name.
        alpha: score offset of `rdpo`, our first reading of refined DPO; its form is that of arXiv 2602.00603, which is
            called RDPO too.
        eta: score temperature of `rdpo_label`, `rdpo_ml`, `rdpo_soft` and `rdpo_squared`; ours.
        tau: of `rdpo_label`, our second reading, the weight of the teacher's preference against the scores, 0 to 1; 1 is
            DPO.
        variance: of `rdpo_ml`, of the score gap in units of beta * log-ratio; ours.
        clear: of `route`, the score gap above which a pair is trained on as a preference, 0 to 1; ours.
        nll_weight: weight of the negative log-likelihood of a completion, averaged over its tokens. 0 is none.
        nll_on: what the likelihood term counts: the chosen answers of "all" pairs, or of "accepted" ones (score_chosen >
            score_rejected, which is dSC's filter), or of every pair the "better" answer, the one that scored higher; a
            tie has none.
        unchanged_weight: how often the log-probability of a token counts that stands in both answers of a pair, by
            `logprobs.edits.changed`; edited ones count once. 1 is the ordinary loss, below it the loss looks at the
            edits: token-weighted DPO, ours, after the idea of Dense DPO (RLHF-V, arXiv 2312.00849).
        optimism: weight of the explored answer's log-ratio, see `loss.optimism_term`; alpha of SELM. The data need the
            column `explored`, messages, which may be none: such a pair has no term and counts in the mean; and may have
            `explored_cut`, true for an answer without its end. 0 is none, and the columns are not read.
        references: what the policy is compared with, by `loss.weighted_references`: its "own" reference, that "combined"
            with `second_reference` of the trainer (MRPO), the "second" alone, or "both", each in a loss of its own.
        mrpo_eta: how far the second reference may be from the own, as a share of its log-probability; 0 is the own.
        mrpo_weight: see `loss.weighted_references`, 0 to 1; None gives every pair its own, by both models' log-ratios.
        kl_budget: nats a token; a training whose chosen answers' KL to the reference is above it at a logged step ends
            there. 0 is none.
        score_range: lowest and highest possible score; scores are normalised by it and may not lie outside.
        packed: False computes two padded rows a pair, prompt and all, as TRL does; the numbers are the same.
        reference_cache: folder of reference log-probabilities, shared by whoever names it; None keeps them in
            `<output_dir>/reference`.
        precompute_ref_log_probs: None computes the reference once and keeps it, see `reference_cache`, but not that of
            a stream or of a reference that is synchronised.

    `label_smoothing` (cdpo, robust) is inherited, with the default .1. Raises ValueError for options of `DPOConfig`
    that only TRL's own loss would read, and for numbers that are not finite or that the method does not take.
    """

    method: str = _option("rdpo", "Loss: a name in common.loss.LOSSES; in Python a callable as well.")
    alpha: float = _option(1.0, "Score offset of `rdpo`.")
    eta: float = _option(1.0, "Score temperature of `rdpo_label`, `rdpo_ml`, `rdpo_soft` and `rdpo_squared`.")
    tau: float = _option(0.5, "Weight of the teacher's preference in `rdpo_label`.")
    variance: float = _option(1.0, "Variance of the score gap in `rdpo_ml`.")
    clear: float = _option(0.3, "Score gap above which `route` trains on a pair as a preference.")
    nll_weight: float = _option(0.0, "Weight of the negative log-likelihood of a completion.")
    nll_on: Literal["all", "accepted", "better"] = _option(
        "all",
        "What the likelihood term counts: all chosen answers, those that scored higher, or the better of each pair.",
    )
    unchanged_weight: float = _option(1.0, "How often a token that both answers share counts; edited ones count once.")
    optimism: float = _option(0.0, "Weight of the log-ratio of the column `explored`; 0 is none.")
    references: Literal["own", "combined", "second", "both"] = _option(
        "own", "Compare with the own reference, it and a second one combined, the second alone, or each by itself."
    )
    mrpo_eta: float = _option(0.1, "How far the second reference may be from the own, as a share of it.")
    mrpo_weight: float | None = _option(None, "Weight of `combined` and `both`; by default each pair has its own.")
    kl_budget: float = _option(0.0, "KL to the reference, nats a token, above which a training ends; 0 is none.")
    score_range: list[float] = field(
        default_factory=lambda: [0.0, 1.0], metadata={"help": "Lowest and highest possible score."}
    )
    packed: bool = _option(True, "Compute a prompt once for both answers, several pairs in a row.")
    reference_cache: str | None = _option(
        None, "Folder of reference log-probabilities; by default `<output_dir>/reference`."
    )
    precompute_ref_log_probs: bool | None = _option(
        None, "Compute reference log-probabilities once, before training. By default for all data but streams."
    )
    label_smoothing: float = _option(0.1, "Rate of flipped labels that `cdpo` and `robust` assume.")

    def __post_init__(self):
        if not callable(self.method):
            check_method(self.method)
        if self.nll_on not in ("all", "accepted", "better"):
            raise ValueError(f"nll_on is 'all', 'accepted' or 'better', not {self.nll_on!r}")
        if self.references not in REFERENCES:
            raise ValueError(f"references is {', '.join(map(repr, REFERENCES))}, not {self.references!r}")
        for option in fields(self):
            value = getattr(self, option.name)
            if (
                isinstance(value, float)
                and not math.isfinite(value)
                and (option.name, value) != ("max_grad_norm", math.inf)
            ):
                raise ValueError(f"{option.name}={value} is no finite number")
        if self.nll_weight < 0:
            raise ValueError(f"nll_weight is a weight and cannot be negative, got {self.nll_weight}")
        if not 0 <= self.unchanged_weight <= 1:
            raise ValueError(f"unchanged_weight lies in [0, 1], not {self.unchanged_weight}")
        if self.optimism < 0:
            raise ValueError(f"optimism is a weight and cannot be negative, got {self.optimism}")
        if self.optimism and (self.references != "own" or self.unchanged_weight != 1):
            raise ValueError(
                "optimism goes with references='own' and unchanged_weight=1 alone; leave those, or set it 0"
            )
        if self.mrpo_eta < 0:
            raise ValueError(f"mrpo_eta is a share of a log-probability and cannot be negative, got {self.mrpo_eta}")
        if self.mrpo_weight is not None and not 0 <= self.mrpo_weight <= 1:
            raise ValueError(f"mrpo_weight lies in [0, 1], or is None for each pair's own, not {self.mrpo_weight}")
        if self.kl_budget < 0:
            raise ValueError(f"kl_budget is a KL divergence and cannot be negative, got {self.kl_budget}")
        self.score_range = _checked_range(self.score_range)
        defaults = {
            f.name: f.default_factory() if callable(f.default_factory) else f.default
            for f in fields(DPOConfig)
            if f.name in IGNORED_OPTIONS
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default and [value] != default:
                raise ValueError(
                    f"{name}={value!r} belongs to TRL's own loss and would have no effect here; choose the loss with method="
                )
        if not callable(self.method):
            preference_loss(
                self.method, *torch.zeros(6, 1), beta=self.beta, **self.knobs
            )  # raises where a knob has no meaning
        super().__post_init__()

    @property
    def needs_scores(self) -> bool:
        return not callable(self.method) and uses_scores(self.method) or self.nll_weight > 0 and self.nll_on != "all"

    @property
    def knobs(self) -> dict[str, float]:
        """The method's own settings, besides beta."""
        return {} if callable(self.method) else {name: getattr(self, name) for name in knobs_of(self.method)}

    @property
    def method_name(self) -> str:
        """Of a callable, where it is defined."""
        return (
            f"{self.method.__module__}.{getattr(self.method, '__qualname__', type(self.method).__name__)}"
            if callable(self.method)
            else self.method
        )

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "method": self.method_name}


def _checked_range(given: Any) -> list[float]:
    try:
        low, high = () if isinstance(given, str) else map(float, given)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"score_range is (lowest, highest), two finite numbers, got {given!r}")
    return [low, high]


def card_of(args: RDPOConfig) -> tuple[list[str], str, dict[str, str]]:
    """Tags, name and paper of a training, for TRL's model card."""
    numbers = {
        "beta": args.beta,
        **args.knobs,
        **({"unchanged_weight": args.unchanged_weight} if args.unchanged_weight != 1 else {}),
        **({"optimism": args.optimism} if args.optimism else {}),
        **({"mrpo_eta": args.mrpo_eta} if args.references in ("combined", "both") else {}),
        **({f"NLL on {args.nll_on}": args.nll_weight} if args.nll_weight else {}),
    }
    what = f"loss `{args.method_name}`, {', '.join(f'{name} {value:g}' for name, value in numbers.items())}"
    what += "" if args.references == "own" else f"; references: {args.references}"
    if args.method == "dpo":
        return ["trl", "dpo"], f"DPO ({what})", DPOTrainer._paper
    if callable(args.method) or args.method.startswith("rdpo"):
        return (
            list(dict.fromkeys(["trl", "dpo", "rdpo", *([] if callable(args.method) else [args.method])])),
            f"refined DPO (rDPO; {what})",
            PAPER,
        )
    return ["trl", "dpo", args.method], f"a variant of DPO ({what})", {}
