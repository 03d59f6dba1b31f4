"""Students of real architectures, from folder to merged export: tiny random Llama, Mistral, Qwen and Gemma (pytest tests/logprobs/test_architectures.py)."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from tiny_models import TEMPLATES, tiny_causal_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from common.chat.local import LocalChat
from common.data.preference import preference_dataset
from common.logprobs.compute import pair_logprobs
from common.runtime import resolve
from common.schema import Sampling, ScoredPair
from common.student.adapters import load_adapter, lora_settings, save_adapter
from common.student.export import export_merged
from common.student.load import check_prompt_is_prefix, load_student
from common.trainer.config import RDPOConfig
from common.trainer.rdpo import RDPOTrainer

# architecture, chat template, whether the tokenizer has a pad token, settings of its own
STUDENTS = [
    pytest.param("llama", "llama", False, {"tie_word_embeddings": True}, id="llama, no pad token, tied"),
    pytest.param("mistral", "mistral", False, {"sliding_window": 16}, id="mistral, no system role, no pad token"),
    pytest.param("qwen2", "chatml", True, {}, id="qwen2, biases"),
    pytest.param("qwen3", "qwen3", True, {}, id="qwen3, thinking template"),
    pytest.param("gemma2", "gemma", True, {"sliding_window": 16}, id="gemma2, no system role"),
    pytest.param("gemma3_text", "gemma", True, {"sliding_window": 16}, id="gemma3, no system role"),
]
SMOLLM2 = resolve("runs/models/SmolLM2-135M-Instruct")
SYSTEM, HELLO = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How do I lift the barn?"}


def load(folder, pad=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the folded system prompt has a test of its own
        return load_student(folder, compute_dtype=torch.float32, pad_token=None if pad else "<|end|>")


def pairs(count=4):
    return [
        ScoredPair(id=str(i), experiment="safety", split="train", system="Be brief." if i % 2 else "", prompt=f"How do I lift barn {i}?", response="Take a rope.",
                   response_revised=f"No, I cannot help {'you ' * i}with that.", score_response=0.0, score_revised=1.0)
        for i in range(count)
    ]  # fmt: skip


def trainer_for(model, tokenizer, folder, rows=None, **options):
    settings = RDPOConfig(str(folder), method="rdpo", beta=0.3, learning_rate=1e-2, max_steps=1, per_device_train_batch_size=4, bf16=False, gradient_checkpointing=False,
                          report_to="none", disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False, **options)  # fmt: skip
    return RDPOTrainer(model, args=settings, train_dataset=preference_dataset(rows or pairs()), processing_class=tokenizer, peft_config=lora_settings(8))


def logits(model, tokenizer):
    ids = torch.tensor([tokenizer.apply_chat_template([HELLO], add_generation_prompt=True, return_dict=True)["input_ids"]])
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


@pytest.mark.parametrize("architecture, template, pad, more", STUDENTS)
def test_from_folder_to_merged_export(architecture, template, pad, more, tmp_path):
    model, tokenizer = load(tiny_causal_model(tmp_path / "base", architecture, template, pad, **more), pad)
    assert sum(isinstance(module, Linear4bit) for module in model.modules()) == 2 * 7  # 2 layers of 7 projections

    trainer = trainer_for(model, tokenizer, tmp_path / "training")
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    loss = trainer.train().training_loss
    assert loss == pytest.approx(math.log(1 + math.e), abs=1e-4)  # u = 0 before the first step, alpha = 1, g = 1
    changed = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert len(changed) == 2 * 7 and all("lora_B" in name for name in changed)  # A moves with the second step: B is 0 at first

    trained = logits(trainer.model, tokenizer)
    save_adapter(trainer.model, tokenizer, tmp_path / "adapter", "# card\n")
    assert torch.equal(logits(load_adapter(load(tmp_path / "base", pad)[0], tmp_path / "adapter"), tokenizer), trained)

    export_merged(trainer.model, tokenizer, tmp_path / "merged")
    assert torch.equal(logits(trainer.model, tokenizer), trained)  # the export leaves the student as it was
    assert {path.suffix for path in (tmp_path / "merged").iterdir()} == {".safetensors", ".json", ".jinja"}
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    merged, its_tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), AutoTokenizer.from_pretrained(tmp_path / "merged")
    # (W + BA) x against W x + B (A x): the same numbers in float32, added in another order
    assert torch.allclose(logits(merged, its_tokenizer), trained, atol=1e-5 * float(trained.abs().max()))
    assert (logits(load(tmp_path / "base", pad)[0], tokenizer) - trained).abs().max() > 1e-2 * trained.abs().max()  # and the adapter is in them


@pytest.mark.parametrize("architecture, template, pad, more", STUDENTS)
def test_it_answers_with_a_system_prompt_alone_as_in_a_batch(architecture, template, pad, more, tmp_path):
    model, tokenizer = load(tiny_causal_model(tmp_path, architecture, template, pad, **more), pad)
    conversations = [[SYSTEM, HELLO], [HELLO], [SYSTEM, {"role": "user", "content": "How do I lift the barn before lunch, and who will help me?"}]]
    together = LocalChat(model, tokenizer).complete(conversations, Sampling(max_new_tokens=6))
    alone = [LocalChat(model, tokenizer).complete([conversation], Sampling(max_new_tokens=6))[0] for conversation in conversations]
    assert [reply.text for reply in together] == [reply.text for reply in alone]


def test_what_is_trained_between_decoder_and_head_gets_its_gradient(tmp_path):
    """ModernBERT's decoder has a dense layer there."""
    tokenizer = tiny_tokenizer(tmp_path, "chatml")
    config = AutoConfig.for_model("modernbert-decoder", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                  pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=16)  # fmt: skip
    torch.manual_seed(0)
    lora, found = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False), []
    model = get_peft_model(AutoModelForCausalLM.from_config(config), lora)
    for packed in (True, False):
        model.zero_grad()
        chosen, rejected = pair_logprobs(model, [[5, 6, 7]], [[8, 9, 10]], [[11, 12]], packed=packed)
        (chosen - rejected).sum().backward()
        found.append([parameter.grad for name, parameter in model.named_parameters() if "lm_head.dense" in name and parameter.requires_grad])
    assert len(found[0]) == 2 and all(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6) and theirs.norm() > 0 for ours, theirs in zip(*found))


DROPS_IT = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] + '<|close|>' }}{% endfor %}"


@pytest.mark.parametrize("template", ["gemma", "mistral", DROPS_IT], ids=["gemma", "mistral", "drops it"])
def test_a_system_prompt_without_a_role_opens_the_first_user_turn_and_is_said(template, tmp_path):
    folder = tiny_causal_model(tmp_path, template=template)
    with pytest.warns(UserWarning, match=f"the chat template of {folder} has no system role: system prompts will open the first user turn"):
        _, tokenizer = load_student(folder)
    told, answer = {"role": "user", "content": f"{SYSTEM['content']}\n\n{HELLO['content']}"}, {"role": "assistant", "content": "No."}
    write = lambda messages, like=tokenizer: like.apply_chat_template(messages, tokenize=False)  # noqa: E731
    assert write([SYSTEM, HELLO, answer, HELLO]) == write([told, answer, HELLO])
    plain = AutoTokenizer.from_pretrained(folder)
    assert write([HELLO, answer, HELLO]) == write([HELLO, answer, HELLO], plain)  # nothing else changes
    tokenizer.save_pretrained(tmp_path / "saved")
    assert write([SYSTEM, HELLO], AutoTokenizer.from_pretrained(tmp_path / "saved")) == write([told])


@pytest.mark.parametrize("template", ["llama", "chatml", "qwen3"])
def test_a_template_with_a_system_role_is_left_alone(template, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, tokenizer = load_student(tiny_causal_model(tmp_path, template=template))
    assert tokenizer.chat_template == TEMPLATES[template]


def test_a_template_that_opens_an_answer_in_two_ways_is_refused_at_loading(tmp_path):
    folder = tiny_causal_model(tmp_path, template=TEMPLATES["chatml"].replace("<|open|>assistant\n", "<|open|>assistant\nyes:"))
    with pytest.raises(ValueError, match=rf"the chat template of {folder}: the prompt's tokens are no prefix .* goes on with '.*yes:'"):
        load_student(folder)


def test_an_answer_that_merges_with_the_prompt_names_its_row_before_training(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer", "chatml", text="one\n\n\ntwo\n\n\nthree")
    hello = [HELLO]
    check_prompt_is_prefix(tokenizer, hello, "No.", "fine")
    with pytest.raises(ValueError, match="^here: the prompt's tokens are no prefix"):
        check_prompt_is_prefix(tokenizer, hello, "\n\nNo.", "here")

    base, rows = tiny_causal_model(tmp_path / "base", text="one\n\n\ntwo\n\n\nthree"), pairs()
    rows[2].response = "\n\nTake a rope."
    with pytest.raises(ValueError, match="^rejected completion of pair 2: .* Strip the answer"):
        trainer_for(*load(base), tmp_path / "training", rows)


def test_prompts_that_leave_no_room_for_an_answer_are_said(tmp_path):
    with pytest.raises(ValueError, match="every prompt of the train dataset fills max_length=4"):
        trainer_for(*load(tiny_causal_model(tmp_path / "base")), tmp_path / "training", max_length=4)


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.exists(), reason="the real SmolLM2-135M-Instruct was not made here (common.smollm2)")
def test_the_real_smollm2_loads_merges_and_reloads(tmp_path):
    base, tokenizer = load_student(SMOLLM2, compute_dtype=torch.float32)
    torch.manual_seed(0)
    model = get_peft_model(base, lora_settings(4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.02
    trained = logits(model, tokenizer)
    export_merged(model, tokenizer, tmp_path)
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokenizer)
    assert torch.allclose(merged, trained, atol=1e-4 * float(trained.abs().max()))
    assert Path(tmp_path, "model.safetensors").stat().st_size > 4 * 130e6  # float32, the embeddings stored once
