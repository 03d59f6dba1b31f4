"""Rows of sequences that begin alike, and what a token may see in them (pytest tests/logprobs/test_packing.py)."""

import random

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from common.logprobs import packing
from common.logprobs.packing import dense_mask, pack, sparse_mask

PAIR = [([5, 6, 7, 8], 2), ([5, 6, 9, 10, 11], 2)]  # prompt 5 6, chosen 7 8, rejected 9 10 11


def random_groups(seed, count=5, vocabulary=9):
    """Pairs of a small vocabulary, so that completions often begin alike too, and single sequences."""
    draw = random.Random(seed)
    words = lambda low, high: [draw.randrange(1, vocabulary) for _ in range(draw.randint(low, high))]  # noqa: E731
    groups = []
    for _ in range(count):
        prompt = words(1, 12)
        groups.append([(prompt + words(1, 6), len(prompt)) for _ in range(draw.choice((1, 2, 2, 3)))])
    return groups


def visible(packed, window=None):
    return dense_mask(packed, torch.float32, window)[:, 0] == 0


def test_a_pair_by_hand():
    packed = pack([PAIR])
    assert packed.input_ids.tolist() == [[5, 6, 7, 9, 10]]  # the last token of each answer predicts nothing
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3]]
    assert packed.branch.tolist() == [[0, 0, 1, 2, 2]]
    assert packed.targets.tolist() == [7, 8, 9, 10, 11]
    assert packed.source.tolist() == [1, 2, 1, 3, 4]  # the prompt's last token predicts both first tokens
    assert packed.sequence.tolist() == [0, 0, 1, 1, 1] and packed.sequences == 2
    assert visible(packed)[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert visible(packed, window=2)[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],  # position 2 looks back to position 1, which stands two places before it
        [0, 0, 0, 1, 1],
    ]


def test_answers_that_begin_alike_share_that_too():
    packed = pack([[([1, 2, 3, 4, 5], 1), ([1, 2, 3, 6, 7], 1)], [([8, 9, 9], 1), ([8, 9, 9], 1)]])
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 6], [8, 9, 0, 0, 0]]
    assert packed.group.tolist() == [[0] * 5, [1, 1, -1, -1, -1]]
    assert packed.source.tolist() == [0, 1, 2, 3, 0, 1, 2, 4, 5, 6, 5, 6]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("window", [None, 3])
def test_every_token_sees_its_own_sequence_and_no_more(seed, window):
    groups = random_groups(seed)
    packed = pack(groups, row_tokens=random.Random(seed).choice((0, 25, 200)))
    ids, seen = packed.input_ids.flatten(), visible(packed, window)
    length, sequences = packed.input_ids.size(1), [sequence for group in groups for sequence in group]
    assert packed.sequences == len(sequences)
    for number, (tokens, start) in enumerate(sequences):
        mine = packed.sequence == number
        assert packed.targets[mine].tolist() == tokens[start:]
        for source, place in zip(packed.source[mine].tolist(), range(start - 1, len(tokens) - 1)):
            row, column = divmod(source, length)
            looks = seen[row, column].nonzero().flatten()
            first = 0 if window is None else max(0, place + 1 - window)
            assert packed.position_ids[row, looks].sort().values.tolist() == list(range(first, place + 1))
            in_order = looks[packed.position_ids[row, looks].argsort()]
            assert ids[row * length + in_order].tolist() == tokens[first : place + 1]


@pytest.mark.parametrize("seed", range(4))
def test_rows_keep_within_their_tokens_and_hold_every_group_once(seed):
    groups = random_groups(seed, count=12)
    longest = pack([max(groups, key=lambda group: pack([group]).input_ids.numel())]).input_ids.size(1)
    for row_tokens in (0, longest + 7):
        packed = pack(groups, row_tokens)
        assert packed.input_ids.size(1) <= max(row_tokens, longest)
        assert set(packed.group.unique().tolist()) - {-1} == set(range(12))
        assert all((packed.group == g).any(dim=1).sum() == 1 for g in range(12))
    assert len(pack(groups, row_tokens=10**4).input_ids) == 1


def test_a_mask_has_no_row_without_a_token_to_see():
    packed = pack([PAIR, [([1, 2], 1)]])
    assert (packed.group == -1).any()
    assert visible(packed).any(dim=2).all()  # padding sees padding: a softmax over nothing would be NaN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dense_mask_is_additive_and_finite(dtype):
    mask = dense_mask(pack([PAIR]), dtype)
    assert mask.shape == (1, 1, 5, 5) and mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(dtype).min}


@pytest.mark.parametrize("window", [None, 4])
def test_the_block_mask_of_flex_attention_is_the_dense_one(window):
    draw = random.Random(0)
    words = lambda n: [draw.randrange(1, 50) for _ in range(n)]  # noqa: E731
    groups = [[((prompt := words(n)) + words(60), n), (prompt + words(90), n)] for n in (30, 200, 100)]
    packed = pack(groups)
    rows, length = packed.input_ids.shape
    blocks = sparse_mask(packed, window)
    assert blocks.shape == (rows, 1, length, length)
    elementwise = create_mask(blocks.mask_mod, rows, None, length, length, device="cpu")[:, 0]
    assert torch.equal(elementwise, visible(packed, window))
    size = blocks.BLOCK_SIZE[0]
    padded = torch.nn.functional.pad(elementwise, (0, -length % size, 0, -length % size))
    seen = padded.unflatten(2, (-1, size)).unflatten(1, (-1, size)).any(4).any(2)
    assert torch.equal(blocks.to_dense()[:, 0].bool(), seen) and not seen.all()  # blocks that nobody sees are left out


def test_the_longest_group_opens_the_first_row():
    assert packing._first_fit([3, 9, 4, 2], 9) == [[1], [2, 0, 3]]
