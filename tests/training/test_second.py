"""Rows with a second reference: what they compare with, their marks, and what cannot be one (pytest tests/training/test_second.py)."""

import json
import shutil

import pytest
import torch

from common.evaluation.metrics import Evaluator
from common.methods import METHODS, TrainSettings, check_references
from common.notebook.parameters import TrainRDPO
from common.student.load import load_student
from common.trainer.collator import REFERENCE, SECOND
from common.trainer.config import RDPOConfig
from common.trainer.rdpo import RDPOTrainer
from common.training.before import loss_before_training
from common.training.comparison import Experiment
from common.training.kept import trained_once, training_of
from common.training.train import preference_trainer, train
from tests.tiny_models import tiny_causal_model

FAST = TrainSettings(batch_size=4, learning_rate=1e-3, sft_learning_rate=2e-3, max_length=256, epochs=1)
FLOAT32 = {"compute_dtype": torch.float32}
ROWS = [name for name, row in METHODS.items() if row.references != "own"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Reference log-probabilities of their own."""
    monkeypatch.setattr("common.training.train.resolve", lambda path: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def scored(pairs):
    return [pair for pair in pairs if pair.is_scored][:8]


@pytest.fixture(scope="module")
def adapter(micro, scored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    trained_once("sft", micro, scored, FAST, folder, **FLOAT32)
    return folder / "adapter"


def trained(method, micro, scored, folder, settings=FAST):
    weights = train(method, micro, scored, settings, folder, **FLOAT32).model.named_parameters()
    return {name: parameter for name, parameter in weights if "lora" in name}


def logps(trainer, columns):
    return torch.tensor([trainer.train_dataset[name] for name in columns])


def test_there_are_four_rows():
    assert {name: (METHODS[name].loss, METHODS[name].references) for name in ROWS} == {
        "mrpo": ("dpo", "combined"), "rdpo_mrpo": ("rdpo", "combined"), "dpo_second": ("dpo", "second"), "multi_dpo": ("dpo", "both"),
    }  # fmt: skip
    assert not any(METHODS[name].needs_pairs_alone for name in (*ROWS, "base", "ca", "dpo_expo")) and METHODS["sft"].needs_pairs_alone


@pytest.mark.slow
def test_without_room_for_the_second_reference_the_student_is_that_of_dpo_to_the_bit(micro, scored, adapter, tmp_path):
    dpo = trained("dpo", micro, scored, tmp_path)
    for limit in ({"mrpo_eta": 0.0}, {"mrpo_weight": 1.0}):
        found = trained("mrpo", micro, scored, tmp_path, FAST.changed(second_reference=f"adapter:{adapter}", **limit))
        assert all(torch.equal(found[name], dpo[name]) for name in dpo)
    other = trained("dpo_second", micro, scored, tmp_path, FAST.changed(second_reference=f"adapter:{adapter}"))
    assert not all(torch.equal(other[name], dpo[name]) for name in dpo)


@pytest.mark.slow
def test_the_second_numbers_are_those_of_the_model_that_is_named(micro, scored, adapter, tmp_path, cache):
    """An adapter of no strength is the student in NF4; the student's folder as a model is its unquantised weights."""
    found = {}
    for name in ("unquantised", f"adapter:{adapter}", f"adapter:{adapter}@0.5", f"adapter:{adapter}@0", f"model:{micro}"):
        trainer, _ = preference_trainer("mrpo", *load_student(micro, **FLOAT32), scored, FAST.changed(second_reference=name), tmp_path)
        own, found[name] = logps(trainer, REFERENCE), logps(trainer, SECOND)
    unquantised, whole, half, none, model = found.values()
    torch.testing.assert_close(none, own, atol=1e-3, rtol=0)
    torch.testing.assert_close(model, unquantised, atol=1e-3, rtol=0)
    assert all((one - own).abs().max() > 0.01 for one in (unquantised, whole, half)) and (whole - half).abs().max() > 0.01
    assert len(list(cache.glob("*.json"))) == 6 - 1  # unquantised and the model are the same weights


@pytest.mark.parametrize("method", ROWS)
def test_the_loss_before_training_is_that_of_the_new_reference(method, micro, scored, adapter, tmp_path):
    """The policy is the student, and the reference no longer is, so it is not log 2."""
    run = Experiment(micro, scored, Evaluator.__new__(Evaluator), tmp_path, FAST.changed(second_reference=f"adapter:{adapter}", mrpo_eta=0.5), **FLOAT32)
    measured, analytic = loss_before_training(run, method, 0)
    plain = loss_before_training(run, METHODS[method].loss, 0)
    assert measured == pytest.approx(analytic, abs=2e-4) and plain[0] == pytest.approx(plain[1], abs=2e-4)
    assert abs(measured - plain[0]) > 1e-3


def test_a_stream_is_compared_with_the_second_reference_as_it_comes(load_micro, scored, tmp_path):
    """And what is computed on the way is what is kept."""
    model, tokenizer = load_micro()
    settings = FAST.changed(second_reference="unquantised")
    trainer, _ = preference_trainer("multi_dpo", model, tokenizer, scored, settings, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    kept = trainer.compute_loss(trainer.model.eval(), batch).item()
    bare = {name: value for name, value in batch.items() if name not in (*REFERENCE, *SECOND)}
    assert trainer.compute_loss(trainer.model, bare).item() == pytest.approx(kept, abs=1e-4)


def test_marks_hold_what_the_second_reference_is_and_not_where_it_lies(micro, scored, adapter, tmp_path):
    elsewhere, other = tmp_path / "elsewhere", tmp_path / "other"
    for copy in (elsewhere, other):
        shutil.copytree(adapter, copy)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    mark = lambda place, method="mrpo": training_of(method, micro, scored, FAST.changed(second_reference=place))  # noqa: E731
    marks = [mark(f"adapter:{adapter}"), mark(f"adapter:{other}"), mark(f"adapter:{adapter}@0.5"), mark("unquantised"), mark(f"model:{micro}"), mark("")]
    assert mark(f"adapter:{elsewhere}") == marks[0] and len(set(marks)) == len(marks)
    assert str(tmp_path) not in str(FAST.changed(second_reference=f"adapter:{elsewhere}").as_dict("mrpo"))
    assert mark(f"adapter:{adapter}", "dpo") == mark("unquantised", "dpo")


def test_what_cannot_be_a_second_reference_ends_before_training(micro, scored, adapter, tmp_path):
    with pytest.raises(ValueError, match="unknown second_reference 'adaptr:x', did you mean adapter:...?"):
        FAST.changed(second_reference="adaptr:x")
    with pytest.raises(ValueError, match="mrpo_weight = 1.5"):
        FAST.changed(mrpo_weight=1.5)
    check_references(["dpo", "sft"], FAST)
    with pytest.raises(ValueError, match="multi_dpo compares with a second model; set second_reference to unquantised, adapter:FOLDER or model:NAME"):
        train("multi_dpo", micro, scored, FAST, tmp_path)
    attempt = lambda place: train("mrpo", micro, scored, FAST.changed(second_reference=place), tmp_path, **FLOAT32)  # noqa: E731
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="second_reference: adapter:.*: no adapter_config.json in"):
        attempt(f"adapter:{tmp_path}/empty")
    with pytest.raises(FileNotFoundError, match="second_reference: no student folder at"):
        attempt(f"model:{tmp_path}/nowhere")
    other = tiny_causal_model(tmp_path / "tiny")
    with pytest.raises(ValueError, match="has another tokenizer than the student, so that it cannot score the student's tokens"):
        attempt(f"model:{other}")
    stranger = tmp_path / "stranger"
    shutil.copytree(adapter, stranger)
    (stranger / "trained_on.json").write_text(json.dumps({"base": "another", "weights": "0" * 12}))
    with pytest.raises(ValueError, match="was trained on another, and the student is .* whose weights are others"):
        attempt(f"adapter:{stranger}")


@pytest.mark.parametrize("options, problem", [
    ({"references": "combined"}, "references='combined' with no second_reference"), ({"references": "all"}, "references is 'own', 'combined', 'second', 'both', not 'all'"),
    ({"mrpo_eta": -0.1}, "mrpo_eta is a share"), ({"mrpo_weight": 1.1}, "mrpo_weight lies in"),
])  # fmt: skip
def test_options_of_the_trainer_that_do_not_go_together(options, problem, load_micro, tmp_path):
    with pytest.raises(ValueError, match=problem):
        RDPOTrainer(load_micro()[0], args=RDPOConfig(str(tmp_path), method="dpo", use_cpu=True, bf16=False, **options))


def test_a_notebook_gives_it_in_its_file_of_settings(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("second_reference: unquantised\nmrpo_eta: 0.2\nmrpo_weight: null\n")
    given = {"experiment": "safety", "output": str(tmp_path), "methods": ["dpo", "mrpo"], "settings": str(file)}
    settings = TrainRDPO.of(given).training
    assert (settings.second_reference, settings.mrpo_eta, settings.mrpo_weight) == ("unquantised", 0.2, None)
    file.write_text("mrpo_weight: 0.25\nsecond_reference: adapter:nowhere/at/all\n")
    with pytest.raises(ValueError, match="second_reference: no student folder at nowhere/at/all"):
        TrainRDPO.of(given)
    file.write_text("mrpo_weight: adaptive\n")
    with pytest.raises(ValueError, match=f"settings: {file}: parameter mrpo_weight = 'adaptive'"):
        TrainRDPO.of(given)
