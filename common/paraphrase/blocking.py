"""Dynamic Blocking (arXiv 2010.12885): a word of the source may not follow the word that it follows there.

The block dictionary holds every source token with the token behind it; each entry is active with probability p.
Whenever decoding has just written the key of active entries, their tokens get probability 0 for that one step. p = 0
blocks nothing, p = 1 forbids every two neighbours of the source. Rules and numbers are the paper's; no code of its
authors is known to us. The list of closed-class words, and that punctuation is not blocked, are ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD = re.compile(r"\w+(?:['’]\w+)*")
CLOSED_CLASS = frozenset((
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her "
    "hers herself it its itself they them their theirs themselves one ones someone somebody something anyone "
    "anybody anything everyone everybody everything nobody nothing none who whom whose which what that this these "
    "those each other another such a an the some any no every either neither both all half much many more most "
    "few fewer little less several enough own and or but nor so yet for because although though while whereas if "
    "unless until since as than whether when where of in on at by to from with without within into onto upon "
    "about above across after against along among around before behind below beneath beside besides between "
    "beyond despite down during except inside like near off out outside over past per through throughout toward "
    "towards under underneath up via"
).split())  # fmt: skip
"""English pronouns, determiners, conjunctions and prepositions: never blocked."""
Entry = tuple[int, frozenset[int]]
"""A token of the source, and the tokens that may not follow it: first subwords of the next word, as it is, capitalised
and in upper case."""
Dictionary = Mapping[int, frozenset[int]]
"""Token -> the tokens that may not follow it; of the entries that are active."""


def block_entries(text: str, tokenizer: PreTrainedTokenizerBase, closed: Collection[str] = CLOSED_CLASS) -> list[Entry]:
    """The block dictionary of a source, an entry for each of its tokens that a word begins behind; [] for an empty text
    and for a single token.

    Only the first token of a word is blocked, so that no word is barred by a piece that it shares with others.

    Args:
        tokenizer: a fast one, which knows where in the text a token stands.
        closed: words that are not blocked, in lower case.
    """
    starts = {match.start(): match for match in WORD.finditer(text)}
    tokens, entries = _tokens(text, tokenizer), []
    for (key, _), (value, start) in zip(tokens, tokens[1:]):
        if start not in starts or starts[start][0].casefold() in closed:
            continue
        word, end = starts[start][0], starts[start].end()
        forms = {f"{text[:start]}{form}{text[end:]}" for form in (word.capitalize(), word.upper())} - {text}
        first = [token for form in forms for token, at in _tokens(form, tokenizer) if at == start]
        entries.append((key, frozenset([value, *first])))
    return entries


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """(token id, where its first character that is no space stands) of a text; without tokens of spaces alone."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [
        (start + len(text[start:end]) - len(text[start:end].lstrip()), end) for start, end in encoded["offset_mapping"]
    ]
    return [(token, start) for token, (start, end) in zip(encoded["input_ids"], spans) if start < end]


def active_dictionary(entries: Sequence[Entry], p: float, rng: random.Random) -> Dictionary:
    """Each entry with probability p, those of one key together. Raises ValueError unless 0 <= p <= 1."""
    if not 0 <= p <= 1:
        raise ValueError(f"p is the probability that an entry blocks, 0 to 1, not {p}")
    active: dict[int, frozenset[int]] = {}
    for key, blocked in entries:
        if rng.random() < p:
            active[key] = active.get(key, frozenset()) | blocked
    return active


class DynamicBlocking(LogitsProcessor):
    """Blocks what may not follow the last token, by a dictionary for each row of a batch.

    Args:
        dictionaries: one a prompt, in the order of the batch; with beams or samples each holds for as many rows in
            turn. An empty one blocks nothing.
    """

    def __init__(self, dictionaries: Sequence[Dictionary]):
        self.dictionaries = dictionaries

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary) with -inf for what is blocked behind the last of input_ids (rows, tokens). Raises
        ValueError where the rows do not divide among the dictionaries."""
        rows, prompts = len(input_ids), len(self.dictionaries)
        if rows % prompts:
            raise ValueError(f"{rows} rows do not divide among {prompts} dictionaries; give one for each prompt")
        blocked = [
            (row, token)
            for row, last in enumerate(input_ids[:, -1].tolist())
            for token in self.dictionaries[row * prompts // rows].get(last, ())
        ]
        if not blocked:
            return scores
        at = torch.tensor(blocked, device=scores.device)
        return scores.index_put((at[:, 0], at[:, 1]), scores.new_tensor(-torch.inf))
