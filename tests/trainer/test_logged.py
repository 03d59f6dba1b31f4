"""What RDPOTrainer logs: TRL's names with TRL's values, whatever computes them (pytest tests/trainer/test_logged.py)."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_models import tiny_causal_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from common.logprobs import head
from common.logprobs.compute import grouped_logprobs, watched_logprobs
from common.trainer.config import RDPOConfig
from common.trainer.displacement import CHOSEN, KL, REJECTED
from common.trainer.logged import of_words
from common.trainer.rdpo import RDPOTrainer

QUICK = {
    "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_steps": 4, "report_to": "none",
    "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
}  # fmt: skip
CLOCKS = ("_runtime", "per_second", "_time")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_causal_model(tmp_path_factory.mktemp("llama"), "llama", "chatml"))


def data(count=9, **scores):
    said = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    return Dataset.from_list([
        {"prompt": said("user", f"Is tea {i} nice?"), "chosen": said("assistant", f"Yes, {'really ' * (i % 3)}it is."), "rejected": said("assistant", f"No {i}."), **scores}
        for i in range(count)
    ])  # fmt: skip


def logged(kind, model, folder, **options):
    """The steps that a training and its evaluations logged."""
    ours = kind is RDPOTrainer
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if options.pop("lora", True) else None
    given = {name: value for name, value in options.items() if ours or name not in ("packed", "method")}
    args = (RDPOConfig if ours else DPOConfig)(str(folder), **({"method": "dpo"} if ours else {}), **{**QUICK, **given})
    trainer = kind(model, args=args, train_dataset=data(), eval_dataset=data(3), peft_config=lora)
    trainer.train()
    return trainer.state.log_history


@pytest.mark.parametrize("options", [
    {"precompute_ref_log_probs": False, "gradient_accumulation_steps": 2}, {"packed": False, "max_length": 40}, {"lora": False}, {"router_aux_loss_coef": 0.5},
], ids=["packed, accumulated", "rows, truncated", "head trained", "mixture of experts"])  # fmt: skip
def test_everything_that_trl_logs_is_logged_with_its_value(options, llama, tmp_path):
    model = llama
    if "router_aux_loss_coef" in options:
        model = str(tiny_causal_model(tmp_path / "base", "mixtral", "chatml", num_local_experts=4, num_experts_per_tok=2))
    ours, theirs = logged(RDPOTrainer, model, tmp_path, **options), logged(DPOTrainer, model, tmp_path, **options)
    assert len(ours) == len(theirs) == 5 and {"entropy", "mean_token_accuracy", "logits/chosen", "num_tokens"} <= set(theirs[0])
    for number, (found, expected) in enumerate(zip(ours, theirs)):
        assert set(expected) <= set(found) and {name.removeprefix("eval_") for name in set(found) - set(expected)} <= {CHOSEN, REJECTED, KL, "model_preparation_time"}
        for name, value in expected.items():
            if not name.endswith(CLOCKS) and (number or name != "rewards/accuracies"):  # before the first step both answers are rewarded alike, but for rounding
                assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_watched_words_by_hand():
    logits, targets = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0, -math.inf], [3.0, 3.0, -6.0, 0.0]]), torch.tensor([3, 0, 1])
    seen = head.watched(logits.float(), logits.float().softmax(dim=1), targets)
    entropies = [math.log(4), 1.5 * math.log(2), -sum(p * math.log(p) for p in torch.softmax(logits[2], 0).tolist())]
    assert seen[:, 0].tolist() == pytest.approx(entropies, abs=1e-6)  # 1/2, 1/4, 1/4 and a word that cannot come
    assert (seen[0, 1], seen[2, 1]) == (0.0, 0.0) and seen[:, 2].tolist() == [0, 1, 0] and seen[:, 3].tolist() == [1, 1, 1]  # of equals the first is the likeliest


@pytest.mark.parametrize("packed", [True, False])
def test_watching_changes_no_log_probability_and_counts_every_answer_token_once(packed, llama, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(llama)
    groups = [[([5, 6, 7, 8, 9], 3), ([5, 6, 7, 10], 3)], [([11, 12, 13, 14], 1)]]
    whole = watched_logprobs(model, groups, packed=packed)
    assert torch.equal(whole[0], grouped_logprobs(model, groups, packed=packed)) and whole[1][:, 3].tolist() == [2, 1, 3]
    assert not whole[1].requires_grad and whole[0].requires_grad
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 2 * model.vocab_size)  # chunks of two
    torch.testing.assert_close(watched_logprobs(model, groups, packed=packed), whole)
    logits = model(torch.tensor([[11, 12, 13, 14]])).logits[0, :-1]
    torch.testing.assert_close(whole[1][2], head.watched(logits, logits.softmax(dim=1), torch.tensor([12, 13, 14])).sum(dim=0))


def test_means_are_over_tokens_and_of_answers_that_were_computed(llama, tmp_path):
    seen = torch.tensor([[6.0, 8.0, 1.0, 4.0], [0.0, 0.0, 0.0, 0.0]])  # nothing of a rejected answer
    found = of_words(seen)
    assert (found["entropy"], found["logits/chosen"], found["mean_token_accuracy"]) == (1.5, 2.0, 0.25) and math.isnan(found["logits/rejected"])
    args = RDPOConfig(str(tmp_path), **{**QUICK, "method": "rdpo_filter", "max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 4, "eval_strategy": "no"})
    better, worse = data(2, score_chosen=1.0, score_rejected=0.0).to_list(), data(2, score_chosen=0.0, score_rejected=1.0).to_list()
    both = RDPOTrainer(llama, args=args, train_dataset=Dataset.from_list(better + worse), processing_class=AutoTokenizer.from_pretrained(llama))
    one = RDPOTrainer(llama, args=args, train_dataset=Dataset.from_list(better), processing_class=AutoTokenizer.from_pretrained(llama))
    both.train(), one.train()
    for name in ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"):
        assert both.state.log_history[0][name] == pytest.approx(one.state.log_history[0][name], abs=1e-5), name


def test_watched_words_are_of_float32_under_autocast():
    """Which takes dot products in bfloat16, where an entropy of eight nats has two digits."""
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 4000), torch.arange(5)
    plain = head.watched(logits, logits.softmax(dim=1), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head.watched(logits, logits.softmax(dim=1), targets), plain)
