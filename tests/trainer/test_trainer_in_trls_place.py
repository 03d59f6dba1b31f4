"""RDPOTrainer where a script for TRL's DPOTrainer expects that one: arguments, datasets, adapters, settings (pytest tests/trainer/test_trainer_in_trls_place.py)."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, Value
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.helpers import rescale_adapter_scale
from tiny_models import tiny_causal_model, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    ProcessorMixin,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, TrlParser
from trl.trainer.dpo_trainer import DataCollatorForPreference

from common.chat.local import LocalChat
from common.data.preference import with_normalised_scores
from common.logprobs.reference import reference_identity
from common.methods import TrainSettings
from common.schema import Sampling, ScoredPair
from common.trainer.collator import ScoreCollator
from common.trainer.config import RDPOConfig
from common.trainer.rdpo import RDPOTrainer
from common.training.train import train

LORA = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear"}
QUICK = {
    "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "max_steps": 2, "report_to": "none",
    "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False, "logging_steps": 1, "lr_scheduler_type": "constant",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_causal_model(tmp_path_factory.mktemp("llama"), "llama", "chatml"))


def rows(count=8, chosen=5.0, rejected=0.0, **more):
    said = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    return [
        {"prompt": said("user", f"Is tea number {i} nice?"), "chosen": said("assistant", f"Yes, number {i} is really nice."), "rejected": said("assistant", f"No {i}."),
         "score_chosen": chosen, "score_rejected": rejected, **more}
        for i in range(count)
    ]  # fmt: skip


def data(*args, **kwargs):
    return Dataset.from_list(rows(*args, **kwargs))


def settings(folder, **options):
    return RDPOConfig(str(folder), **{"method": "dpo", "score_range": (0, 5), **QUICK, **options})


def trainer_for(model, folder, dataset=None, lora=True, options=None, **given):
    dataset = data() if dataset is None else dataset
    return RDPOTrainer(model, args=settings(folder, **(options or {})), train_dataset=dataset, **{"peft_config": LoraConfig(**LORA) if lora else None, **given})


def losses(trainer, name="loss"):
    return [row[name] for row in trainer.state.log_history if name in row]


def trained(trainer):
    trainer.train()
    return trainer


def plain(model):
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def trained_before(model, name="default"):
    """A PeftModel whose adapter is not zero."""
    torch.manual_seed(1)
    ready = get_peft_model(plain(model), LoraConfig(**LORA), adapter_name=name)
    for parameter_name, parameter in ready.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(0, 0.3)
    return ready


# Arguments


def test_tokenizer_collator_and_reference_are_loaded_as_trl_does(llama, tmp_path):
    ours = RDPOTrainer(llama, None, settings(tmp_path), None, data(), None)
    theirs = DPOTrainer(llama, None, DPOConfig(str(tmp_path), **QUICK), None, data(), None)
    ours.train(), theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4) and losses(ours)[0] == pytest.approx(math.log(2), rel=1e-6)
    assert isinstance(ours.data_collator, ScoreCollator) and losses(ours, "num_tokens") == losses(theirs, "num_tokens")


def test_the_order_of_arguments_that_scripts_before_it_have_still_works(llama, tmp_path):
    with pytest.warns(FutureWarning, match="TRL's order"):
        trainer = RDPOTrainer(plain(llama), settings(tmp_path), data(), data(2), AutoTokenizer.from_pretrained(llama))
    assert trainer.pairs_used == 8 and len(trainer.eval_dataset) == 2
    with pytest.warns(FutureWarning, match="TRL's order"):
        assert RDPOTrainer(llama, settings(tmp_path), train_dataset=data(4)).pairs_used == 4


@pytest.mark.parametrize("scores, method", [("no ", "dpo"), ("", "rdpo")])
def test_without_arguments_the_data_choose_the_method_and_it_is_said(scores, method, llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = RDPOConfig.__post_init__
    monkeypatch.setattr(RDPOConfig, "__post_init__", lambda self: (vars(self).update(use_cpu=True), real(self)))  # bf16 by default, as TRL
    table = data(chosen=1.0) if method == "rdpo" else data().remove_columns("score_chosen")
    with pytest.warns(UserWarning, match=f"method='{method}', since the data have {scores}scores"):
        trainer = RDPOTrainer(llama, train_dataset=table)
    assert trainer.args.method == method and trainer.args.output_dir.endswith("-RDPO")


@pytest.mark.parametrize("bf16, emulated, warned", [(None, True, True), (None, False, False), (False, True, False)])
def test_bfloat16_is_warned_of_where_a_cpu_emulates_it(bf16, emulated, warned, llama, tmp_path, monkeypatch):
    monkeypatch.setattr("common.trainer.prepare.emulates_bfloat16", lambda: emulated)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RDPOTrainer(llama, args=settings(tmp_path, bf16=bf16), train_dataset=data(4))
    assert any("set bf16=False" in str(one.message) for one in caught) == warned


@pytest.mark.parametrize("given, error, message", [
    ({"args": None, "train_dataset": None}, ValueError, "train_dataset. is required"), ({"train_dataset": rows()}, TypeError, "train_dataset. must be a .Dataset"),
    ({"args": "plain"}, TypeError, "must be an RDPOConfig, not DPOConfig"), ({"eval_dataset": rows()}, TypeError, "eval dataset must be a Dataset"),
    ({"train_dataset": Dataset.from_list([])}, ValueError, "train dataset is empty"), ({"ref_model": "a/name"}, TypeError, "ref_model must be a loaded model, not str"),
    ({"model": Path("folder")}, TypeError, "model must be a name, a folder or a loaded model, not PosixPath"),
    ({"train_dataset": Dataset.from_list([{"prompt": "a", "choosen": "b", "rejected": "c"}])}, ValueError, "no column 'chosen', did you mean choosen.; there are choosen, prompt, rejected"),
    ({"eval_dataset": data().remove_columns("rejected")}, ValueError, "the eval dataset has no column 'rejected'"),
])  # fmt: skip
def test_wrong_arguments_are_named(given, error, message, llama, tmp_path):
    args = {"plain": DPOConfig(str(tmp_path), **QUICK)}.get(given.get("args"), settings(tmp_path))
    with pytest.raises(error, match=message):
        RDPOTrainer(**{"model": llama, "train_dataset": data(), **given, "args": args})


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_a_row_without_a_text_is_named(column, llama, tmp_path):
    with pytest.raises(ValueError, match=f"{column} of row 2 of the train dataset is missing; leave such pairs out"):
        trainer_for(llama, tmp_path, Dataset.from_list([*rows(2), {**rows(1)[0], column: None}]))


def test_text_alone_is_trained_on(llama, tmp_path):
    class Processor(ProcessorMixin):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="trains on text alone"):
        trainer_for(llama, tmp_path, processing_class=Processor())


def test_a_missing_pad_token_pad_token_and_padding_are_trls(tmp_path):
    model = str(tiny_causal_model(tmp_path / "base", "llama", "llama", False))
    trainer = trainer_for(model, tmp_path)
    assert trainer.processing_class.pad_token == trainer.processing_class.eos_token
    trainer = trainer_for(model, tmp_path, options={"pad_token": "<|end|>", "pad_to_multiple_of": 32})
    assert trainer.processing_class.pad_token == "<|end|>" and next(iter(trainer.get_train_dataloader()))["input_ids"].size(1) % 32 == 0
    trainer.train()


@pytest.mark.parametrize("wrap", [lambda collator: collator, lambda collator: lambda examples: collator(examples)], ids=["TRL's", "a function"])
def test_a_given_collator_gets_the_scores_beside_its_tokens(wrap, llama, tmp_path):
    trainer = trainer_for(llama, tmp_path, options={"method": "rdpo"}, data_collator=wrap(DataCollatorForPreference(0)))
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log1p(math.e), rel=1e-5)


# Adapters and reference


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"packed": False}, {"precompute_ref_log_probs": False}], ids=["packed", "rows", "live"])
def test_a_ready_adapter_is_where_training_begins_and_its_own_reference(options, llama, tmp_path):
    trained_before(llama).save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(plain(llama), tmp_path / "adapter", is_trainable=True)
    ours = trainer_for(model, tmp_path, lora=False, options=options, processing_class=AutoTokenizer.from_pretrained(llama))
    theirs = DPOTrainer(trained_before(llama), args=DPOConfig(str(tmp_path), **QUICK), train_dataset=data(), processing_class=AutoTokenizer.from_pretrained(llama))
    ours.train(), theirs.train()
    assert losses(ours)[0] == pytest.approx(math.log(2), abs=1e-6) and losses(ours) == pytest.approx(losses(theirs), rel=1e-4)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


def test_a_ready_adapter_on_nf4_is_not_rounded(load_micro, tmp_path):
    base, tokenizer = load_micro()
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(**LORA))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.05
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    trainer = trainer_for(model, tmp_path, lora=False, options={"max_steps": 1}, processing_class=tokenizer)
    assert all(torch.equal(dict(model.named_parameters())[name], values) for name, values in before.items())
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_an_adapter_that_cannot_be_trained_on_is_refused(llama, tmp_path):
    trained_before(llama).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="no trainable parameter; .* is_trainable=True"):
        trainer_for(PeftModel.from_pretrained(plain(llama), tmp_path / "adapter"), tmp_path, lora=False)
    with pytest.raises(ValueError, match=r"adapter is an adapter: to go on from it, give PeftModel.from_pretrained\(base, .*adapter', is_trainable=True"):
        trainer_for(str(tmp_path / "adapter"), tmp_path, lora=False)
    with pytest.raises(ValueError, match="must be named 'default', not 'mine'"):
        trainer_for(trained_before(llama, "mine"), tmp_path, lora=False)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("precompute", [True, False])
def test_a_given_reference_is_the_one_that_is_compared_with(precompute, lora, llama, tmp_path):
    other = plain(llama)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    ours = trainer_for(llama, tmp_path, lora=lora, ref_model=other, options={"precompute_ref_log_probs": precompute, "reference_cache": str(tmp_path / "cache")})
    theirs = DPOTrainer(llama, other, DPOConfig(str(tmp_path), **QUICK), train_dataset=data(), peft_config=LoraConfig(**LORA) if lora else None)
    ours.train(), theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4) and abs(losses(ours)[0] - math.log(2)) > 1e-3


def test_full_fine_tuning_keeps_the_dtype_of_the_model(llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    trainer_for(model, tmp_path, lora=False, processing_class=AutoTokenizer.from_pretrained(llama)).train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("precompute", [True, False])
def test_prompt_tuning_trains_in_padded_rows_as_with_trl(precompute, llama, tmp_path):
    virtual = lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)  # noqa: E731
    ours = trainer_for(llama, tmp_path, options={"precompute_ref_log_probs": precompute}, peft_config=virtual())
    theirs = DPOTrainer(llama, args=DPOConfig(str(tmp_path), **QUICK), train_dataset=data(), peft_config=virtual())
    ours.train(), theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4)


@pytest.mark.slow
def test_reference_columns_of_another_model_are_not_believed(llama, tmp_path):
    stale = data().add_column("ref_chosen_logps", [-10.0] * 8).add_column("ref_rejected_logps", [-90.0] * 8)
    for precompute in (True, False):
        trainer = trainer_for(llama, tmp_path, stale, options={"precompute_ref_log_probs": precompute, "max_steps": 1})
        trainer.train()
        assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.slow
def test_a_mixture_of_experts_gets_its_load_balancing_loss(tmp_path):
    model = str(tiny_causal_model(tmp_path / "base", "mixtral", "chatml", num_local_experts=4, num_experts_per_tok=2))
    for coefficient in (None, 0.5, 0.0):
        ours = trainer_for(model, tmp_path, options={"router_aux_loss_coef": coefficient})
        theirs = DPOTrainer(model, args=DPOConfig(str(tmp_path), router_aux_loss_coef=coefficient, **QUICK), train_dataset=data(), peft_config=LoraConfig(**LORA))
        ours.train(), theirs.train()
        assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4) and losses(ours, "aux_loss") == pytest.approx(losses(theirs, "aux_loss"), rel=1e-4)
    with pytest.warns(UserWarning, match="padded rows, .* router_aux_loss_coef=0"):
        trainer_for(model, tmp_path)


@pytest.mark.slow
def test_the_model_gets_its_attention_back_and_can_be_trained_again(llama, tmp_path):
    model, tokenizer = plain(llama), AutoTokenizer.from_pretrained(llama)
    long = Dataset.from_list([{**row, "prompt": [{"role": "user", "content": row["prompt"][0]["content"] * 40}]} for row in rows()])
    for _ in range(2):
        trainer = trainer_for(model, tmp_path, long, lora=False, processing_class=tokenizer, eval_dataset=long.select(range(2)))
        assert model.config._attn_implementation == "sdpa"
        trainer.train(), trainer.evaluate()
        assert model.config._attn_implementation == "sdpa"


# Data


@pytest.mark.slow
@pytest.mark.parametrize("conversational", [True, False], ids=["conversations", "plain text"])
def test_a_prompt_may_be_implicit_and_text_plain(conversational, llama, tmp_path):
    explicit = rows()
    if not conversational:
        explicit = [{**row, **{name: f" {row[name][0]['content']}" for name in ("prompt", "chosen", "rejected")}} for row in explicit]
    implicit = [{**row, "chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in explicit]
    curves = []
    for table in (Dataset.from_list(explicit), Dataset.from_list(implicit).remove_columns("prompt")):
        trainer = trainer_for(llama, tmp_path, table, options={"method": "rdpo"})
        trainer.train()
        curves.append(losses(trainer) + losses(trainer, "num_tokens"))
    assert curves[0] == curves[1] and curves[0][0] == pytest.approx(math.log1p(math.e), rel=1e-5)


@pytest.mark.parametrize("kind", ["table", "stream", "dict", "DatasetDict", "dict of streams"])
def test_evaluation_data_of_every_kind_give_one_loss(kind, llama, tmp_path):
    held_out = data(4, 3.0, 2.0)
    named = {"a": held_out, "b": held_out}
    given = {
        "table": held_out, "stream": held_out.to_iterable_dataset(), "dict": named, "DatasetDict": DatasetDict(named),
        "dict of streams": {name: table.to_iterable_dataset() for name, table in named.items()},
    }[kind]  # fmt: skip
    trainer = trainer_for(llama, tmp_path, eval_dataset=given, options={"method": "rdpo"})
    again = trainer.eval_dataset if kind == "table" else given  # what was prepared before is not scaled twice
    for metrics in (trainer.evaluate(), trainer.evaluate(given), trainer.evaluate(again)):
        found = [value for name, value in metrics.items() if name.endswith("_loss")]
        assert len(found) == (1 if kind in ("table", "stream") else 2) and found == pytest.approx([math.log1p(math.exp(0.2))] * len(found), abs=1e-5)


def test_unscored_pairs_are_left_out_of_evaluation_too(llama, tmp_path):
    trainer = trainer_for(llama, tmp_path, options={"method": "rdpo"})
    held_out = Dataset.from_list(rows(2, 3.0, 2.0) + rows(2, None, 2.0))
    assert trainer.evaluate(held_out)["eval_loss"] == pytest.approx(math.log1p(math.exp(0.2)), abs=1e-5)
    with pytest.raises(ValueError, match="score_chosen of row 0 is 7.0, outside score_range 0 to 5 .in the eval dataset."):
        trainer.evaluate(data(2, 7.0, 2.0))
    with pytest.raises(ValueError, match="missing: score_rejected"):
        trainer.evaluate(data(2).remove_columns("score_rejected"))


@pytest.mark.slow
def test_a_stream_trains_as_the_table_does(llama, tmp_path):
    table = Dataset.from_list(rows(7, 4, 1) + rows(2, None, 1))
    curves = []
    for dataset in (table, table.to_iterable_dataset()):
        trainer = trainer_for(llama, tmp_path, dataset, options={"method": "rdpo", "train_sampling_strategy": "sequential", "max_steps": 1})
        trainer.train()
        curves.append(losses(trainer))
    assert curves[0] == pytest.approx(curves[1], rel=1e-5) and trainer.pairs_used is None
    with pytest.raises(ValueError, match="score_chosen of row 1 is 9"):
        trainer_for(llama, tmp_path, Dataset.from_list(rows(1) + rows(1, 9.0)).to_iterable_dataset(), options={"method": "rdpo"}).train()


def test_pairs_left_out_are_counted_by_reason(llama, tmp_path):
    long = [{**row, "prompt": [{"role": "user", "content": "word " * 400}]} for row in rows(3)]
    trainer = trainer_for(llama, tmp_path, Dataset.from_list(rows(4) + rows(2, None) + long), options={"max_length": 96})
    assert trainer.pairs_used == 4 and trainer.left_out["train"] == {"unscored": 2, "prompt fills max_length": 3} and trainer.unscored == 2


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float32", "float16"])
def test_scores_of_every_number_type_are_normalised(dtype, llama):
    top = 1 if dtype == "bool" else 5
    low = 0 if dtype == "bool" else 1
    table = Dataset.from_dict({"score_chosen": [top] * 1500 + [top], "score_rejected": [0] * 1500 + [low]}).cast_column("score_chosen", Value(dtype)).cast_column("score_rejected", Value(dtype))
    found = with_normalised_scores(table, (0, top), True)
    assert (found[0]["score_chosen"], found[1500]["score_rejected"]) == (1.0, low / top) and found.features["score_chosen"].dtype == "float64"
    assert with_normalised_scores(found, (0, top), True)[1500]["score_rejected"] == low / top


@pytest.mark.parametrize("score", ["4", [4.0], math.nan, math.inf])
def test_a_score_that_is_no_number_is_named(score, llama):
    with pytest.raises(ValueError, match="score_chosen of row 0 .* no number|score_chosen of row 0 is (nan|inf), outside"):
        with_normalised_scores(data(2, chosen=score), (0, 5), True)


@pytest.mark.slow
def test_a_loss_without_scores_takes_any(llama, tmp_path):
    for scores in (8.5, "4", None):
        trainer = trainer_for(llama, tmp_path, data(4, scores, scores), options={"score_range": (0, 1), "max_steps": 1})
        trainer.train()
        assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_tools_and_template_arguments_belong_to_the_prompt(llama, tmp_path):
    needs = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}{{ who }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}bot{{ opens }}{% endif %}"
    tool = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    for opens, refused in ((" thinks", True), ("", True)):
        tokenizer = AutoTokenizer.from_pretrained(llama)
        tokenizer.chat_template = needs
        table = data(2, tools=json.dumps(tool), chat_template_kwargs={"who": "a", "opens": opens})
        with pytest.raises(ValueError, match="chosen completion of pair 0: .* no prefix"):
            trainer_for(llama, tmp_path, table, processing_class=tokenizer)
    tokenizer.chat_template = needs.replace("bot{{ opens }}", "")
    assert trainer_for(llama, tmp_path, table, processing_class=tokenizer).pairs_used == 2


def test_held_out_rows_are_checked_before_training(tmp_path):
    model = str(tiny_causal_model(tmp_path / "base", text="one\n\n\ntwo\n\n\nthree"))
    merges = rows(1)
    merges[0]["chosen"][0]["content"] = "\n\nYes."
    with pytest.raises(ValueError, match="chosen completion of pair 0 of the eval dataset: .* no prefix"):
        trainer_for(model, tmp_path, eval_dataset=Dataset.from_list(merges))


# Numbers that are not finite, and positions that end


@pytest.mark.slow
def test_a_gradient_or_loss_that_is_not_finite_ends_training_before_the_weights(llama, tmp_path):
    def broken(policy_chosen_logps, **_):
        return policy_chosen_logps * math.nan

    def steep(policy_chosen_logps, **_):
        return torch.sqrt(policy_chosen_logps - policy_chosen_logps.detach())  # 0, with a vertical slope

    for method, message in ((broken, "the loss of step 1 is NaN or infinite"), (steep, "the gradient of step 1 is NaN or infinite")):
        trainer = trainer_for(llama, tmp_path, options={"method": method})
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    with pytest.raises(ValueError, match="the size of the trained weights is NaN or infinite; lower learning_rate"):
        trainer_for(llama, tmp_path, options={"learning_rate": 1e30, "max_steps": 1}).train()
    pair = ScoredPair(id="0", experiment="own_data", split="train", prompt="Tea?", response="No.", response_revised="Yes.", score_response=0.0, score_revised=1.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        train("sft", llama, [pair], TrainSettings(sft_learning_rate=1e30, batch_size=1), tmp_path, compute_dtype=torch.float32)


@pytest.mark.parametrize("name, value", [
    ("beta", math.nan), ("alpha", math.inf), ("eta", -math.inf), ("learning_rate", math.nan), ("nll_weight", math.inf), ("weight_decay", math.nan),
    ("score_range", (-math.inf, math.inf)), ("score_range", (0, math.nan)), ("score_range", "05"), ("score_range", (1,)), ("score_range", 5),
])  # fmt: skip
def test_settings_that_are_no_finite_numbers_are_refused(name, value, tmp_path):
    with pytest.raises(ValueError, match=f"{name}.*finite number"):
        settings(tmp_path, **{name: value})
    with pytest.raises(ValueError, match="alpha = nan: input should be a finite number"):
        TrainSettings(knobs={"alpha": math.nan})


def test_a_knob_that_the_method_does_not_take_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing is the rate"):
        settings(tmp_path, method="cdpo", label_smoothing=0.7)
    with pytest.raises(ValueError, match="beta must be positive"):
        settings(tmp_path, method="ipo", beta=0.0)


def test_more_tokens_than_positions_are_named(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path, "chatml")
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    long = [{**row, "prompt": [{"role": "user", "content": "word " * 40}]} for row in rows(2)]
    with pytest.raises(ValueError, match="the model has 32 positions; set max_length=32"):
        trainer_for(str(tmp_path), tmp_path / "out", Dataset.from_list(long), lora=False)
    pair = ScoredPair(id="0", experiment="own_data", split="train", prompt="Tea?", response="No.", response_revised="Yes.", score_response=0.0, score_revised=1.0)
    with pytest.raises(ValueError, match="the student has 32 positions, fewer than max_length=1024"):
        train("sft", tmp_path, [pair], TrainSettings(), tmp_path / "out", four_bit=False)
    chat = LocalChat(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokenizer)
    reply = chat.complete([[{"role": "user", "content": "Tea?"}]], Sampling(max_new_tokens=128))[0]
    assert reply.prompt_tokens + reply.completion_tokens <= 32
    with pytest.raises(ValueError, match="leaves no room for an answer"):
        chat.complete([[{"role": "user", "content": "word " * 40}]], Sampling(max_new_tokens=8))


# Settings, files and what is logged


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_settings_are_parsed_from_a_command_line(parser, tmp_path):
    line = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    (found,) = parser(RDPOConfig).parse_args_into_dataclasses(line)
    assert (found.method, found.score_range, found.precompute_ref_log_probs) == ("rdpo", [0.0, 1.0], None)
    options = ["--method", "rdpo_soft", "--score_range", "-5", "5", "--eta", "2", "--packed", "false", "--nll_on", "accepted", "--loss_type", "sigmoid"]
    (found,) = parser(RDPOConfig).parse_args_into_dataclasses(line + options)
    assert (found.method, found.score_range, found.eta, found.packed, found.nll_on) == ("rdpo_soft", [-5.0, 5.0], 2.0, False, "accepted")


def test_settings_are_read_from_yaml_and_written_to_json(tmp_path):
    (tmp_path / "dpo.yaml").write_text(f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nmethod: rdpo\nscore_range: [0, 5]\nloss_type: sigmoid\n", encoding="utf-8")
    (found,) = TrlParser(RDPOConfig).parse_args_and_config(["--config", str(tmp_path / "dpo.yaml"), "--alpha", "2"])
    assert (found.method, found.score_range, found.alpha) == ("rdpo", [0.0, 5.0], 2.0)
    assert json.loads(found.to_json_string())["score_range"] == [0.0, 5.0]
    (tmp_path / "settings.json").write_text(found.to_json_string(), encoding="utf-8")
    parser = HfArgumentParser(RDPOConfig)
    for (again,) in (parser.parse_json_file(tmp_path / "settings.json"), parser.parse_dict(found.to_dict())):
        assert again.to_dict() == found.to_dict()


def test_a_local_function_as_method_survives_a_checkpoint_by_its_name(llama, tmp_path):
    def local(policy_chosen_logps, policy_rejected_logps, beta, **_):
        return -torch.nn.functional.logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps))

    trainer = trainer_for(llama, tmp_path, options={"method": local, "save_strategy": "steps", "save_steps": 1})
    trainer.train()
    assert trainer.args.method is local and json.loads(trainer.args.to_json_string())["method"].endswith("<locals>.local")
    assert torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False).method.endswith("<locals>.local")


@pytest.mark.parametrize("method, tags, said", [
    ("dpo", {"trl", "dpo"}, "2305.18290"), ("rdpo_soft", {"trl", "dpo", "rdpo", "rdpo_soft"}, "2402.08005"), ("cdpo", {"trl", "dpo", "cdpo"}, "a variant of DPO"),
])  # fmt: skip
def test_tags_and_card_say_what_was_trained(method, tags, said, llama, tmp_path):
    trainer = trainer_for(llama, tmp_path, options={"method": method})
    trainer.create_model_card(model_name="mine")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert tags == set(trainer.model.model_tags) and said in card and f"loss `{method}`, beta 0.1" in card


def test_callbacks_see_what_is_logged_and_may_end_the_training(llama, tmp_path):
    class Stop(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            control.should_training_stop = "mean_token_accuracy" in logs

    for given in (Stop, Stop()):
        trainer = trainer_for(llama, tmp_path, callbacks=[given], options={"max_steps": 5})
        trainer.train()
        assert trainer.state.global_step == 1


def test_predictions_and_metrics_are_of_trls_logits(llama, tmp_path):
    seen = []
    ours = trainer_for(llama, tmp_path, eval_dataset=data(2), compute_metrics=lambda found: seen.append(found) or {"mine": 0.5}, options={"max_steps": 1})
    assert ours.evaluate()["eval_mine"] == 0.5 and ours.evaluate({"a": data(2), "b": data(2)})["eval_b_mine"] == 0.5
    theirs = DPOTrainer(llama, args=DPOConfig(str(tmp_path), **QUICK), train_dataset=data(), eval_dataset=data(2), peft_config=LoraConfig(**LORA))
    expected = theirs.predict(theirs.eval_dataset)
    assert torch.allclose(torch.tensor(seen[0].predictions), torch.tensor(expected.predictions), atol=1e-5) and (seen[0].label_ids == expected.label_ids).all()
    assert ours.predict(ours.eval_dataset).metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"])


def test_an_average_reference_follows_the_policy(llama, tmp_path):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0, "max_steps": 3, "learning_rate": 1e-2}
    trainer = trainer_for(llama, tmp_path, lora=False, options=options)
    trainer.train()
    assert losses(trainer) == pytest.approx([math.log(2)] * 3, abs=1e-4) and trainer.args.precompute_ref_log_probs is False


def test_settings_stay_undecided_for_another_trainer(llama, tmp_path):
    args = settings(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = RDPOTrainer(llama, args=args, train_dataset=data())
        stream = RDPOTrainer(llama, args=args, train_dataset=data().to_iterable_dataset())
    assert (table.args.precompute_ref_log_probs, stream.args.precompute_ref_log_probs, args.precompute_ref_log_probs) == (True, False, None)


# Adapters that TRL's reference does not follow


@pytest.mark.parametrize("adapter", [LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "embed_tokens"]), IA3Config(task_type="CAUSAL_LM")], ids=["embeddings", "IA3"])
def test_a_ready_adapter_of_any_kind_is_its_own_reference(adapter, llama, tmp_path):
    """TRL copies parameters named `.default.` alone, and so leaves those of embeddings and IA3 fresh in the reference."""
    torch.manual_seed(1)
    ready = get_peft_model(plain(llama), adapter)
    for name, parameter in ready.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    trainer = RDPOTrainer(ready, args=settings(tmp_path, learning_rate=1e-9), train_dataset=data())
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6) and losses(trainer, "shift/chosen")[0] == pytest.approx(0, abs=1e-6)


def test_what_stays_on_in_the_reference_must_not_be_trained(llama, tmp_path):
    with pytest.raises(ValueError, match=r"base_layer.bias \(\d+ parameters in all\) is trained beside the adapter and would move the reference"):
        with_bias = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=AutoTokenizer.from_pretrained(llama).vocab_size + 64))
        RDPOTrainer(with_bias, args=settings(tmp_path), train_dataset=data(), processing_class=AutoTokenizer.from_pretrained(llama), peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True, bias="lora_only"))
    ready = get_peft_model(plain(llama), LoraConfig(**LORA))
    ready.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="norm.weight .1 parameters"):
        RDPOTrainer(ready, args=settings(tmp_path), train_dataset=data())
    assert RDPOTrainer(ready, ref_model=plain(llama), args=settings(tmp_path), train_dataset=data()).pairs_used == 8
    kept_whole = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert RDPOTrainer(plain(llama), args=settings(tmp_path), train_dataset=data(), peft_config=kept_whole).pairs_used == 8


@pytest.mark.parametrize("part", ["lora_A", "layers.0"])
def test_what_is_frozen_in_a_ready_adapter_stays_frozen(part, llama, tmp_path):
    model = trained_before(llama)
    frozen = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "lora_" in name and part in name}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    trainer = trainer_for(model, tmp_path, lora=False)
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert frozen and all(torch.equal(after[name], before) and not after[name].requires_grad for name, before in frozen.items())
    assert any(parameter.requires_grad for name, parameter in after.items() if ".default" in name)


@pytest.mark.parametrize("init", ["pissa", "olora", False])
def test_a_new_adapter_that_changes_the_model_at_once_is_refused(init, llama, tmp_path):
    given = LoraConfig(**LORA, init_lora_weights=init)
    with pytest.raises(ValueError, match=r"lora_B.* is not 0 before training, .*make the adapter first, with get_peft_model, or give ref_model"):
        trainer_for(llama, tmp_path, lora=False, peft_config=given)
    ready = get_peft_model(plain(llama), given)
    assert losses(trained(trainer_for(ready, tmp_path / "ready", lora=False)))[0] == pytest.approx(math.log(2), abs=1e-4)


def test_a_reference_that_shares_the_policy_s_weights_is_refused(llama, tmp_path):
    base = plain(llama)
    with pytest.raises(ValueError, match="ref_model shares weights with the model, so it would move with it; leave ref_model out, or load it again"):
        trainer_for(get_peft_model(base, LoraConfig(**LORA)), tmp_path, lora=False, ref_model=base)


def test_whole_modules_train_in_the_model_s_bfloat16_as_with_trl(llama, tmp_path):
    lora = LoraConfig(**LORA, modules_to_save=["lm_head"])
    trainer = trained(trainer_for(plain(llama).bfloat16(), tmp_path, lora=False, peft_config=lora))
    dtypes = {"modules_to_save" in name: parameter.dtype for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert dtypes == {True: torch.bfloat16, False: torch.float32} and all(map(math.isfinite, losses(trainer)))


def test_a_column_of_weights_is_said(llama, tmp_path):
    with pytest.warns(UserWarning, match="the column weight says how often the loss of each pair counts; rename it, or it will"):
        assert losses(trained(trainer_for(llama, tmp_path, data(weight=0.5))))[0] == pytest.approx(math.log(2) / 2, abs=1e-4)


def test_shift_and_likelihood_are_a_counted_token_s_where_shared_ones_count_less(llama, tmp_path):
    """All tokens of the answer count a tenth: the mean over counted tokens is that over all."""
    said = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    same = Dataset.from_list([{**row, "chosen": said("Yes, it is."), "rejected": said("Yes, it is.")} for row in rows()])
    ready, whole = ({"unchanged_weight": share, "nll_weight": 1.0, "nll_on": "all", "max_steps": 1} for share in (0.1, 1.0))
    tenth, all_of_it = (trained(trainer_for(trained_before(llama), tmp_path / str(i), same, lora=False, options=options)) for i, options in enumerate((ready, whole)))
    assert losses(tenth)[0] == pytest.approx(losses(all_of_it)[0], rel=1e-4)
    assert losses(tenth, "shift/chosen")[0] == pytest.approx(losses(all_of_it, "shift/chosen")[0], abs=1e-5)


def test_training_goes_on_from_the_adapter_default_alone(llama, tmp_path):
    ready = trained_before(llama)
    ready.add_adapter("style", LoraConfig(**LORA))
    for active in (["default", "style"], "style"):
        ready.base_model.set_adapter(active)
        with pytest.raises(ValueError, match="goes on from the adapter 'default' alone, and active are .*'style'"):
            RDPOTrainer(ready, args=settings(tmp_path), train_dataset=data())
    ready.set_adapter("default")
    assert RDPOTrainer(ready, args=settings(tmp_path), train_dataset=data()).pairs_used == 8


def test_the_reference_is_computed_without_dropout(llama, tmp_path):
    ready = get_peft_model(plain(llama), LoraConfig(**LORA, lora_dropout=0.5))
    for name, parameter in ready.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    ready.train()
    trainer = RDPOTrainer(ready, args=settings(tmp_path, disable_dropout=False), train_dataset=data(), eval_dataset=data())
    assert trainer.model.training and trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_references_that_differ_in_what_is_switched_on_are_kept_apart(llama):
    model = trained_before(llama)
    model.add_adapter("other", LoraConfig(**LORA))
    model.requires_grad_(False)
    found = []
    for active in ("default", "other"):
        model.set_adapter(active, inference_mode=True)
        found.append(reference_identity(model))
    model.set_adapter("default")  # whether it is trainable changes nothing
    for strength in (1.0, 4.0):
        with rescale_adapter_scale(model, strength):
            found.append(reference_identity(model))
    with model.disable_adapter():
        found.append(reference_identity(model))
    assert found[0] == found[2] and len(set(found)) == 4
