"""Log-probabilities from packed rows against plain forwards, on every architecture (pytest tests/logprobs/test_logprobs.py)."""

import random
import warnings

import pytest
import torch
from peft import get_peft_model
from tiny_models import tiny_causal_model, tiny_config, tiny_tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from common.logprobs import attention as shared_attention
from common.logprobs import compute as logprobs
from common.logprobs import head as lm_head
from common.logprobs.compute import grouped_logprobs, pair_logprobs, summed_logprobs
from common.logprobs.masks import packs_exactly
from common.logprobs.packing import pack
from common.student.adapters import lora_settings
from common.student.load import load_student

WINDOW = 8  # shorter than most prompts below
MODELS = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("llama", {"attn_implementation": "eager"}, id="llama, eager"),
    pytest.param("mistral", {"sliding_window": WINDOW}, id="mistral, windows"),
    pytest.param("mistral", {"sliding_window": WINDOW, "attn_implementation": "eager"}, id="mistral, windows, eager"),
    pytest.param("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}, id="qwen2, windows on one layer"),
    pytest.param("qwen3", {}, id="qwen3"),
    pytest.param("gemma2", {"sliding_window": WINDOW, "final_logit_softcapping": 3.0}, id="gemma2, windows, soft cap"),
    pytest.param("gemma3_text", {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}, id="gemma3, windows on one layer"),
    pytest.param("granite", {"logits_scaling": 4.0}, id="granite, scaled logits"),
    pytest.param("gpt2", {"n_layer": 2, "n_head": 4}, id="gpt2, learned positions"),
    pytest.param("mixtral", {"num_local_experts": 4, "sliding_window": WINDOW}, id="mixtral, experts"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), "chatml")


@pytest.fixture
def make(tokenizer):
    def random_model(architecture, attn_implementation=None, **more):
        torch.manual_seed(0)
        if architecture == "gpt2":
            config = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), n_embd=64, n_positions=512, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, **more)
        else:
            config = tiny_config(architecture, tokenizer, **more)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data *= 5  # so that a wrong mask or position shows
        return model

    return random_model


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)).eval()


def random_pairs(lengths, vocabulary=50, seed=0):
    draw = random.Random(seed)
    rows = [[[draw.randrange(5, vocabulary) for _ in range(length)] for length in row] for row in lengths]
    return [list(column) for column in zip(*rows)]  # prompts, chosen, rejected


def alone(model, prompts, chosen, rejected):
    """Every sequence in an unpadded row of its own, every logit, the sum written out."""
    sums = []
    for completions in (chosen, rejected):
        for prompt, completion in zip(prompts, completions):
            ids = torch.tensor([prompt + completion], device=next(model.parameters()).device)
            logps = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            sums.append(logps[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(sums).view(2, -1)


def distance(model, found, expected):
    """Largest relative difference of the sums, and the relative distance of the gradients of a weighted sum of them."""
    of_found, of_expected = (gradient_of(model, value) for value in (found, expected))
    values = ((found - expected).abs() / expected.abs()).detach().max()
    return float(values), float((of_found - of_expected).norm() / of_expected.norm())


def gradient_of(model, values):
    """Gradient of a weighted sum of values with respect to everything that is trained."""
    weights = torch.linspace(-1.0, 1.3, values.numel()).view_as(values)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradient = torch.cat([part.flatten().float() for part in torch.autograd.grad((values * weights).sum(), trained, allow_unused=True) if part is not None])
    assert gradient.norm() > 0
    return gradient


def train_lora(model):
    """An adapter that is not zero."""
    model = get_peft_model(model, lora_settings(4))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.05
    return model


LENGTHS = [(20, 5, 9), (3, 12, 1), (1, 1, 1), (11, 2, 30), (6, 4, 4)]  # the windows end inside prompts and inside answers


@pytest.fixture(params=[10**6, 0], ids=["masks", "stretches"])
def attention(request, monkeypatch):
    monkeypatch.setattr(logprobs, "SHORT_ROW", request.param)
    monkeypatch.setattr(shared_attention, "QUERIES_AT_ONCE", 5)  # so that most stretches go in several blocks


@pytest.mark.parametrize("architecture, more", MODELS)
def test_packed_rows_equal_every_sequence_alone(architecture, more, make, attention):
    check_against_alone(make(architecture, **more))


@pytest.mark.parametrize("architecture, more", MODELS[:-2])  # those whose layers are all nn.Linear
def test_packed_rows_equal_every_sequence_alone_with_an_adapter(architecture, more, make, attention):
    check_against_alone(train_lora(make(architecture, **more)))


@pytest.mark.parametrize("architecture, more", MODELS)
def test_attention_in_stretches_takes_the_place_of_sdpa_alone(architecture, more, make, monkeypatch):
    model = make(architecture, **more)
    takes, before = model.config._attn_implementation == "sdpa", model.config._attn_implementation
    monkeypatch.setattr(logprobs, "SHORT_ROW", 0)
    masks = []
    hook = model.base_model.register_forward_pre_hook(lambda _, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True)
    pair_logprobs(model, *random_pairs(LENGTHS, vocabulary=250))
    hook.remove()
    used = [mask for mask in masks if mask is not None][-1]
    used = next(iter(used.values())) if isinstance(used, dict) else used
    assert (used.dtype == torch.long) == takes and model.config._attn_implementation == (shared_attention.NAME if takes else before)


def test_attention_dropout_keeps_sdpa_and_is_never_left_out(make):
    model, batch = make("llama", attention_dropout=0.5), random_pairs(LENGTHS, vocabulary=250)
    assert torch.equal(*(torch.stack(pair_logprobs(model.eval(), *batch)) for _ in range(2)))
    assert not torch.equal(*(torch.stack(pair_logprobs(model.train(), *batch)) for _ in range(2)))
    queries, stretches = torch.ones(1, 1, 3, 8), torch.tensor([[[[0, 0, 0, 0, 3, 0]]]])
    with pytest.raises(ValueError, match="attention dropout"):
        shared_attention.attend(nn.Module(), queries, queries, queries, stretches, dropout=0.5)


def test_a_model_that_was_packed_generates_as_before(make):
    model = make("mistral", sliding_window=WINDOW)
    prompt = torch.arange(5, 25).unsqueeze(0)
    before = model.generate(prompt, max_new_tokens=10, do_sample=False, pad_token_id=0)
    assert packs_exactly(model)
    assert torch.equal(model.generate(prompt, max_new_tokens=10, do_sample=False, pad_token_id=0), before)


def check_against_alone(model):
    batch = random_pairs(LENGTHS, vocabulary=250)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert packs_exactly(model)
    found, expected = torch.stack(pair_logprobs(model, *batch)), alone(model, *batch)
    values, gradients = distance(model, found, expected)
    assert values < 2e-6 and gradients < 1e-5  # the bar is 1e-4
    padded = torch.stack(pair_logprobs(model, *batch, packed=False))
    assert torch.allclose(padded, expected, rtol=1e-5)


@pytest.mark.parametrize("row_tokens", [0, 10**4], ids=["several rows", "all in one row"])
def test_how_rows_are_filled_changes_nothing(row_tokens, make, monkeypatch):
    model, batch = make("mistral", sliding_window=WINDOW), random_pairs(LENGTHS, vocabulary=250)
    assert packs_exactly(model)
    filled = []
    monkeypatch.setattr(logprobs, "pack", lambda groups: filled.append(pack(groups, row_tokens)) or filled[-1])
    values, gradients = distance(model, torch.stack(pair_logprobs(model, *batch)), alone(model, *batch))
    assert values < 2e-6 and gradients < 1e-5
    assert len(filled[0].input_ids) == (1 if row_tokens else 3)


@pytest.mark.parametrize("seed", range(12))
def test_random_lengths(tiny, seed):
    draw = random.Random(seed)
    lengths = [(draw.randint(1, 20), draw.randint(1, 25), draw.randint(1, 25)) for _ in range(draw.randint(1, 6))]
    batch = random_pairs(lengths, vocabulary=8, seed=seed)  # few words: answers often begin alike
    values, gradients = distance(tiny, torch.stack(pair_logprobs(tiny, *batch)), alone(tiny, *batch))
    assert values < 2e-6 and gradients < 1e-5


def test_equal_answers_have_equal_log_probabilities(tiny):
    chosen, rejected = pair_logprobs(tiny, [[4, 5]], [[6, 7, 8]], [[6, 7, 8]])
    assert torch.equal(chosen, rejected) and chosen.shape == (1,)


@pytest.mark.parametrize("which, name", [(0, "prompt"), (1, "chosen"), (2, "rejected")])
def test_an_empty_part_names_its_pair(tiny, which, name):
    parts = [[[1], [1]], [[2], [2]], [[3], [3]]]
    parts[which][1] = []
    with pytest.raises(ValueError, match=f"pair 1 has an empty {name}"):
        pair_logprobs(tiny, *parts)


def test_summed_logprobs_of_single_completions(tiny):
    prompts, completions, _ = random_pairs(LENGTHS)
    assert torch.allclose(summed_logprobs(tiny, prompts, completions), alone(tiny, prompts, completions, completions)[0], rtol=1e-5)


@pytest.mark.parametrize("trained_head", [False, True], ids=["frozen head", "trained head"])
def test_the_head_sees_completions_only_and_never_all_at_once(tiny, trained_head, monkeypatch):
    monkeypatch.setattr(lm_head, "LOGITS_AT_ONCE", 50 * 7)  # vocabulary 50: chunks of seven positions
    seen = []
    hook = tiny.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:-1].numel()))
    tiny.lm_head.requires_grad_(trained_head)
    batch = random_pairs([(200, 30, 20), (100, 5, 9)])
    packs_exactly(tiny)
    seen.clear()
    found = torch.stack(pair_logprobs(tiny, *batch))
    assert max(seen) == 7 and sum(seen) == 30 + 20 + 5 + 9 + 1  # and one position in the call of the model itself
    calls = len(seen)
    found.sum().backward(retain_graph=True)
    assert len(seen) == calls + (10 if trained_head else 0)  # recomputed in backward only where its own weights need it
    hook.remove()
    values, gradients = distance(tiny, found, alone(tiny, *batch))
    tiny.zero_grad()
    tiny.lm_head.requires_grad_(True)
    assert values < 2e-6 and gradients < 1e-5


def test_prompt_is_computed_once(tiny):
    widths = []
    hook = tiny.model.embed_tokens.register_forward_hook(lambda module, args, output: widths.append(output.shape[:2].numel()))
    packs_exactly(tiny)
    widths.clear()
    pair_logprobs(tiny, *random_pairs([(300, 20, 20)]))
    hook.remove()
    assert sum(widths) <= 300 + 2 * 19


@pytest.mark.parametrize("architecture", ["gemma2", "mistral"])
def test_gradient_checkpointing_changes_nothing(architecture, make, attention):
    model, batch = train_lora(make(architecture, sliding_window=WINDOW)), random_pairs(LENGTHS, vocabulary=250)
    expected = alone(model, *batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    layers = []
    model.base_model.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: layers.append(1))
    found = torch.stack(pair_logprobs(model, *batch))
    forwards = len(layers)
    values, gradients = distance(model, found, expected)
    assert len(layers) > forwards  # computed again in backward
    assert values < 2e-6 and gradients < 1e-5


def test_nf4_with_float32_compute(tmp_path, attention):
    model = train_lora(load_student(tiny_causal_model(tmp_path), compute_dtype=torch.float32)[0])
    batch = random_pairs(LENGTHS, vocabulary=250)
    values, gradients = distance(model, torch.stack(pair_logprobs(model, *batch)), alone(model, *batch))
    assert values < 1e-5 and gradients < 1e-4


def test_nf4_with_bfloat16_compute_is_as_close_to_float32_as_plain_rows_are(tmp_path, attention):
    folder = tiny_causal_model(tmp_path)
    batch = random_pairs([(random.Random(i).randint(1, 30), 5 + i, 9) for i in range(12)], vocabulary=250)
    exact = train_lora(load_student(folder, compute_dtype=torch.float32)[0])
    expected = alone(exact, *batch)
    of_expected = gradient_of(exact, expected)

    def errors(compute):
        model = train_lora(load_student(folder, compute_dtype=torch.bfloat16)[0])
        assert packs_exactly(model)
        found = compute(model)
        return float(((found - expected) / expected).detach().abs().max()), float((gradient_of(model, found) - of_expected).norm() / of_expected.norm())

    values, gradients = errors(lambda model: torch.stack(pair_logprobs(model, *batch)))
    plain_values, plain_gradients = errors(lambda model: alone(model, *batch))
    assert values < 1.2 * plain_values and gradients < 1.1 * plain_gradients


class Deaf(nn.Module):
    """A wrapper that keeps an argument from the model."""

    def __init__(self, model, unheard):
        super().__init__()
        self.model, self.unheard = model, unheard

    def forward(self, **inputs):
        return self.model(**{name: value for name, value in inputs.items() if name != self.unheard})


@pytest.mark.parametrize("unheard", ["position_ids", "attention_mask"])
def test_a_model_that_ignores_positions_or_masks_gets_padded_rows(make, unheard):
    model = Deaf(make("llama"), unheard)
    with pytest.warns(UserWarning, match="LlamaForCausalLM is computed in padded rows, one per completion: packed rows change its log-probabilities"):
        assert not packs_exactly(model)
    batch = random_pairs(LENGTHS, vocabulary=250)
    assert torch.equal(torch.stack(pair_logprobs(model, *batch)), torch.stack(pair_logprobs(model, *batch, packed=False)))


@pytest.mark.parametrize("architecture, more, reason", [
    ("mamba", {}, "layers that no mask can part"),
    ("jamba", {"num_experts": 2}, "layers that no mask can part"),
    ("llama4_text", {"num_local_experts": 2, "attention_chunk_size": 16}, "chunked_attention"),
    ("bloom", {}, "takes no packed rows"),  # ALiBi, counted from the mask
    ("mistral", {"sliding_window": 5000, "broken_window": True}, "packed rows change"),
])  # fmt: skip
def test_architectures_that_cannot_be_packed_say_so_once(architecture, more, reason, make, monkeypatch):
    if more.pop("broken_window", False):  # a forward that ignores the window which the config promises
        from transformers.models.mistral import modeling_mistral

        monkeypatch.setattr(modeling_mistral, "create_sliding_window_causal_mask", modeling_mistral.create_causal_mask)
    model = make(architecture, **more)
    with pytest.warns(UserWarning, match=reason) as said:
        batch = random_pairs([(4, 2, 3), (3, 3, 3)], vocabulary=250)
        first = torch.stack(pair_logprobs(model, *batch))
        pair_logprobs(model, *batch)
    assert sum("computed in padded rows" in str(warning.message) for warning in said) == 1
    assert torch.allclose(first, alone(model, *batch), rtol=1e-4)


def test_trying_a_model_out_leaves_it_as_it_was(make):
    model = make("mistral", sliding_window=5000)
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert packs_exactly(model)
    assert [module.training for module in model.modules()] == before and model.config.sliding_window == 5000
    assert "forward" not in vars(model.model) and not model.model._forward_hooks


def test_a_forward_that_a_library_put_in_place_is_put_back(make):
    model = make("llama")
    calls = []
    original = model.model.forward
    model.model.forward = own = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    grouped_logprobs(model, [[([5, 6, 7], 1)]])
    assert vars(model.model)["forward"] is own and calls
