"""Completion log-probabilities against a plain full-logits forward (pytest tests/test_logprobs.py)."""

import pytest
import torch

from common.logprobs import pair_logprobs


@pytest.fixture(scope="module")
def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(config).eval()


def plain(model, prompt, completion):
    """One unpadded row, every logit, the sum written out."""
    logps = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return sum(logps[len(prompt) + i - 1, token] for i, token in enumerate(completion))


def random_ids(length, seed):
    return torch.randint(1, 50, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("lengths", [[(3, 5, 4)], [(9, 1, 1)], [(1, 7, 2)], [(12, 3, 9), (2, 8, 1), (5, 5, 5)]], ids=str)
def test_sums_and_gradients_equal_a_plain_forward(tiny, lengths):
    rows = [tuple(random_ids(n, 10 * i + j) for j, n in enumerate(row)) for i, row in enumerate(lengths)]
    prompts, chosen, rejected = map(list, zip(*rows))
    expected = torch.stack([torch.stack([plain(tiny, p, c), plain(tiny, p, r)]) for p, c, r in rows]).T
    found = torch.stack(pair_logprobs(tiny, prompts, chosen, rejected))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    weight = tiny.model.layers[0].mlp.up_proj.weight
    gradient = lambda value: torch.autograd.grad((value[0] - value[1]).sum(), weight)[0]  # noqa: E731
    assert torch.allclose(gradient(found), gradient(expected), rtol=1e-4, atol=1e-6)


def test_equal_answers_have_equal_log_probabilities(tiny):
    chosen, rejected = pair_logprobs(tiny, [[4, 5]], [[6, 7, 8]], [[6, 7, 8]])
    assert torch.equal(chosen, rejected) and chosen.shape == (1,)


def test_an_empty_completion_names_its_pair(tiny):
    with pytest.raises(ValueError, match="pair 1 has an empty rejected"):
        pair_logprobs(tiny, [[1], [1]], [[2], [2]], [[3], []])
