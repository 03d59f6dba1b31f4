"""Weights dequantised once give the same numbers (pytest tests/student/test_dequantised.py)."""

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from peft.helpers import rescale_adapter_scale
from tiny_models import tiny_causal_model

from common.chat.local import LocalChat
from common.schema import Sampling
from common.student import dequantised as module
from common.student.adapters import lora_settings
from common.student.dequantised import dequantised
from common.student.load import load_student
from common.student.product import AdaptedProduct


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_equal_and_layers_are_as_before(tmp_path, monkeypatch, dtype):
    torch.manual_seed(0)
    model, tokenizer = load_student(tiny_causal_model(tmp_path, "qwen2"), compute_dtype=dtype)  # with biases
    model = get_peft_model(model, lora_settings(4)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.endswith("bias"):
            parameter.data = torch.randn_like(parameter) * 0.05
    ids = tokenizer("How do I lift the barn?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(ids).logits
        with dequantised(model):
            assert any("forward" in vars(layer) for layer in model.modules())
            if dtype == torch.bfloat16:
                assert torch.equal(model(ids).logits, before)
            else:  # the adapter is added to the weights, so sums are rounded in another order
                torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)
    assert not any("forward" in vars(layer) for layer in model.modules()) and torch.equal(model(ids).logits, before)
    asked = [[{"role": "user", "content": "barn " * count}] for count in range(1, 6)]
    chat = LocalChat(model, tokenizer, batch_size=3)
    quick = chat.complete(asked, Sampling(max_new_tokens=12))
    monkeypatch.setattr(module, "MOST_BYTES", 0)  # too large: left alone
    assert chat.complete(asked, Sampling(max_new_tokens=12)) == quick


def test_an_adapter_counts_as_often_as_it_does_without(tmp_path):
    """Turned off, turned down, with dropout while it trains, or of another kind: what is added to the weights is what the layers would add."""
    model, tokenizer = load_student(tiny_causal_model(tmp_path, "qwen2"), compute_dtype=torch.float32)
    model = get_peft_model(model, lora_settings(4)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.05
    ids = tokenizer("How do I lift the barn?", return_tensors="pt")["input_ids"]

    def alike():
        with torch.no_grad():
            before = model(ids).logits
            with dequantised(model):
                inside = model(ids).logits
        torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5)
        return before

    whole = alike()
    with model.disable_adapter():
        base = alike()
    with rescale_adapter_scale(model, 0.5):
        half = alike()
    assert (whole - base).abs().max() > 1e-3 and (half - base).abs().max() > 1e-4 and (whole - half).abs().max() > 1e-4
    layer = next(one for one in model.modules() if hasattr(one, "lora_A"))
    assert module._is_plain(layer) and not module._is_plain(layer.train())


def test_adapters_of_other_kinds_stay_as_they_are(tmp_path):
    model, tokenizer = load_student(tiny_causal_model(tmp_path), compute_dtype=torch.float32)
    model = get_peft_model(model, AdaLoraConfig(task_type="CAUSAL_LM", init_r=4, target_r=2, total_step=10, target_modules=["q_proj", "down_proj"]))
    ids = tokenizer("How do I lift the barn?", return_tensors="pt")["input_ids"]
    for training in (False, True):
        with torch.no_grad():
            before = model.eval()(ids).logits
            with dequantised(model, training=training):
                torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)


def test_training_through_dequantised_weights_gives_the_same_gradients_and_nests(tmp_path):
    """Bit for bit: bitsandbytes multiplies with the same weights, and unpacks them again in every forward and backward."""
    model, tokenizer = load_student(tiny_causal_model(tmp_path, "qwen2"), compute_dtype=torch.float32)
    model = get_peft_model(model, lora_settings(4)).train()
    adapter = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in adapter.items():
        parameter.data = torch.randn_like(parameter) * 0.05
    ids = tokenizer("How do I lift the barn?", return_tensors="pt")["input_ids"]

    def gradients():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in adapter.items()}

    before = gradients()
    with dequantised(model, training=True):
        inside = gradients()
        with dequantised(model):  # such as an answer within a training
            model(ids)
        assert any("forward" in vars(layer) for layer in model.modules())
    model.eval()  # the adapter is added to the weights
    with dequantised(model), torch.no_grad():
        once = model(ids).logits
        with dequantised(model):
            assert torch.equal(model(ids).logits, once)
        assert torch.equal(model(ids).logits, once)
    assert all(torch.equal(inside[name], gradient) and gradient.any() for name, gradient in before.items())
    assert not any("forward" in vars(layer) for layer in model.modules())


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_product_and_its_adapter_in_one_have_the_gradients_of_both(with_bias):
    torch.manual_seed(0)
    x, a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (4, 5), (6, 4)))
    weight, bias = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, dtype=torch.float64) if with_bias else None
    torch.testing.assert_close(AdaptedProduct.apply(x, weight, bias, a, b, 0.5), torch.nn.functional.linear(x, weight, bias) + 0.5 * x @ a.T @ b.T)
    assert torch.autograd.gradcheck(lambda *given: AdaptedProduct.apply(given[0], weight, bias, *given[1:], 0.5), (x, a, b))


def test_training_in_bfloat16_agrees_with_pefts_chain_to_its_rounding_and_minds_what_is_active(tmp_path):
    model, tokenizer = load_student(tiny_causal_model(tmp_path, "qwen2"), compute_dtype=torch.bfloat16)
    model = get_peft_model(model, lora_settings(4)).train()
    model.add_adapter("second", lora_settings(4))
    torch.manual_seed(0)
    adapter = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    for parameter in adapter.values():
        parameter.data = 0.05 * torch.randn(parameter.shape)
    ids = tokenizer("How do I lift the barn?", return_tensors="pt")["input_ids"]

    def computed():
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(ids, labels=ids)
        output.loss.backward()
        active = model.active_adapter
        return output.logits.detach().float(), torch.cat([parameter.grad.float().flatten() for name, parameter in adapter.items() if f".{active}." in name])

    def alike(first, second):
        """By the angle and length of all that was computed: single numbers are rounded one by one."""
        for one, other in zip(first, second):
            assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999 and float(one.norm()) == pytest.approx(float(other.norm()), rel=1e-2)

    chain = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        chain[name] = computed()
    with model.disable_adapter(), torch.no_grad():
        base = model(ids).logits
    with dequantised(model, training=True):
        for name, expected in chain.items():
            model.set_adapter(name)
            inside = computed()
            alike(inside, expected)
            assert not torch.equal(inside[1], expected[1])  # it is the other way of computing them
        with model.disable_adapter(), torch.no_grad():
            assert torch.equal(model(ids).logits, base)
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_a_bias_that_trains_gets_its_gradient(tmp_path):
    model, tokenizer = load_student(tiny_causal_model(tmp_path, "qwen2"), compute_dtype=torch.bfloat16)
    model = get_peft_model(model, lora_settings(4)).train()
    biases = [layer.base_layer.bias for layer in model.modules() if hasattr(layer, "lora_A") and layer.base_layer.bias is not None]
    for bias in biases:
        bias.requires_grad_()
    ids = tokenizer("How do I lift the barn?", return_tensors="pt")["input_ids"]
    with dequantised(model, training=True), torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids, labels=ids).loss.backward()
    assert biases and all(bias.grad is not None and bias.grad.any() for bias in biases)
