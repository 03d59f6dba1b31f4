"""Attention of packed rows: every stretch of tokens against the keys that it may see, and no others.

Under a mask, sdpa computes what the mask hides as well. On a GPU flex attention skips hidden blocks. On a CPU the
matrix products below do; in bfloat16 they take half the time of sdpa's kernel, in float32 as long as it does (LOG.md
has the figures). Sharing of prompts: arXiv 2410.20305; stretches are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shared_prefix"
"""For `model.set_attn_implementation`: sdpa, except for packed rows."""

QUERIES_AT_ONCE = 256
"""A longer stretch goes in blocks, each against the keys up to its own end: less is hidden, and memory is bounded."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    **kwargs,
):
    """transformers' attention interface: (rows, heads, length, size) queries to (rows, length, heads, size), and no
    weights.

    attention_mask: `stretches_mask` or `sparse_mask` of packed rows, or an ordinary mask, which goes to sdpa. Padding
    gets 0. Raises ValueError for attention dropout, which stretches do not have.
    """
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if attention_mask is None or attention_mask.dtype != torch.long:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("dropout"):
        raise ValueError("packed rows take no attention dropout; set it to 0 in the model's config")
    scaling = query.size(3) ** -0.5 if scaling is None else scaling
    return _Stretches.apply(query, key, value, attention_mask[0, 0].tolist(), scaling), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Stretches(torch.autograd.Function):
    """Keeps queries, keys and values for backward, and computes the weights again."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, stretches: list[list[int]], scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.stretches, ctx.scaling = stretches, scaling
        output = query.new_zeros(query.transpose(1, 2).shape)
        for block in _blocks(stretches):
            weights = _weights(block.queries(query, key.size(1)), block.keys(key), block, scaling)
            block.put(output, weights @ block.keys(value))
        return output

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx, gradient: Tensor):
        query, key, value = ctx.saved_tensors
        of_query = torch.zeros_like(query)
        of_key, of_value = torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(value, dtype=torch.float32)
        gradient = gradient.transpose(1, 2)
        for block in _blocks(ctx.stretches):
            queries, keys, values = block.queries(query, key.size(1)), block.keys(key), block.keys(value)
            weights = _weights(queries, keys, block, ctx.scaling)
            of_output = block.queries(gradient, key.size(1))
            of_weights = of_output @ values.transpose(1, 2)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(ctx.scaling)
            block.put(of_query.transpose(1, 2), of_scores @ keys)
            block.add(of_key, of_scores.transpose(1, 2) @ queries)
            block.add(of_value, weights.transpose(1, 2) @ of_output)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None


class _Block:
    """Queries [first, stop) of a stretch, and the keys that one of them may see: the shared ones and the stretch's own
    up to `stop`."""

    def __init__(self, row: int, begin: int, shared: int, own: int, first: int, stop: int, window: int):
        self.row, self.begin, self.shared, self.own, self.first, self.stop = row, begin, shared, own, first, stop
        self.hidden = _hidden(-(-(shared + stop) // 256) * 256, window)[shared + first : shared + stop, : shared + stop]

    def queries(self, x: Tensor, key_heads: int) -> Tensor:
        """(rows, heads, length, size) to (key heads, queries of every head that shares one, size)."""
        return x[self.row, :, self.own + self.first : self.own + self.stop].reshape(key_heads, -1, x.size(3))

    def keys(self, x: Tensor) -> Tensor:
        """(rows, key heads, length, size) to (key heads, keys, size)."""
        if self.begin + self.shared == self.own:
            return x[self.row, :, self.begin : self.own + self.stop]
        return torch.cat(
            [x[self.row, :, self.begin : self.begin + self.shared], x[self.row, :, self.own : self.own + self.stop]],
            dim=1,
        )

    def put(self, x: Tensor, queries: Tensor) -> None:
        """Writes what `queries` shaped back into (rows, length, heads, size)."""
        x[self.row, self.own + self.first : self.own + self.stop] = queries.view(x.size(2), -1, x.size(3)).transpose(
            0, 1
        )

    def add(self, x: Tensor, keys: Tensor) -> None:
        """Adds what `keys` shaped to (rows, key heads, length, size)."""
        x[self.row, :, self.begin : self.begin + self.shared] += keys[:, : self.shared]
        x[self.row, :, self.own : self.own + self.stop] += keys[:, self.shared :]


def _blocks(stretches: list[list[int]]) -> Iterator[_Block]:
    for row, begin, shared, own, length, window in stretches:
        for first in range(0, length, QUERIES_AT_ONCE):
            yield _Block(row, begin, shared, own, first, min(length, first + QUERIES_AT_ONCE), window)


def _weights(queries: Tensor, keys: Tensor, block: _Block, scaling: float) -> Tensor:
    scores = (queries @ keys.transpose(1, 2)).mul_(scaling)
    scores.unflatten(1, (-1, block.stop - block.first)).masked_fill_(block.hidden, -torch.inf)
    return scores.softmax(dim=2)


@lru_cache(maxsize=8)
def _hidden(length: int, window: int) -> Tensor:
    """(length, length), True where position i may not see position j: j lies ahead, or `window` or more back."""
    ahead = torch.ones(length, length, dtype=torch.bool).triu_(1)
    return ahead | torch.ones_like(ahead).tril_(-window) if window else ahead
