"""A preference training that is killed, and goes on to the adapter that it would have made (pytest tests/trainer/test_resume.py)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import tiny_causal_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.trainer.config import RDPOConfig
from common.trainer.prepare import last_whole_checkpoint
from common.trainer.rdpo import RDPOTrainer

LORA = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear", "lora_dropout": 0.2}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_causal_model(tmp_path_factory.mktemp("llama"), "llama", "chatml"))


def trainer_for(model, folder, **options):
    """Six steps, of which an epoch has three, with random dropout; a checkpoint after every second."""
    said = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    rows = [{"prompt": said("user", f"Is tea {i} nice?"), "chosen": said("assistant", f"Yes, {i} is."), "rejected": said("assistant", "No.")} for i in range(12)]
    args = RDPOConfig(
        str(folder), method="dpo", bf16=False, use_cpu=True, gradient_checkpointing=False, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        num_train_epochs=2, learning_rate=1e-2, disable_dropout=False, save_steps=2, logging_steps=1, report_to="none", disable_tqdm=True, dataloader_pin_memory=False, **options,
    )  # fmt: skip
    ready = isinstance(model, PeftModel)
    tokenizer = AutoTokenizer.from_pretrained(model.get_base_model().name_or_path if ready else model)
    return RDPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=None if ready else LoraConfig(**LORA))


def trained(trainer):
    return {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def assert_same(one, other):
    assert trained(one).keys() == trained(other).keys() and all(torch.equal(trained(one)[name], values) for name, values in trained(other).items())
    losses = [[step["loss"] for step in trainer.state.log_history if "loss" in step] for trainer in (one, other)]
    assert losses[0] == losses[1] and len(losses[0]) == one.state.global_step == 6


def die_while_checkpoint_4_is_written(model, folder):
    trainer = trainer_for(model, folder)
    save = trainer._save_rng_state
    trainer._save_rng_state = lambda *args: os.kill(os.getpid(), signal.SIGKILL) if trainer.state.global_step == 4 else save(*args)
    trainer.train()


def test_a_training_killed_while_it_writes_goes_on_from_the_last_whole_checkpoint_to_the_same_adapter(llama, tmp_path):
    straight = trainer_for(llama, tmp_path / "straight")
    straight.train()
    folders = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])  # of tiny_models, and of common
    ended = subprocess.run([sys.executable, __file__, llama, str(tmp_path / "killed")], env={**os.environ, "PYTHONPATH": folders}, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert {path.name for path in (tmp_path / "killed").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    resumed = trainer_for(llama, tmp_path / "killed")
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed, straight)


def test_a_checkpoint_that_is_half_overwritten_is_not_whole(llama, tmp_path):
    first = trainer_for(llama, tmp_path, max_steps=4)
    with pytest.raises(ValueError, match="no whole checkpoint in .* to resume from; train.. begins anew"):
        first.train(resume_from_checkpoint=True)
    first.train()
    assert last_whole_checkpoint(tmp_path).endswith("checkpoint-4")
    again = trainer_for(llama, tmp_path, max_steps=4)
    save = again._save_optimizer_and_scheduler
    again._save_optimizer_and_scheduler = lambda folder: save(folder) if again.state.global_step < 4 else exit("disk full")
    with pytest.raises(SystemExit, match="disk full"):
        again.train()
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"torn": ', encoding="utf-8")
    assert last_whole_checkpoint(tmp_path).endswith("checkpoint-2")


def test_an_adapter_that_training_went_on_from_is_still_the_reference_after_resuming(llama, tmp_path):
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), LoraConfig(**LORA, init_lora_weights=False)).save_pretrained(tmp_path / "sft")
    load = lambda: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "sft", is_trainable=True)  # noqa: E731
    options = {"precompute_ref_log_probs": False}
    straight, resumed = trainer_for(load(), tmp_path, **options), trainer_for(load(), tmp_path, **options)
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed, straight)


if __name__ == "__main__":
    die_while_checkpoint_4_is_written(*sys.argv[1:])
