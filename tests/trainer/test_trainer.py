"""RDPOTrainer against TRL's own trainer, by hand, and against itself after a stop (pytest tests/trainer/test_trainer.py)."""

import json
import math
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer

from common.data.preference import SCORES, preference_dataset
from common.loss import LOSSES, preference_loss, uses_scores
from common.methods import TrainSettings
from common.student.adapters import lora_settings
from common.student.load import load_student
from common.trainer.collator import ScoreCollator
from common.trainer.config import IGNORED_OPTIONS, RDPOConfig
from common.trainer.rdpo import RDPOTrainer
from common.training.train import train

COMMON = {
    "bf16": False, "gradient_checkpointing": False, "max_length": 256, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
    "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False, "logging_steps": 1,
}  # fmt: skip


def trainer_for(load, pairs, tmp_path, peft=True, **options):
    model, tokenizer = load()
    arguments = RDPOConfig(output_dir=str(tmp_path), **{**COMMON, **options})
    dataset = pairs if isinstance(pairs, Dataset) else preference_dataset(pairs)
    return RDPOTrainer(model, args=arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=lora_settings(8) if peft else None)


def adapter_of(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def randomise_adapter(model, seed=0):
    torch.manual_seed(seed)
    for parameter in adapter_of(model).values():
        parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.05


def loss_and_gradients(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().float() for p in adapter_of(trainer.model).values()])


def test_dpo_equals_trl_on_the_same_batch(load_micro, pairs, tmp_path):
    scored = [pair for pair in pairs if pair.is_scored]
    ours = trainer_for(load_micro, scored, tmp_path, method="dpo", beta=0.3)
    model, tokenizer = load_micro()
    plain = preference_dataset(scored).remove_columns(["score_chosen", "score_rejected", "length"])
    theirs = DPOTrainer(model, args=DPOConfig(output_dir=str(tmp_path), beta=0.3, **COMMON), train_dataset=plain, processing_class=tokenizer, peft_config=lora_settings(8))
    randomise_adapter(ours.model)
    randomise_adapter(theirs.model)
    our_loss, our_gradients = loss_and_gradients(ours)
    their_loss, their_gradients = loss_and_gradients(theirs)
    assert abs(our_loss - math.log(2)) > 1e-3  # the adapters are not zero, so there is something to compare
    assert our_loss == pytest.approx(their_loss, rel=1e-4)
    assert (our_gradients - their_gradients).norm() <= 1e-4 * their_gradients.norm()


@pytest.mark.parametrize("method", LOSSES)
def test_loss_before_the_first_step_is_the_analytic_one(method, load_micro, pairs, tmp_path):
    trainer = trainer_for(load_micro, pairs, tmp_path, method=method, beta=0.3)
    batch = next(iter(trainer.get_train_dataloader()))
    zeros, scores = torch.zeros(len(batch["ref_chosen_logps"])), [batch.get(name) for name in SCORES]
    assert uses_scores(method) == (scores[0] is not None)
    expected = preference_loss(method, zeros, zeros, zeros, zeros, *scores, beta=0.3, **trainer.args.knobs)[0].mean()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), abs=1e-4)


def test_cached_reference_gives_the_same_loss(load_micro, pairs, tmp_path):
    losses = []
    for cached in (False, True):
        trainer = trainer_for(load_micro, pairs, tmp_path, precompute_ref_log_probs=cached)
        randomise_adapter(trainer.model)  # a cached reference was computed before, with adapters off
        losses.append(loss_and_gradients(trainer)[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_nll_term_is_the_mean_over_completion_tokens(load_micro, pairs, tmp_path):
    values = {}
    for name, options in {"none": {}, "all": {"nll_weight": 2.0}, "accepted": {"nll_weight": 2.0, "nll_on": "accepted"}}.items():
        trainer = trainer_for(load_micro, pairs, tmp_path, method="dpo", **options)
        batch = next(iter(trainer.get_train_dataloader()))
        values[name] = trainer.compute_loss(trainer.model, batch).item()
    logps = torch.tensor(trainer._metrics["train"]["logps/chosen"])  # mean over the batch; recompute per pair below
    tokens = batch["completion_mask"][:4].sum(dim=1)
    from common.logprobs.compute import completion_logprobs

    per_pair = completion_logprobs(trainer.model, batch["input_ids"], batch["attention_mask"], batch["completion_mask"]).sum(1)[:4]
    assert per_pair.mean().item() == pytest.approx(logps.item(), rel=1e-5)
    accepted = (batch["score_chosen"] > batch["score_rejected"]).float()
    assert values["all"] - values["none"] == pytest.approx((-2.0 * per_pair / tokens).mean().item(), rel=1e-4)
    assert values["accepted"] - values["none"] == pytest.approx((-2.0 * accepted * per_pair / tokens).mean().item(), rel=1e-4)


GAPS = [0.6, 0.2, -0.5, 0.0]
"""Of four pairs: clearly better, a little better, worse, tied."""


def with_gaps(pairs):
    """Four pairs with these score gaps."""
    scored = [pair for pair in pairs if pair.is_scored and pair.response != pair.response_revised][:4]
    low, high = scored[0].scale
    changed = [{"score_response": low + (high - low) * (0.5 - gap / 2), "score_revised": low + (high - low) * (0.5 + gap / 2)} for gap in GAPS]
    return [pair.model_copy(update=values) for pair, values in zip(scored, changed)]


def logps_and_tokens(trainer, batch):
    """(pair, side) of the policy, without gradients, and tokens of each completion."""
    with torch.no_grad():
        return torch.stack(trainer._logps(trainer.model, batch), dim=1), batch["completion_mask"].sum(1).view(2, -1).T


def test_routing_trains_each_pair_by_its_gap(load_micro, pairs, tmp_path):
    trainer = trainer_for(load_micro, with_gaps(pairs), tmp_path, method="route", clear=0.3, nll_weight=2.0, nll_on="better", beta=0.3)
    randomise_adapter(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    gaps = (batch["score_chosen"] - batch["score_rejected"]).tolist()
    assert sorted(gaps) == pytest.approx(sorted(GAPS))
    trainer.model.eval()
    logps, tokens = logps_and_tokens(trainer, batch)
    u = 0.3 * (logps[:, 0] - logps[:, 1] - batch["ref_chosen_logps"] + batch["ref_rejected_logps"])
    per_token = (logps / tokens).tolist()
    of_gap = {0.6: lambda i: math.log1p(math.exp(-u[i])) - 2 * per_token[i][0], 0.2: lambda i: -2 * per_token[i][0], -0.5: lambda i: -2 * per_token[i][1], 0.0: lambda i: 0.0}
    expected = sum(of_gap[round(gap, 6)](i) for i, gap in enumerate(gaps)) / 4
    for mode in (trainer.model.eval, trainer.model.train):  # everything computed, and only what counts
        mode()
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method, options, counted", [
    ("rdpo_filter", {}, {0.6: 2, 0.2: 2}), ("route", {}, {0.6: 2}), ("route", {"nll_weight": 1.0, "nll_on": "better"}, {0.6: 2, 0.2: 1, -0.5: 1}), ("rdpo_flip", {}, dict.fromkeys(GAPS, 2)),
])  # fmt: skip
def test_completions_that_do_not_count_are_not_forwarded(method, options, counted, load_micro, pairs, tmp_path, monkeypatch):
    from common.trainer import rdpo

    trainer = trainer_for(load_micro, with_gaps(pairs), tmp_path, method=method, **options)
    randomise_adapter(trainer.model)
    forwarded, whole = [], rdpo.watched_logprobs
    monkeypatch.setattr(rdpo, "watched_logprobs", lambda model, groups, **how: forwarded.append([len(group) for group in groups]) or whole(model, groups, **how))
    loss, gradients = loss_and_gradients(trainer)
    assert sorted(forwarded[0]) == sorted(counted.values())
    logged = {name: values for name, values in trainer._metrics["train"].items() if name.startswith(("logps", "rewards"))}
    assert all(len(values) == 1 and math.isfinite(values[0]) for values in logged.values())
    monkeypatch.setattr(trainer, "_computed", lambda score_gap: None)
    trainer.model.zero_grad()
    whole_loss, whole_gradients = loss_and_gradients(trainer)
    assert len(forwarded[1]) == 4 and loss == pytest.approx(whole_loss, rel=1e-6)
    assert (gradients - whole_gradients).norm() <= 1e-5 * whole_gradients.norm()


def test_a_batch_of_which_nothing_counts_is_a_step_without_a_push(load_micro, pairs, tmp_path):
    tied = [pair.model_copy(update={"score_response": pair.score_revised}) for pair in with_gaps(pairs)]
    for options in ({"method": "rdpo_filter"}, {"method": "route", "nll_weight": 1.0, "nll_on": "better"}):
        trainer = trainer_for(load_micro, tied, tmp_path, **options)
        randomise_adapter(trainer.model)
        loss, gradients = loss_and_gradients(trainer)
        assert loss == 0 and gradients.abs().max() == 0
        trainer.train()
        assert trainer.state.global_step == 3


@pytest.mark.parametrize("packed", [True, False])
def test_edited_tokens_count_more_and_the_reference_is_weighted_alike(packed, load_micro, pairs, tmp_path):
    from common.logprobs.edits import changed

    trainer = trainer_for(load_micro, with_gaps(pairs), tmp_path, method="dpo", unchanged_weight=0.25, beta=0.3, packed=packed)
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2), abs=1e-5)  # before the first step
    randomise_adapter(trainer.model)
    loss, expected = trainer.compute_loss(trainer.model, batch).item(), []
    ids, masks = batch["input_ids"], batch["completion_mask"].bool()
    with torch.no_grad():
        ratios = []
        for off in (False, True):
            with trainer.model.disable_adapter() if off else nullcontext():
                logits = trainer.model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
            ratios.append(logits.gather(2, ids[:, 1:, None]).squeeze(2))
    ratio = ratios[0] - ratios[1]
    pairs_of = len(ids) // 2
    for i in range(pairs_of):
        completions = [ids[row][masks[row]].tolist() for row in (i, pairs_of + i)]
        away, new = changed(completions[1], completions[0])
        sums = [sum(value * (1.0 if mark else 0.25) for mark, value in zip(marks, ratio[row][masks[row][1:]].tolist())) for marks, row in ((new, i), (away, pairs_of + i))]
        expected.append(math.log1p(math.exp(-0.3 * (sums[0] - sums[1]))))
    assert loss == pytest.approx(sum(expected) / pairs_of, rel=1e-4)


def test_a_weight_of_one_is_the_ordinary_loss_to_the_bit_and_shares_its_reference(load_micro, pairs, tmp_path):
    losses = []
    for options in ({}, {"unchanged_weight": 1.0}):
        trainer = trainer_for(load_micro, with_gaps(pairs), tmp_path, method="dpo", reference_cache=str(tmp_path / "cache"), **options)
        randomise_adapter(trainer.model)
        losses.append(loss_and_gradients(trainer)[0])
    assert losses[0] == losses[1] and len(json.loads(next((tmp_path / "cache").glob("*.json")).read_text())) == 4
    trainer_for(load_micro, with_gaps(pairs), tmp_path, method="dpo", reference_cache=str(tmp_path / "cache"), unchanged_weight=0.5)
    assert len(json.loads(next((tmp_path / "cache").glob("*.json")).read_text())) == 8  # weighted numbers are others
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match="unchanged_weight lies in"):
            trainer_for(load_micro, with_gaps(pairs), tmp_path, unchanged_weight=bad)


def test_training_changes_the_adapter_and_not_the_base(load_micro, pairs, tmp_path):
    trainer = trainer_for(load_micro, pairs, tmp_path, max_steps=3)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and changed <= set(adapter_of(trainer.model))
    assert all("lora_B" in name for name in set(adapter_of(trainer.model)) - changed)


@pytest.mark.slow
def test_resume_after_a_stop_is_bit_exact(load_micro, pairs, tmp_path):
    straight = trainer_for(load_micro, pairs, tmp_path / "a", max_steps=6)
    straight.train()
    stopped = trainer_for(load_micro, pairs, tmp_path / "b", max_steps=6, save_strategy="steps", save_steps=3)
    stopped.train()
    resumed = trainer_for(load_micro, pairs, tmp_path / "b", max_steps=6, save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    for name, parameter in adapter_of(straight.model).items():
        assert torch.equal(parameter, adapter_of(resumed.model)[name]), name


@pytest.mark.slow
def test_methods_in_one_process_do_not_touch_each_other(micro, pairs, tmp_path):
    def weights(method):
        trained = train(method, micro, pairs, TrainSettings(batch_size=8, learning_rate=1e-3), tmp_path, compute_dtype=torch.float32)
        return torch.cat([p.flatten() for n, p in trained.model.named_parameters() if "lora" in n])

    dpo_first, rdpo_second = weights("dpo"), weights("rdpo")
    rdpo_again, dpo_again = weights("rdpo"), weights("dpo")
    assert torch.equal(dpo_first, dpo_again) and torch.equal(rdpo_second, rdpo_again)
    assert not torch.equal(dpo_first, rdpo_second)


def test_unscored_pairs_are_left_out_and_counted_for_every_method_alike(load_micro, pairs, tmp_path):
    unscored = sum(not pair.is_scored for pair in pairs)
    assert unscored > 0
    for method in ("dpo", "rdpo"):
        trainer = trainer_for(load_micro, pairs, tmp_path, method=method)
        assert (trainer.unscored, len(trainer.train_dataset)) == (unscored, len(pairs) - unscored)


def test_the_wrapped_model_is_the_one_that_is_called(load_micro, pairs, tmp_path):
    trainer = trainer_for(load_micro, pairs, tmp_path, precompute_ref_log_probs=True)

    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, **inputs):
            self.calls += 1
            return self.inner(**inputs)

    wrapper = Wrapper(trainer.model)
    trainer.compute_loss(wrapper, next(iter(trainer.get_train_dataloader())))
    assert wrapper.calls == 1


def test_collator_carries_scores():
    batch = ScoreCollator(pad_token_id=0)([
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5], "rejected_ids": [6], "score_chosen": 1.0, "score_rejected": 0.2},
        {"prompt_ids": [7, 8], "chosen_ids": [9], "rejected_ids": [10, 11], "score_chosen": 0.4, "score_rejected": 0.6},
    ])  # fmt: skip
    assert batch["input_ids"].tolist() == [
        [1, 2, 3, 4, 5],  # prompt + chosen, example 1
        [7, 8, 9, 0, 0],  # prompt + chosen, example 2, padded
        [1, 2, 3, 6, 0],  # prompt + rejected, example 1, padded
        [7, 8, 10, 11, 0],  # prompt + rejected, example 2, padded
    ]
    assert torch.allclose(batch["score_chosen"], torch.tensor([1.0, 0.4]))
    assert torch.allclose(batch["score_rejected"], torch.tensor([0.2, 0.6]))


def dataset_with(score):
    turn = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    row = {"prompt": turn("user", "Hello"), "chosen": turn("assistant", "Yes."), "rejected": turn("assistant", "No.")}
    return Dataset.from_list([{**row, "score_chosen": 4.0, "score_rejected": 1.0}, {**row, "score_chosen": score, "score_rejected": 0.0}])


def test_any_dataset_with_scores_in_a_declared_range_trains(load_micro, tmp_path):
    trainer = trainer_for(load_micro, dataset_with(5.0), tmp_path, score_range=(0, 5))
    assert list(trainer.train_dataset["score_chosen"]) == pytest.approx([0.8, 1.0])
    assert list(trainer.train_dataset["score_rejected"]) == pytest.approx([0.2, 0.0])


def test_a_score_outside_the_range_names_column_row_and_range(load_micro, tmp_path):
    with pytest.raises(ValueError, match="score_chosen of row 1 is 7.0, outside score_range 0 to 5"):
        trainer_for(load_micro, dataset_with(7.0), tmp_path, score_range=(0, 5))


def test_missing_scores_raise_for_score_aware_methods_only(load_micro, tmp_path):
    plain = dataset_with(1.0).remove_columns(["score_rejected"])
    with pytest.raises(ValueError, match="missing: score_rejected"):
        trainer_for(load_micro, plain, tmp_path, method="rdpo")
    with pytest.raises(ValueError, match="needs the columns"):
        trainer_for(load_micro, plain, tmp_path, method="dpo", nll_weight=1.0, nll_on="accepted")
    assert len(trainer_for(load_micro, plain, tmp_path, method="dpo").train_dataset) == 2


@pytest.mark.parametrize("option, value", [
    ("loss_type", "ipo"), ("loss_weights", [2.0]), ("use_weighting", True), ("ld_alpha", 0.5), ("f_divergence_type", "forward_kl"), ("loss_type", ["sigmoid", "sft"]),
])  # fmt: skip
def test_inherited_options_that_our_loss_would_ignore_raise(option, value, tmp_path):
    assert option in IGNORED_OPTIONS
    with pytest.raises(ValueError, match=f"{option}=.* would have no effect"):
        RDPOConfig(output_dir=str(tmp_path), **{option: value})


@pytest.mark.parametrize("options, message", [
    ({"method": "rdpoo"}, "unknown loss 'rdpoo'"), ({"nll_on": "some"}, "'all', 'accepted' or 'better'"), ({"nll_weight": -1.0}, "cannot be negative"),
    ({"score_range": (1, 1)}, "lowest, highest"),
])  # fmt: skip
def test_bad_settings_raise_before_any_work(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RDPOConfig(output_dir=str(tmp_path), **options)


def test_a_callable_method_gets_scores_and_trains(load_micro, pairs, tmp_path):
    def doubled(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, score_chosen, score_rejected, beta):
        gap = policy_chosen_logps - reference_chosen_logps - policy_rejected_logps + reference_rejected_logps
        return -2 * torch.nn.functional.logsigmoid(beta * gap - (score_chosen - score_rejected))

    ours = loss_and_gradients(trainer_for(load_micro, pairs, tmp_path, method="rdpo"))
    hooked = loss_and_gradients(trainer_for(load_micro, pairs, tmp_path, method=doubled))
    assert hooked[0] == pytest.approx(2 * ours[0], rel=1e-5)
    assert torch.allclose(hooked[1], 2 * ours[1], rtol=1e-3, atol=1e-7)


def distance_of_adapters(ours, theirs):
    """Relative to the size of the second."""
    ours, theirs = (torch.cat([parameter.detach().flatten() for parameter in adapter_of(model).values()]) for model in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.slow
@pytest.mark.parametrize("method, short_row", [("dpo", 10**6), ("rdpo", 0)], ids=["dpo, masks", "rdpo, stretches"])
def test_packed_and_padded_rows_train_alike(method, short_row, load_micro, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("common.logprobs.compute.SHORT_ROW", short_row)
    curves, models = {}, {}
    for packed in (True, False):
        trainer = trainer_for(load_micro, pairs, tmp_path / str(packed), method=method, packed=packed, max_steps=100, beta=0.3, train_sampling_strategy="group_by_length")
        trainer.train()
        curves[packed], models[packed] = [row for row in trainer.state.log_history if "loss" in row], trainer.model
    assert len(curves[True]) == 100
    for name in ("loss", "rewards/margins", "logps/chosen"):
        ours, theirs = (torch.tensor([row[name] for row in curves[packed]]) for packed in (True, False))
        assert theirs.std() > 0 and (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max(), name
    assert distance_of_adapters(models[True], models[False]) < 1e-3


@pytest.mark.filterwarnings("ignore:.*keep_end.*deprecated:FutureWarning")
@pytest.mark.parametrize("truncation_mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_length", [8, 40, 1024])
def test_truncation_is_trls(truncation_mode, packed, max_length, load_micro, pairs, tmp_path):
    plain = preference_dataset(pairs).remove_columns(["score_chosen", "score_rejected", "length"])
    options = {**COMMON, "max_length": max_length, "truncation_mode": truncation_mode}
    longest = max(len(row["prompt_ids"]) for row in trainer_for(load_micro, pairs, tmp_path).train_dataset)
    if truncation_mode == "keep_start":
        options["max_length"] = max_length = max_length if max_length > longest else longest + 3  # a prompt that fills it is dropped by TRL
    ours = trainer_for(load_micro, plain, tmp_path, method="dpo", packed=packed, **{name: options[name] for name in ("max_length", "truncation_mode")})
    model, tokenizer = load_micro()
    theirs = DPOTrainer(model, args=DPOConfig(output_dir=str(tmp_path), **options), train_dataset=plain, processing_class=tokenizer, peft_config=lora_settings(8))
    assert len(ours.train_dataset) == len(theirs.train_dataset) == len(pairs)
    batch = ours.data_collator([{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in ours.train_dataset])
    assert (batch["input_ids"].size(1) == max_length) == (max_length < 1024)  # something was cut
    found, expected = (torch.stack(trainer.compute_ref_log_probs(trainer.model, batch)) for trainer in (ours, theirs))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(found.T[0], torch.tensor([ours.train_dataset[0][f"ref_{side}_logps"] for side in ("chosen", "rejected")]), rtol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_evaluation_uses_the_reference_too(packed, load_micro, pairs, tmp_path):
    model, tokenizer = load_micro()
    arguments = RDPOConfig(output_dir=str(tmp_path), method="dpo", packed=packed, max_steps=2, **COMMON)
    trainer = RDPOTrainer(model, args=arguments, train_dataset=preference_dataset(pairs[:16]), eval_dataset=preference_dataset(pairs[16:]), processing_class=tokenizer, peft_config=lora_settings(8))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] != pytest.approx(math.log(2), abs=1e-4)


def test_full_fine_tuning_keeps_its_reference_and_trains_the_head(micro, pairs, tmp_path):
    losses = {}
    for packed in (True, False):
        load = lambda: load_student(micro, four_bit=False, compute_dtype=torch.float32)  # noqa: E731
        trainer = trainer_for(load, pairs, tmp_path / str(packed), peft=False, method="dpo", packed=packed, max_steps=3)
        assert trainer.ref_model is None  # nothing beside the numbers is kept of it
        head = trainer.model.get_output_embeddings().weight
        before = head.detach().clone()
        trainer.train()
        assert not torch.equal(head, before)
        losses[packed] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[True][0] == pytest.approx(math.log(2), abs=1e-5) and losses[True][2] < losses[True][0]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_completion_without_tokens_is_refused(side, load_micro, tmp_path):
    rows = dataset_with(1.0).to_list()
    rows[1][side][0]["content"] = ""
    model, tokenizer = load_micro()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match=f"the {side} completion of row 1 of the train dataset has no tokens"):
        trainer_for(lambda: (model, tokenizer), Dataset.from_list(rows), tmp_path, score_range=(0, 5))


def test_gradient_checkpointing_trains_alike(load_micro, pairs, tmp_path):
    models, forwards = [], []
    for checkpointing in (False, True):
        trainer = trainer_for(load_micro, pairs, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing, max_steps=3)
        calls = []
        trainer.model.base_model.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        trainer.train()
        models.append(trainer.model)
        forwards.append(len(calls))
    assert forwards[1] > forwards[0]  # layers are computed again in backward
    assert distance_of_adapters(*models) < 1e-4


@pytest.mark.slow
def test_two_processes_train_as_one(micro, load_micro, pairs, tmp_path):
    alone = trainer_for(load_micro, pairs, tmp_path / "1", max_steps=3, per_device_train_batch_size=8)
    alone.train()
    alone.model.save_pretrained(tmp_path / "1" / "adapter")
    (tmp_path / "scored.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(Path(__file__).parent.parent / "processes.py")]
    subprocess.run([*launch, str(micro), str(tmp_path / "scored.jsonl"), str(tmp_path / "2"), "4"], check=True, capture_output=True)
    one, two = (load_file(tmp_path / processes / "adapter" / "adapter_model.safetensors") for processes in "12")
    assert all((one[name] - two[name]).norm() <= 1e-4 * one[name].norm() for name in one) and len(one) == len(two)
    (kept,) = (tmp_path / "2" / "reference").glob("*.json")  # each process computed a part
    assert len(json.loads(kept.read_text())) == len(alone.train_dataset)


def test_a_model_that_others_loaded_is_kept_from_repacking_too(micro, pairs, tmp_path):
    def load():
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        return AutoModelForCausalLM.from_pretrained(micro, quantization_config=settings), AutoTokenizer.from_pretrained(micro)

    trainer = trainer_for(load, pairs, tmp_path, packed=False)  # its reference pass runs in evaluation mode
    layers = [module for module in trainer.model.modules() if isinstance(module, Linear4bit)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
