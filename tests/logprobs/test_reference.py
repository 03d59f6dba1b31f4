"""Reference log-probabilities kept on disk (pytest tests/logprobs/test_reference.py)."""

import json

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from common.data.preference import preference_dataset
from common.logprobs.reference import ReferenceCache, reference_identity
from common.student.adapters import lora_settings
from common.trainer import rdpo as trainer_module
from common.trainer.config import RDPOConfig
from common.trainer.rdpo import RDPOTrainer


def make_trainer(load_micro, pairs, tmp_path, run="run", seed=0, model=None, tokenizer=None, **options):
    if model is None:
        model, tokenizer = load_micro()
    settings = {
        "output_dir": str(tmp_path / run), "reference_cache": str(tmp_path / "reference"), "seed": seed, "bf16": False, "gradient_checkpointing": False, "max_length": 256,
        "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False, **options,
    }  # fmt: skip
    dataset = pairs if isinstance(pairs, Dataset) else preference_dataset(pairs)
    return RDPOTrainer(model, args=RDPOConfig(**settings), train_dataset=dataset, processing_class=tokenizer, peft_config=lora_settings(8))


def columns(trainer):
    return list(trainer.train_dataset["ref_chosen_logps"]), list(trainer.train_dataset["ref_rejected_logps"])


@pytest.fixture
def forwards(monkeypatch):
    """How many pairs each reference pass computed."""
    counted = []
    compute = trainer_module.watched_logprobs
    monkeypatch.setattr(trainer_module, "watched_logprobs", lambda model, groups, **more: counted.append(len(groups)) or compute(model, groups, **more))
    return counted


def test_a_second_method_and_another_seed_compute_nothing(load_micro, pairs, tmp_path, forwards):
    scored = [pair for pair in pairs if pair.is_scored]
    first = make_trainer(load_micro, scored[:12], tmp_path, method="rdpo")
    assert sum(forwards) == 12
    again = make_trainer(load_micro, scored[:12], tmp_path, "other", method="dpo", seed=7)
    assert sum(forwards) == 12 and columns(again) == columns(first)
    other_pairs = make_trainer(load_micro, scored[8:16], tmp_path, "third", seed=3)
    assert sum(forwards) == 16  # four pairs are new
    assert [column[:4] for column in columns(other_pairs)] == [column[8:] for column in columns(first)]
    assert len(list((tmp_path / "reference").glob("*.json"))) == 1


def test_a_pair_has_the_same_numbers_whoever_asked_first(load_micro, pairs, tmp_path):
    scored = [pair for pair in pairs if pair.is_scored][:8]
    together = columns(make_trainer(load_micro, scored, tmp_path))
    apart = columns(make_trainer(load_micro, scored[5:], tmp_path, reference_cache=str(tmp_path / "elsewhere")))
    assert apart == (together[0][5:], together[1][5:])  # bit by bit: a pair is computed alone


def test_by_default_it_lies_under_the_output_folder(load_micro, pairs, tmp_path):
    make_trainer(load_micro, pairs[:4], tmp_path, reference_cache=None)
    assert len(list((tmp_path / "run" / "reference").glob("*.json"))) == 1


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_text(path.read_text()[:-40]), lambda path: path.write_text("[1, 2]"), lambda path: path.write_bytes(b"\xff\xfe\x00"),
    lambda path: path.write_text('{"a": [1.0]}'), lambda path: path.write_text('{"a": [1.0, null]}'),
], ids=["cut", "a list", "no text", "one number", "null"])  # fmt: skip
def test_a_file_that_cannot_be_read_is_made_again(spoil, load_micro, pairs, tmp_path, forwards):
    first = make_trainer(load_micro, pairs[:4], tmp_path)
    (path,) = (tmp_path / "reference").glob("*.json")
    whole = json.loads(path.read_text())
    computed = sum(forwards)
    spoil(path)
    with pytest.warns(UserWarning, match="cannot be read .* and is made again"):
        again = make_trainer(load_micro, pairs[:4], tmp_path, "again")
    assert sum(forwards) == 2 * computed and columns(again) == columns(first) and json.loads(path.read_text()) == whole


@pytest.mark.parametrize("change", [{"max_length": 60}, {"packed": False}], ids=str)
def test_lengths_and_way_of_computing_are_part_of_the_key(change, load_micro, pairs, tmp_path, forwards):
    make_trainer(load_micro, pairs[:4], tmp_path)
    computed = sum(forwards)
    make_trainer(load_micro, pairs[:4], tmp_path, "changed", **change)
    assert sum(forwards) > computed


def test_the_template_is_part_of_the_key(load_micro, pairs, tmp_path, forwards):
    make_trainer(load_micro, pairs[:4], tmp_path)
    model, tokenizer = load_micro()
    tokenizer.chat_template = tokenizer.chat_template + "{# the same words #}"
    computed = sum(forwards)
    make_trainer(load_micro, pairs[:4], tmp_path, "same", model=model, tokenizer=tokenizer)
    assert sum(forwards) == computed  # the same tokens
    model, tokenizer = load_micro()
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template if tokenizer.bos_token else "{{ eos_token }}" + tokenizer.chat_template
    make_trainer(load_micro, pairs[:4], tmp_path, "changed", model=model, tokenizer=tokenizer)
    assert sum(forwards) == 2 * computed


def test_identity_knows_the_base_weights_and_nothing_of_adapter_or_place(load_micro):
    model, _ = load_micro()
    identity = reference_identity(model)
    model.config._name_or_path = "moved/elsewhere"
    assert reference_identity(model) == identity != reference_identity(model, packed=True)
    torch.manual_seed(5)
    adapted = get_peft_model(model, lora_settings(4))
    assert reference_identity(adapted) != identity
    adapted.base_model.disable_adapter_layers()  # as the reference has them
    assert reference_identity(adapted) == identity
    norm = next(parameter for name, parameter in adapted.named_parameters() if "norm" in name)
    norm.data[0] += 1e-3
    assert reference_identity(adapted) != identity
    norm.data[0] -= 1e-3
    adapted.config.rms_norm_eps = 1e-3
    assert reference_identity(adapted) != identity


def test_processes_that_add_at_the_same_time_keep_each_others_values(tmp_path):
    one, two = ReferenceCache(tmp_path, "model"), ReferenceCache(tmp_path, "model")
    one.add({"a": (-1.0, -2.5)})
    two.add({"b": (-0.1, -3.0)})
    assert ReferenceCache(tmp_path, "model").values == {"a": (-1.0, -2.5), "b": (-0.1, -3.0)} == two.values
    assert ReferenceCache(tmp_path, "other").values == {}
