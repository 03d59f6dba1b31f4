"""One row of the table each: base, always-refuse, SR, SFT, dSC, DPO, refined DPO (rDPO) and its neighbours.

Every trained method gets the same pairs (scored on both sides), the same LoRA, batch and number of epochs; what differs is
what it does with pairs and scores. Readings of the paper's baselines are ours:
SR = self-refinement at inference (the untrained student criticises and rewrites its own answer), SFT = on all revisions,
dSC = SFT on revisions that scored strictly higher than the original (arXiv 2312.01957).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from common.loss import LOSSES, knobs_of, uses_scores
from common.runtime import checked
from common.student.identity import located

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


UNTRAINED = ("base", "always_refuse", "sr")
SUPERVISED = ("sft", "dsc")
WITH_NLL = {f"{loss}_{term}": (loss, on) for term, on in (("nll", "all"), ("nll_accepted", "accepted")) for loss in ("dpo", "rdpo")}
"""Row -> its loss and the chosen answers whose likelihood is added, with the settings' `nll_weight`: given to both sides alike. On accepted
ones that term is dSC, so a row with it is a control and no refined DPO."""
METHODS = (*UNTRAINED, *SUPERVISED, *LOSSES, *WITH_NLL)
EXISTING = {"adapter": "a PEFT folder on top of the student", "model": "a folder or Hub name in the student's place", "endpoint": "a model behind an endpoint"}
"""Rows that are evaluated as they are, written `adapter:FOLDER`, `model:FOLDER_OR_HUB_NAME` or `endpoint:MODEL`: an adapter on the student as
the student is loaded and with the tokenizer beside it, a model with its own weights (`student.load_as_it_is`), never rounded to NF4."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings that all trained methods share; all defaults are ours.

    batch_size: pairs a step; micro_batch: pairs computed at a time, the batch in parts, for a machine's memory; 0 computes it whole.
    learning_rate: of the preference losses; sft_learning_rate: of SFT and dSC, whose gradients have another size.
    beta, alpha, eta, label_smoothing: see `RDPOConfig`. nll_weight: of the rows in `WITH_NLL`. max_length: tokens of prompt
    and completion. reference: of the preference losses, the student with its adapter off ("adapters off", as TRL does with
    PEFT), or "unquantised", the weights that NF4 was made of, which a step-0 policy differs from and memory must hold besides.
    """

    learning_rate: float = 1e-4
    sft_learning_rate: float = 2e-4
    epochs: int = 2
    batch_size: int = 16
    micro_batch: int = 0
    beta: float = 0.1
    alpha: float = 1.0
    eta: float = 1.0
    label_smoothing: float = 0.1
    nll_weight: float = 1.0
    lora_rank: int = 16
    max_length: int = 1024
    seed: int = 0
    reference: Literal["adapters off", "unquantised"] = "adapters off"

    def as_dict(self, method: str) -> dict[str, Any]:
        """What a method's training reads of them, the seed included: another method's knob is no part of its mark, nor is `micro_batch`,
        nor the usual reference. Empty for a row that is not trained."""
        if not is_trained(method):
            return {}
        loss, _ = WITH_NLL.get(method, (method, "all"))
        own = ["sft_learning_rate"] if method in SUPERVISED else ["learning_rate", "beta", *knobs_of(loss)]
        own += ["nll_weight"] if method in WITH_NLL else []
        own += ["reference"] if method not in SUPERVISED and self.reference != "adapters off" else []
        return {name: getattr(self, name) for name in (*own, "epochs", "batch_size", "lora_rank", "max_length", "seed")}

    def __post_init__(self):
        """Raises ValueError for a number that is not finite or out of its range, and a micro_batch that does not divide the batch."""
        for name, kind in get_type_hints(TrainSettings).items():
            checked(name, getattr(self, name), kind)
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch = {self.micro_batch} does not divide batch_size = {self.batch_size}; 0 computes the batch whole")


def check_methods(methods: Sequence[str]) -> None:
    """Raises ValueError for a name that is no row of the table, FileNotFoundError for an adapter or a folder that is not there."""
    unknown = [method for method in methods if method not in METHODS and not existing(method)]
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}; there are {', '.join(METHODS)}, and what exists as {', '.join(f'{kind}:...' for kind in EXISTING)}")
    for method in methods:
        place = existing_place(method) if existing(method) in ("adapter", "model") else Path()
        if existing(method) == "adapter" and not Path(place, "adapter_config.json").exists():
            raise FileNotFoundError(f"{method}: no adapter_config.json in {place}; give the folder that PEFT's save_pretrained wrote")
        if existing(method) == "model" and Path(place, "adapter_config.json").exists() and not Path(place, "config.json").exists():
            raise ValueError(f"{method}: {place} holds an adapter and no model; write adapter: in place of model:")


def existing(method: str) -> str:
    """Which kind of `EXISTING` a row is, "" for a row that is trained or made here."""
    kind, _, name = method.partition(":")
    return kind if kind in EXISTING and name else ""


def is_trained(method: str) -> bool:
    """Whether a row is trained here, so that every seed gives another student."""
    return method not in UNTRAINED and not existing(method)


def sees_scores(method: str) -> bool:
    """Whether a row that is trained here depends on the external scores."""
    loss, on = WITH_NLL.get(method, (method, "all"))
    return method == "dsc" or on == "accepted" or loss in LOSSES and uses_scores(loss)


def existing_place(method: str) -> Path | str:
    """The folder of an `adapter:` or `model:`, or the Hub name of a `model:`. Raises what `identity.located` does."""
    return located(method.partition(":")[2])

LABELS = {
    "base": "base student", "always_refuse": "always refuse", "sr": "SR (our reading)", "sft": "SFT", "dsc": "dSC", "dpo": "DPO",
    "cdpo": "cDPO", "robust": "robust DPO", "ipo": "IPO", "rdpo": "rDPO (offset)", "rdpo_soft": "rDPO (soft)",
    "rdpo_squared": "rDPO (squared)", "rdpo_filter": "DPO on accepted pairs", "rdpo_flip": "rDPO (flip)", "dpo_nll": "DPO + NLL",
    "rdpo_nll": "rDPO (offset) + NLL", "dpo_nll_accepted": "DPO + NLL on accepted", "rdpo_nll_accepted": "rDPO (offset) + NLL on accepted",
}  # fmt: skip
