"""One row of the table each: base, always-refuse, SR, base prompted, SFT, dSC, DPO, refined DPO (rDPO) and its neighbours.

Every trained method gets the same pairs (scored on both sides), the same LoRA, batch and number of epochs; what differs
is what it does with pairs and scores. Readings of the paper's baselines are ours:
SR = self-refinement at inference (the untrained student criticises and rewrites its own answer), SFT = on all
revisions, dSC = SFT on revisions that scored strictly higher than the original (arXiv 2312.01957).
"""

from __future__ import annotations

from common.loss import check_method
from common.methods.record import METHODS, Method
from common.methods.settings import TrainSettings


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
    Method("selm", "SELM", "#dd1c77", loss="dpo", rounds="slices", explores=True, search={"optimism": (1e-4, 1e-1)}),
    Method("selm_nll", "SELM + NLL", "#980043", loss="dpo", nll_on="all", rounds="slices", explores=True, search={"optimism": (1e-4, 1e-1)}),
    Method("apl_random", "DPO on random pairs", "#969696", loss="dpo", rounds="random"),
    Method("apl_entropy", "APL (entropy)", "#756bb1", loss="dpo", rounds="entropy"),
    Method("apl_certainty", "APL (certainty)", "#31a354", loss="dpo", rounds="certainty"),
    Method("apl_nll", "APL (certainty) + NLL", "#c7e9c0", loss="dpo", nll_on="all", rounds="certainty", trials_of="apl_certainty"),
    Method("apl_hybrid", "APL (hybrid)", "#006d2c", loss="dpo", rounds="hybrid"),
    Method("em_dpo", "EM-DPO", "#fdb462", loss="dpo", types="em", trials_of="dpo"),
    Method("cluster_dpo", "Cluster-DPO", "#80b1d3", loss="dpo", types="clusters", trials_of="dpo"),
    Method("sapo", "SAPO", "#e7969c", loss="dpo", remakes="segments"),
    Method("sapo_nll", "SAPO + NLL", "#843c39", loss="dpo", nll_on="all", remakes="segments", trials_of="sapo"),
    Method("sapo_accepted", "SAPO on accepted", "#ad494a", loss="dpo", remakes="segments", accepted_only=True, trials_of="sapo"),
    Method("self_play", "self-play", "#8c6d31", loss="dpo", remakes="answers"),
    Method("route", "routed by score", "#6a3d9a", loss="route", nll_on="better", search={"clear": (0.1, 0.8)}),
)  # fmt: skip
