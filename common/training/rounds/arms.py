"""What rows that train in rounds do in a round, by the name that `methods.METHODS` gives.

`slices` is the loop of SELM (arXiv 2405.19332; shenao-zhang/SELM). Each round takes another part of the prompts; the
student answers them greedily, and of its answer and the pair's two the best is chosen and the worst rejected. Training
goes on from the last round's adapter, whose policy is the reference. Without more it is iterative DPO; the rows of SELM
explore: the loss adds `loss.optimism_term` of that answer, also where it was cut off, but not where it is empty. They do so
in every round, as the authors' runs on Llama-3; their run on Zephyr begins with a slice of plain DPO, which is no setting
here. The ranker is the judge of the pairs, and what is trained an adapter: ours.
The others are active preference learning (APL, arXiv 2402.08114): the student gives two answers to each prompt, some
pairs are judged, and training begins anew from the base student, on all pairs judged so far, for `RoundSettings.epochs`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """goes_on: every round trains on its own part of the prompts, from the last round's adapter; else on all pairs so
    far, from the base student. by_entropy: prompts are chosen by the entropy of their answers. by_certainty: pairs are
    chosen by `acquisition.margin`."""

    goes_on: bool = False
    by_entropy: bool = False
    by_certainty: bool = False

    @property
    def chooses(self) -> bool:
        """Whether it makes more candidates than it has judged."""
        return self.by_entropy or self.by_certainty


ARMS = {
    "slices": Arm(goes_on=True),
    "random": Arm(),
    "entropy": Arm(by_entropy=True),
    "certainty": Arm(by_certainty=True),
    "hybrid": Arm(by_entropy=True, by_certainty=True),
}
