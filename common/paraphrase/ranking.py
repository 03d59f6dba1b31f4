"""BERT-iBLEU (arXiv 2010.12885): a paraphrase is good where its meaning is the source's and its words are not."""

from __future__ import annotations

from collections import Counter
from math import exp, log

from common.data.splits import words

MEANING = 4.0
"""The paper's weight of the meaning against the words."""
LONGEST = 4
"""Words of the longest phrases that BLEU compares."""


def bert_ibleu(similarity: float, self_bleu: float, meaning: float = MEANING) -> float:
    """(k + 1) / (k / similarity + 1 / (1 - self_bleu)), the weighted harmonic mean of meaning and new words, in [0, 1];
    a copy (self_bleu = 1) scores 0.

    similarity: of meaning; the paper's is a BERTScore with IDF weights. meaning: k. Raises ValueError for one of both
    outside [0, 1].
    """
    if not (0 <= similarity <= 1 and 0 <= self_bleu <= 1):
        raise ValueError(f"similarity {similarity} and self_bleu {self_bleu} must lie between 0 and 1")
    if similarity == 0 or self_bleu == 1:
        return 0.0
    return (meaning + 1) / (meaning / similarity + 1 / (1 - self_bleu))


def self_bleu(source: str, candidate: str) -> float:
    """BLEU of a candidate against its source, in [0, 1]: phrases of one to four words, counts of longer ones than one
    raised by 1, words without case and punctuation (these choices are ours). 1 for the same words."""
    old, new = words(source).split(), words(candidate).split()
    if not old or not new:
        return 0.0
    shares = []
    for length in range(1, LONGEST + 1):
        there, here = _phrases(old, length), _phrases(new, length)
        raised = int(length > 1)
        shares.append(((there & here).total() + raised) / (here.total() + raised))
    if not shares[0]:
        return 0.0
    return min(1.0, exp(1 - len(old) / len(new))) * exp(sum(map(log, shares)) / LONGEST)


def _phrases(text: list[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[start:] for start in range(length))))
