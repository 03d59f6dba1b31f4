"""Weights dequantised once give the same numbers (pytest tests/student/test_dequantised.py)."""

import pytest
import torch
from peft import get_peft_model
from tiny_models import tiny_causal_model

from common.chat.local import LocalChat
from common.schema import Sampling
from common.student import dequantised as module
from common.student.adapters import lora_settings
from common.student.dequantised import dequantised
from common.student.load import load_student


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_equal_to_the_bit_and_layers_are_as_before(tmp_path, monkeypatch, dtype):
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
            assert torch.equal(model(ids).logits, before)
    assert not any("forward" in vars(layer) for layer in model.modules()) and torch.equal(model(ids).logits, before)
    asked = [[{"role": "user", "content": "barn " * count}] for count in range(1, 6)]
    chat = LocalChat(model, tokenizer, batch_size=3)
    quick = chat.complete(asked, Sampling(max_new_tokens=12))
    monkeypatch.setattr(module, "MOST_BYTES", 0)  # too large: left alone
    assert chat.complete(asked, Sampling(max_new_tokens=12)) == quick
