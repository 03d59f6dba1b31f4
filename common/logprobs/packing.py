"""Token sequences that begin alike, laid out in rows so that what they share is computed once.

A group is what shares its beginning: prompt + chosen and prompt + rejected of one pair. In a row stand the shared
tokens, then what is left of each sequence; several groups may follow each other. A token sees the shared tokens and its
own sequence and nothing else, and positions restart, so every token gets the hidden state that it has in a row of its
own (sharing of prompts: arXiv 2410.20305; layout and rows ours).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from os.path import commonprefix
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


Sequence = tuple[list[int], int]
"""Token ids, and the place of the first one that is scored: the length of the prompt, at least 1."""


@dataclass
class Packed:
    """Groups in rows. Sequences are numbered through all groups, in the order given.

    input_ids, position_ids: (rows, length).
    group, branch: (rows, length). Number of a token's group, -1 for padding; 0 for shared tokens, 1 and up for those of
        the group's first sequence and so on.
    source: (scored,) place, in the flattened rows, of the token whose state predicts each scored token.
    targets, sequence: (scored,) its id and the number of its sequence.
    stretches: (stretches, 5), one for the shared tokens of a group and one for the rest of each sequence: row, where
        the tokens begin that it sees besides its own, how many, where its own begin, how many.
    """

    input_ids: Tensor
    position_ids: Tensor
    group: Tensor
    branch: Tensor
    source: Tensor
    targets: Tensor
    sequence: Tensor
    stretches: Tensor
    sequences: int

    def to(self, device: torch.device) -> Packed:
        return Packed(
            **{f.name: v.to(device) if isinstance(v := getattr(self, f.name), Tensor) else v for f in fields(self)}
        )


def pack(groups: list[list[Sequence]], row_tokens: int = 0) -> Packed:
    """Lays groups out in rows of at most `row_tokens`, or of the longest group where that is longer.

    The default adds no attention to that of padded rows and drops their padding: short groups share a row.
    The last token of a sequence predicts nothing and is left out.
    """
    inputs = [[ids[:-1] for ids, _ in group] for group in groups]
    shared = [len(commonprefix(sequences)) for sequences in inputs]
    lengths = [start + sum(len(ids) - start for ids in sequences) for start, sequences in zip(shared, inputs)]
    rows = _first_fit(lengths, max(row_tokens, *lengths))
    width = max(sum(lengths[g] for g in row) for row in rows)
    first = [0]  # number of each group's first sequence
    for group in groups:
        first.append(first[-1] + len(group))

    tokens = []  # per row: (id, position, group, branch) of every token
    scored = []  # (source, target, sequence)
    stretches = []
    for number, row in enumerate(rows):
        filled = []
        for g in row:
            begin, start = len(filled), shared[g]
            filled += [(token, j, g, 0) for j, token in enumerate(inputs[g][0][:start])]
            stretches.append((number, begin, 0, begin, start))
            for s, ids in enumerate(inputs[g]):
                own = len(filled) - start  # row place of the sequence's token j, once past the shared ones
                stretches.append((number, begin, start, len(filled), len(ids) - start))
                filled += [(token, j, g, s + 1) for j, token in enumerate(ids[start:], start)]
                whole, prompt = groups[g][s]
                places = ((begin if j < start else own) + j for j in range(prompt - 1, len(ids)))
                scored += [
                    (number * width + place, target, first[g] + s) for place, target in zip(places, whole[prompt:])
                ]
        tokens.append(filled + [(0, 0, -1, 0)] * (width - len(filled)))
    ids, positions, group, branch = torch.tensor(tokens).reshape(len(rows), width, 4).unbind(2)
    source, targets, sequence = (
        torch.tensor(sorted(scored, key=lambda token: token[2]), dtype=torch.long).reshape(-1, 3).unbind(1)
    )
    return Packed(
        ids,
        positions,
        group,
        branch,
        source,
        targets,
        sequence,
        torch.tensor([s for s in stretches if s[-1]]),
        first[-1],
    )


def _first_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Numbers of the groups in each row, every row within `room`: longest first, each into the first row that has room."""
    rows: list[list[int]] = []
    left: list[int] = []
    for g in sorted(range(len(lengths)), key=lambda g: -lengths[g]):
        row = next((r for r, free in enumerate(left) if lengths[g] <= free), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(g)
        left[row] -= lengths[g]
    return rows


def dense_mask(packed: Packed, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """Additive mask (rows, 1, length, length): 0 where a token may look, the lowest number of `dtype` elsewhere.

    window: how many positions back a sliding-window layer looks, the token itself included, in restarted positions.
    A boolean mask would be right under sdpa and silently wrong under eager attention, which adds it.
    """
    marks = _marks(packed)
    seen = _may_see([mark.unsqueeze(2) for mark in marks], [mark.unsqueeze(1) for mark in marks], window)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def sparse_mask(packed: Packed, window: int | None = None) -> BlockMask:
    """The same as a block mask of flex attention, which skips blocks that nobody may see."""
    from torch.nn.attention.flex_attention import create_block_mask

    marks, (rows, length) = _marks(packed), packed.input_ids.shape

    def may_see(row, head, query, key):
        return _may_see([mark[row, query] for mark in marks], [mark[row, key] for mark in marks], window)

    return create_block_mask(may_see, rows, None, length, length, device=packed.input_ids.device.type)


def stretches_mask(packed: Packed, window: int | None = None) -> Tensor:
    """What `common.logprobs.attention` takes in place of a mask: (1, 1, stretches, 6) integers, `packed.stretches` and
    the window (0 is none)."""
    windows = torch.full_like(packed.stretches[:, :1], window or 0)
    return torch.cat([packed.stretches, windows], dim=1)[None, None]


def _marks(packed: Packed) -> list[Tensor]:
    return [mark.int() for mark in (packed.group, packed.branch, packed.position_ids)]


def _may_see(query: list[Tensor], key: list[Tensor], window: int | None) -> Tensor:
    """Group, branch and position of who looks and of what is looked at, in shapes that broadcast."""
    back = query[2] - key[2]
    seen = (query[0] == key[0]) & (back >= 0) & ((key[1] == 0) | (key[1] == query[1]))
    return seen if window is None else seen & (back < window)
