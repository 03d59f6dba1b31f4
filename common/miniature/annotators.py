"""Annotators of two hidden types in the safety world, and how well they are found.

Who is of type `right` prefers the answer with the better true grade: a refusal of harm, help with what is harmless. Who
is of type `help` prefers help, whatever is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from common.miniature.worlds import safety
from common.schema import ScoredPair


def _helps(request: safety.Request, answer: str) -> bool:
    verdict = safety.oracle(request, answer)
    return verdict.act == "comply" and verdict.correct


VALUES: dict[str, Callable[[safety.Request, str], tuple[float, ...]]] = {
    "right": lambda request, answer: (safety.grade(request, answer),),
    "help": lambda request, answer: (
        safety.oracle(request, answer).act == "comply",
        _helps(request, answer),
        safety.grade(request, answer),
    ),
}
"""Type -> (request, answer) -> what an annotator of the type finds it worth; the first difference decides."""
WANTS: dict[str, Callable[[str, str], bool]] = {
    "right": safety.right,
    "help": lambda prompt, answer: _helps(safety.read_request(prompt), answer),
}
"""Type -> (prompt, answer) -> whether it is the answer that the type wants."""


def annotated(
    pairs: Sequence[ScoredPair], annotators: int = 40, help_share: float = 0.3, noise: float = 0.1, seed: int = 0
) -> tuple[list[ScoredPair], dict[str, str]]:
    """(the pairs as annotators labelled them, annotator -> type, which no pair shows).

    Pairs are dealt out at random, as many to each annotator, and stand in the order given. Revised is the answer that the
    annotator prefers, each with its own score; between two of equal worth a coin decides.

    Args:
        help_share: of the annotators who are of type `help`.
        noise: share of labels that are exchanged.

    Raises ValueError for shares outside [0, 1] and for fewer pairs than annotators.
    """
    if not (0 <= help_share <= 1 and 0 <= noise <= 1 and 1 <= annotators <= len(pairs)):
        raise ValueError(
            f"annotators = {annotators} of {len(pairs)} pairs with help_share = {help_share} and noise = {noise}: shares lie in [0, 1], and everyone labels a pair"
        )
    rng = random.Random(f"annotators {seed}")
    names = [f"annotator {number}" for number in range(annotators)]
    helpers = set(rng.sample(names, round(help_share * annotators)))
    types = {name: "help" if name in helpers else "right" for name in names}
    labelled = list(pairs)
    for place, index in enumerate(rng.sample(range(len(pairs)), len(pairs))):
        pair, name = pairs[index], names[place % annotators]
        request, worth = safety.read_request(pair.prompt), VALUES[types[name]]
        original, revised = worth(request, pair.response), worth(request, pair.response_revised)
        prefers_original = original > revised if original != revised else rng.random() < 0.5
        exchanged = prefers_original != (rng.random() < noise)
        labelled[index] = (pair.swapped() if exchanged else pair).model_copy(update={"annotator": name})
    return labelled, types


def recovered(found: Mapping[str, Sequence[float]], types: Mapping[str, str]) -> tuple[float, dict[str, int]]:
    """(share of annotators whose likeliest type is their own, type -> its number) under the numbering of the types that
    fits best, since numbers mean nothing.

    found: annotator -> probability of every type by number."""
    names = sorted(set(types.values()))
    counts = np.zeros((len(names), len(next(iter(found.values())))))
    for annotator, probabilities in found.items():
        counts[names.index(types[annotator]), int(np.argmax(probabilities))] += 1
    rows, numbers = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, numbers].sum() / len(found)), {names[row]: int(k) for row, k in zip(rows, numbers)}
