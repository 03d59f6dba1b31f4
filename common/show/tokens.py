"""A pair as the student is trained on it: the chat token by token, and the packed row with what each token sees."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from common.logprobs.packing import dense_mask, pack
from common.report.before_after import encoded
from common.report.figures import grid_of_axes
from common.show.tables import BLUE, GREEN, GREY, RED, Shown, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

    from common.schema import Pair

COLOURS = {"prompt": GREY, "chosen": GREEN, "rejected": RED, "end": BLUE}
SEEN = {"prompt": "#9e9e9e", "same beginning": "#c9b458", "chosen": "#2ca02c", "rejected": "#d62728"}
SAID = {
    "prompt": "read, not trained on",
    "chosen": "to be preferred",
    "rejected": "to be avoided",
    "end": "end of the answer, trained with it",
}


def rendered_chat(tokenizer: PreTrainedTokenizerBase, pair: Pair, max_length: int) -> Shown:
    """The chat that the template makes of a pair, one shade a token: prompt, chosen, rejected, end of an answer.

    Cut at `max_length` tokens of prompt and answer, as in training. The plain text has one line for each with its
    number of tokens.
    """
    asked, *answers = _ids(tokenizer, pair, max_length)
    parts = {"prompt": (_pieces(tokenizer, asked), [])}
    for name, ids in zip(("chosen", "rejected"), answers):
        pieces = _pieces(tokenizer, asked + ids)[len(asked) :]
        end = _end_of_text(tokenizer, ids, pieces)
        parts[name] = pieces[:end], pieces[end:]
    html = {name: _shades(name, text) + _shades("end", end) for name, (text, end) in parts.items()}
    head = {name: f"<b>{name}</b>, {len(text) + len(end)} tokens\n" for name, (text, end) in parts.items()}
    legend = " ".join(
        f'<span style="background: rgba({COLOURS[name]}, 0.3)">&nbsp;{name}&nbsp;</span> {said};'
        for name, said in SAID.items()
    )
    shown = table([[head["prompt"] + html["prompt"]], [head[name] + html[name] for name in ("chosen", "rejected")]])
    lines = [
        f"{name}, {len(text) + len(end)} tokens, {SAID[name]}:\n  {_line(text)}"
        + (f" | end: {_line(end)}" if end else "")
        for name, (text, end) in parts.items()
    ]
    return Shown(f"{shown}<small>{legend[:-1]}</small>", "\n".join(lines))


def packed_row_figure(tokenizer: PreTrainedTokenizerBase, pair: Pair, max_length: int) -> Figure:
    """Which token of a pair's packed row sees which: one prompt for both answers, which do not see each other.

    A row of the picture is a token that looks, a column one that is looked at. Words with which both answers begin
    are shared like the prompt. The last token of an answer predicts nothing and is not in the row, nor is
    what `max_length` cuts off.
    """
    from matplotlib.colors import ListedColormap

    asked, *answers = _ids(tokenizer, pair, max_length)
    packed = pack([[(asked + ids, len(asked)) for ids in answers]])
    sees = dense_mask(packed, torch.float32)[0, 0] == 0
    names = list(SEEN)
    kinds = [
        names[branch + 1] if branch else names[position >= len(asked)]
        for branch, position in zip(packed.branch[0].tolist(), packed.position_ids[0].tolist())
    ]
    looked_at = torch.tensor([names.index(kind) + 1 for kind in kinds])
    figure, [[axes]] = grid_of_axes(1, 1, 4.8, 4.8)
    axes.imshow(
        (sees * looked_at).numpy(),
        cmap=ListedColormap(["#ffffff", *SEEN.values()]),
        vmin=0,
        vmax=len(SEEN),
        interpolation="nearest",
    )
    start = 0
    for kind, run in groupby(kinds):
        count = len(list(run))
        axes.plot([], [], "s", color=SEEN[kind], markersize=9, label=f"{kind}, {count} token{'s' * (count > 1)}")
        for line in (axes.axhline, axes.axvline) if start else ():
            line(start - 0.5, color="0.25", linewidth=0.6)
        start += count
    axes.set(xticks=[], yticks=[], xlabel="token that is looked at", ylabel="token that looks")
    axes.set_title(
        f"one row of {len(kinds)} tokens; two rows would have {sum(len(asked) + len(ids) - 1 for ids in answers)}",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(True)
    axes.legend(loc="upper right", fontsize=8)  # no token looks ahead, so that corner is empty
    return figure


def _ids(tokenizer: PreTrainedTokenizerBase, pair: Pair, max_length: int) -> list[list[int]]:
    """Tokens of the prompt, and of the chosen and the rejected answer behind it, that the student is trained with."""
    asked = encoded(tokenizer, pair)[:max_length]
    both = (encoded(tokenizer, pair, answer)[:max_length] for answer in (pair.response_revised, pair.response))
    return [asked, *(ids[len(asked) :] for ids in both)]


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text that each token adds; of a character made of several tokens all is with the last."""
    pieces, before = [], ""
    for end in range(1, len(ids) + 1):
        after = tokenizer.decode(ids[:end])
        after = before if after.endswith("\ufffd") and end < len(ids) else after
        pieces.append(after[len(before) :])
        before = after
    return pieces


def _end_of_text(tokenizer: PreTrainedTokenizerBase, ids: list[int], pieces: list[str]) -> int:
    """Number of an answer's tokens before the special tokens and white space with which the template ends it."""
    special = set(tokenizer.all_special_ids) | {
        id for id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    end = len(ids)
    while end and (ids[end - 1] in special or not pieces[end - 1].strip()):
        end -= 1
    return end


def _shades(kind: str, pieces: list[str]) -> str:
    """Neighbouring tokens in two shades, so that their borders show."""
    shown = [escape(piece).replace("\n", "↵\n") for piece in pieces]
    return "".join(
        f'<span style="background: rgba({COLOURS[kind]}, {0.4 if i % 2 else 0.2})">{piece}</span>'
        for i, piece in enumerate(shown)
    )


def _line(pieces: list[str]) -> str:
    return "".join(pieces).replace("\n", "↵")
