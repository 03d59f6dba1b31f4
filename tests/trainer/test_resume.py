"""A preference training that is killed, and goes on to the adapter that it would have made (pytest tests/trainer/test_resume.py)."""

import os
import signal
import time

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import tiny_causal_model
from trainer.killed import LORA, ended, equal, started, train, trainer_for
from transformers import AutoModelForCausalLM

from common.trainer.prepare import last_whole_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_causal_model(tmp_path_factory.mktemp("llama"), "llama", "chatml"))


def trained(trainer):
    return {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def assert_same(one, other):
    assert trained(one).keys() == trained(other).keys() and all(torch.equal(trained(one)[name], values) for name, values in trained(other).items())
    losses = [[step["loss"] for step in trainer.state.log_history if "loss" in step] for trainer in (one, other)]
    assert losses[0] == losses[1] and len(losses[0]) == one.state.global_step == 6


def die_while_checkpoint_4_is_written(model, folder, **options):
    """The last process, before the state of its random numbers is kept; the others have had the time to write theirs."""
    trainer = trainer_for(model, folder, **options)
    save, last = trainer._save_rng_state, trainer.args.process_index == trainer.args.world_size - 1

    def late(output):
        if trainer.state.global_step == 4 and last:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        save(output)

    trainer._save_rng_state = late
    trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_killed_while_it_writes_goes_on_from_the_last_whole_checkpoint_to_the_same_adapter(processes, llama, tmp_path):
    options, straight, killed = {"gradient_accumulation_steps": 2 // processes}, tmp_path / "straight", tmp_path / "killed"
    assert set(ended(started(processes, lambda: train(llama, straight, **options)))) == {0}
    assert ended(started(processes, lambda: die_while_checkpoint_4_is_written(llama, killed, **options)))[-1] == -signal.SIGKILL
    assert {path.name for path in killed.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert last_whole_checkpoint(killed).endswith("checkpoint-2")
    assert set(ended(started(processes, lambda: train(llama, killed, **options)))) == {0}
    assert equal(straight, killed) and len(list(straight.glob("checkpoint-*"))) == 3


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


@pytest.mark.slow
def test_an_adapter_that_training_went_on_from_is_still_the_reference_after_resuming(llama, tmp_path):
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), LoraConfig(**LORA, init_lora_weights=False)).save_pretrained(tmp_path / "sft")
    load = lambda: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "sft", is_trainable=True)  # noqa: E731
    options = {"precompute_ref_log_probs": False}
    straight, resumed = trainer_for(load(), tmp_path, **options), trainer_for(load(), tmp_path, **options)
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed, straight)
