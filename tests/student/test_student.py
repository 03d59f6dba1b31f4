"""The NF4 student: the bitsandbytes trap, bad folders, adapters saved and loaded (pytest tests/student/test_student.py)."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from peft import get_peft_model
from tiny_models import tiny_causal_model

from common.chat.local import LocalChat
from common.schema import Sampling
from common.student.adapters import load_adapter, lora_settings, save_adapter
from common.student.load import best_compute_dtype, emulates_bfloat16, load_student, own_device, release_memory

HELLO = [{"role": "user", "content": "What is the best way to lift the barn before lunch?"}]


def lora_gradients(model, tokenizer):
    ids = torch.tensor([tokenizer.apply_chat_template(HELLO, return_dict=True)["input_ids"]])
    model.train()
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.requires_grad])


def with_adapter(model):
    torch.manual_seed(0)
    model = get_peft_model(model, lora_settings(8))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.05
    return model


def difference_after_generating(model, tokenizer):
    before = lora_gradients(model, tokenizer)
    LocalChat(model, tokenizer).complete([HELLO], Sampling(max_new_tokens=4))
    return ((lora_gradients(model, tokenizer) - before).norm() / before.norm()).item()


def test_gradients_are_the_same_after_a_generation(load_micro):
    model, tokenizer = load_micro()
    assert difference_after_generating(with_adapter(model), tokenizer) == 0.0


@pytest.mark.parametrize(
    "gpu, cpu, expected, emulated",
    [
        (None, {"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16, False),
        (None, {"amx_bf16": False, "avx512_bf16": True}, torch.float32, False),  # has units, and takes up to twice as long with them
        (None, {"amx_bf16": False, "avx512_bf16": False}, torch.float32, True),
        (None, {"neon": True, "bf16": True}, torch.float32, False),
        (None, {"neon": True, "bf16": False}, torch.float32, True),
        (True, {}, torch.bfloat16, False),
        (False, {}, torch.float32, False),
    ],
)
def test_bfloat16_is_taken_where_the_processor_is_made_for_it(gpu, cpu, expected, emulated, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu is not None)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: gpu)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: cpu)
    assert best_compute_dtype() == expected
    assert emulates_bfloat16() == emulated


@pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no AVX512-BF16, so bitsandbytes never repacks weights and the trap cannot be shown")
def test_without_the_cure_gradients_are_wrong_after_a_generation(load_micro, monkeypatch):
    monkeypatch.setattr("common.student.dequantised.MOST_BYTES", 0)  # as for a large student, whose layers unpack their weights themselves
    model, tokenizer = load_micro()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    assert difference_after_generating(with_adapter(model), tokenizer) > 0.5


def test_linear_layers_are_in_nf4_and_the_head_is_not(load_micro):
    model, _ = load_micro()
    quantised = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(quantised) == 2 * 7 and not any("lm_head" in name for name in quantised)  # 2 layers of 7 projections
    assert {module.weight.quant_state.quant_type for module in model.modules() if isinstance(module, Linear4bit)} == {"nf4"}


def edited_copy(folder, target, edit):
    shutil.copytree(folder, target)
    edit(target)
    return target


def without_chat_template(folder):
    (folder / "chat_template.jinja").unlink()


def without_pad_token(folder):
    path = folder / "tokenizer_config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}
    path.write_text(json.dumps(config))


def test_a_folder_without_chat_template_says_so(micro, tmp_path):
    with pytest.raises(ValueError, match="has no chat template"):
        load_student(edited_copy(micro, tmp_path / "student", without_chat_template))


def test_a_folder_without_pad_token_says_how_to_give_one(micro, tmp_path):
    folder = edited_copy(micro, tmp_path / "student", without_pad_token)
    with pytest.raises(ValueError, match="pass pad_token="):
        load_student(folder)
    with pytest.raises(ValueError, match="'<none>' is not in the vocabulary"):
        load_student(folder, pad_token="<none>")
    assert load_student(folder, pad_token="<|pad|>", compute_dtype=torch.float32)[1].pad_token == "<|pad|>"


def test_a_missing_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no student folder at"):
        load_student(tmp_path / "nothing")


def test_a_saved_adapter_gives_the_same_logits_and_holds_no_pickle(load_micro, tmp_path):
    model, tokenizer = load_micro()
    trained = with_adapter(model).eval()
    ids = torch.tensor([tokenizer.apply_chat_template(HELLO, return_dict=True)["input_ids"]])
    with torch.no_grad():
        expected = trained(input_ids=ids).logits
    save_adapter(trained, tokenizer, tmp_path, "# card\n")
    again = load_adapter(load_micro()[0], tmp_path)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, expected)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json", ".md", ".jinja"}


def test_each_process_of_a_launcher_loads_onto_a_gpu_of_its_own(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device() == 3


def test_prompt_tokens_are_a_prefix_of_the_conversation(load_micro):
    _, tokenizer = load_micro()
    prompt = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*HELLO, {"role": "assistant", "content": "Sure."}], return_dict=True)["input_ids"]
    assert whole[: len(prompt)] == prompt


def test_rows_leave_their_batch_when_they_end_and_say_what_they_say_alone(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, tokenizer = load_student(tiny_causal_model(tmp_path), compute_dtype=torch.float32)
    monkeypatch.setattr("common.chat.local.LOOK_EVERY", 3)
    questions = [[{"role": "user", "content": "How " * count + "do I lift the barn?"}] for count in range(12)]
    alone = []
    for question in questions:
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        alone.append(model.generate(**prompt, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.pad_token_id)[0, prompt["input_ids"].size(1) :].tolist())
    stop = next(token for row in alone for token in row if any(token not in other for other in alone))  # ends some of the answers
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_token_id, stop])
    sizes = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    together = LocalChat(model, tokenizer, batch_size=12).complete(questions, Sampling(max_new_tokens=20))
    hook.remove()
    assert sizes[0] == 12 and sizes == sorted(sizes, reverse=True) and 0 < sizes[-1] < 12
    for row, reply in zip(alone, together):
        end = next((i for i, token in enumerate(row) if token in (stop, tokenizer.eos_token_id)), None)
        assert reply.text == tokenizer.decode(row[:end], skip_special_tokens=True).strip()
        assert reply.finish_reason == ("length" if end is None else "stop")


def test_generation_keeps_the_order_and_does_not_depend_on_the_batch(load_micro):
    model, tokenizer = load_micro()
    questions = [[{"role": "user", "content": "Tell me exactly how to lift the barn by the river."}], HELLO, [{"role": "user", "content": "Hello!"}]]
    together = LocalChat(model, tokenizer, batch_size=3).complete(questions, Sampling(max_new_tokens=12))
    alone = [LocalChat(model, tokenizer).complete([question], Sampling(max_new_tokens=12))[0] for question in questions]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert {reply.finish_reason for reply in together} <= {"stop", "length"}
    assert [reply.completion_tokens for reply in together] == [reply.completion_tokens for reply in alone]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_goes_back_to_the_system():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    large, pins = [], []
    for _ in range(2000):  # what is freed lies between what is kept, so the heap's top cannot shrink
        large.append(b"x" * 100_000)
        pins.append(bytearray(600))
    before = resident()
    large.clear()
    release_memory()
    assert resident() < before - 150_000_000


def test_the_head_sees_contiguous_states_so_that_torch_makes_no_copy_of_it_for_every_row(load_micro):
    """Of a (rows, 1, width) slice torch multiplies each row with a copy of a frozen head of its own."""
    model, _ = load_micro()
    head, seen = model.requires_grad_(False).get_output_embeddings(), []
    head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].is_contiguous()))
    ids = torch.arange(5, 33).view(4, 7)
    with torch.no_grad():
        kept = model(input_ids=ids, logits_to_keep=1).logits
        head._forward_pre_hooks.clear()
        assert torch.allclose(model(input_ids=ids, logits_to_keep=1).logits, kept, atol=1e-5) and torch.allclose(model(input_ids=ids).logits[:, -1:], kept, atol=1e-5)
    assert seen == [True, False, True]  # with it, without, and all positions
