"""SFT and dSC against TRL's own trainer (pytest tests/training/test_methods.py)."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from trl import SFTTrainer

from common.data.preference import prompt_messages
from common.logprobs.compute import summed_logprobs
from common.methods import METHODS, TrainSettings, is_trained
from common.runtime import ROOT
from common.student.load import load_student
from common.training.kept import training_of
from common.training.supervised import supervised_trainer
from common.training.train import common_arguments, preference_trainer, train


def sft_trainer(method, model, tokenizer, pairs, settings, output):
    return supervised_trainer(method, model, tokenizer, pairs, settings, common_arguments(model, settings, output))


def test_sft_equals_trl_on_the_same_batch(load_micro, pairs, tmp_path):
    trainer, used = sft_trainer("sft", *load_micro(), pairs, TrainSettings(batch_size=8), tmp_path)
    assert used == len(pairs)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.05
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["attention_mask"] == 0).any() and (batch["labels"] == -100).any()
    for tokens in (None, torch.tensor(100)):  # the batch's own, or those of a step with gradient accumulation
        found = []
        for compute in (type(trainer).compute_loss, SFTTrainer.compute_loss):
            trainer.model.zero_grad()
            loss = compute(trainer, trainer.model, dict(batch), num_items_in_batch=tokens)
            loss.backward()
            found.append((loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])))
        (our_loss, our_gradient), (their_loss, their_gradient) = found
        assert abs(our_loss - their_loss) <= 1e-5 * their_loss
        assert (our_gradient - their_gradient).norm() <= 1e-4 * their_gradient.norm() > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "rdpo_nll"])
def test_a_batch_in_parts_trains_the_same_student(method, micro, pairs, tmp_path):
    scored = [pair for pair in pairs if pair.is_scored][:16]
    found, history = [], []
    for micro_batch in (0, 2):
        settings = TrainSettings(batch_size=8, micro_batch=micro_batch, epochs=1, learning_rate=1e-3, sft_learning_rate=1e-3)
        trained = train(method, micro, scored, settings, tmp_path, compute_dtype=torch.float32)
        found.append(torch.cat([parameter.flatten() for name, parameter in trained.model.named_parameters() if "lora_B" in name]))
        history.append([step["loss"] for step in trained.history if "loss" in step])
    assert found[0].norm() > 0 and (found[0] - found[1]).norm() <= 0.01 * found[0].norm()
    assert len(history[0]) == 2 and history[1] == pytest.approx(history[0], rel=1e-3)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_training_of_one_step_learns(method, micro, pairs, tmp_path):
    scored = [pair for pair in pairs if pair.is_scored][:4]
    trained = train(method, micro, scored, TrainSettings(batch_size=8, epochs=1, learning_rate=1e-3, sft_learning_rate=1e-3), tmp_path, compute_dtype=torch.float32)
    assert [step["learning_rate"] for step in trained.history if "learning_rate" in step] == [1e-3]
    assert all(parameter.abs().max() > 0 for name, parameter in trained.model.named_parameters() if "lora_B" in name)


def test_parts_that_do_not_divide_the_batch_are_refused_and_leave_no_mark():
    with pytest.raises(ValueError, match="micro_batch = 3 does not divide batch_size = 8"):
        TrainSettings(batch_size=8, micro_batch=3)
    assert TrainSettings(batch_size=8, micro_batch=2).as_dict("dpo") == TrainSettings(batch_size=8).as_dict("dpo")


@pytest.mark.parametrize(
    "knob, read_by",
    [
        ({"eta": 4.0}, {"rdpo_label", "label_nll", "rdpo_ml", "rdpo_soft", "rdpo_squared"}),
        ({"tau": 0.25}, {"rdpo_label", "label_nll"}),
        ({"variance": 2.0}, {"rdpo_ml"}),
        ({"alpha": 4.0}, {"rdpo", "rdpo_nll", "rdpo_nll_accepted", "rdpo_expo", "rdpo_mrpo", "rdpo_rounds"}),
        ({"label_smoothing": 0.2}, {"cdpo", "robust"}),
        ({"nll_weight": 2.0}, {name for name, row in METHODS.items() if row.nll_on}),
        ({"sft_learning_rate": 1e-3}, {"sft", "dsc", "fa", "rwr", "ca", "figa"}),
        ({"rwr_temperature": 1.0}, {"rwr"}),
        ({"ca_score": 0.5}, {"ca"}),
        ({"learning_rate": 1e-3}, {name for name, row in METHODS.items() if row.loss}),
        ({"reference": "unquantised"}, {name for name, row in METHODS.items() if row.loss}),
        ({"second_reference": "unquantised"}, {"mrpo", "rdpo_mrpo", "dpo_second", "multi_dpo"}),
        ({"mrpo_eta": 0.5}, {"mrpo", "rdpo_mrpo", "multi_dpo"}),
        ({"mrpo_weight": 0.5}, {"mrpo", "rdpo_mrpo", "multi_dpo"}),
        ({"optimism": 0.01}, {"selm", "selm_nll"}),
        ({"annotator_types": 3}, {"em_dpo", "cluster_dpo"}),
        ({"em_steps": 2}, {"em_dpo"}),
        ({"em_start": "dirichlet"}, {"em_dpo"}),
        ({"epochs": 5}, {name for name in METHODS if is_trained(name)}),
    ],
)
def test_a_knob_is_part_of_the_mark_of_those_methods_that_read_it(knob, read_by, micro, pairs):
    mark = lambda method, **changes: training_of(method, micro, pairs[:2], TrainSettings().changed(**changes))  # noqa: E731
    changed = {method for method in METHODS if mark(method) != mark(method, **knob)}
    assert changed == read_by


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_adapters_stay_in_float32_and_compute_as_the_model_does(method, compute_dtype, micro, pairs, tmp_path):
    make = sft_trainer if method == "sft" else preference_trainer
    scored = [pair for pair in pairs if pair.is_scored]
    trainer, _ = make(method, *load_student(micro, compute_dtype=compute_dtype), scored, TrainSettings(batch_size=8, epochs=1), tmp_path)
    seen = set()
    layer = next(module for module in trainer.model.modules() if hasattr(module, "lora_A"))
    layer.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    trainer.train()
    assert {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad} == {torch.float32}
    assert seen == {compute_dtype}


def test_the_unquantised_reference_is_the_model_that_nf4_was_made_of(micro, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("common.runtime.resolve", lambda path: tmp_path / "reference")
    scored = [pair for pair in pairs if pair.is_scored][:4]
    usual, other = TrainSettings(batch_size=4), TrainSettings(batch_size=4, reference="unquantised")
    found = {}
    for settings in (usual, other):
        trainer, _ = preference_trainer("dpo", *load_student(micro, compute_dtype=torch.float32), scored, settings, tmp_path)
        found[settings.reference] = torch.tensor([trainer.train_dataset["ref_chosen_logps"], trainer.train_dataset["ref_rejected_logps"]])
    for four_bit, reference in ((True, usual.reference), (False, other.reference)):
        model, tokenizer = load_student(micro, four_bit=four_bit, compute_dtype=torch.float32)
        prompts = [tokenizer.apply_chat_template(prompt_messages(pair), add_generation_prompt=True, return_dict=True)["input_ids"] for pair in scored]
        for answers, logps in zip(([pair.response_revised for pair in scored], [pair.response for pair in scored]), found[reference]):
            whole = [tokenizer.apply_chat_template([*prompt_messages(pair), {"role": "assistant", "content": answer}], return_dict=True)["input_ids"] for pair, answer in zip(scored, answers)]
            torch.testing.assert_close(summed_logprobs(model, prompts, [ids[len(prompt) :] for ids, prompt in zip(whole, prompts)]), logps, rtol=0, atol=1e-3)
    assert (found["unquantised"] - found["adapters off"]).abs().max() > 0.01
    assert "reference" not in usual.as_dict("dpo") and training_of("dpo", micro, scored, usual) != training_of("dpo", micro, scored, other)


MADE_UP = {
    "loss.py": ("LOSSES: dict", '''def tilted(u: Tensor, score_gap: Tensor, *, tilt: float = 0.5) -> Tensor:
    """-log sigmoid(u - tilt * g^3), made up."""
    return -F.logsigmoid(u - tilt * score_gap**3)


LOSSES: dict'''),
    "methods/table.py": ("    Method(\"rdpo_flip\"", '    Method("tilted", "tilted DPO", "#123456", loss="tilted", search={"tilt": (0.1, 2.0)}),\n    Method("rdpo_flip"'),
    "trainer/config.py": ("    eta: float", '    tilt: float = _option(0.5, "Tilt of `tilted`.")\n    eta: float'),
}  # fmt: skip
ASKED = """
import json, sys
from pathlib import Path
from common.evaluation.result import Result, row_of
from common.methods import METHODS, TrainSettings, sees_scores
from common.own_data import KNOBS, TRAINED
from common.report.figures import safety_utility_figure
from common.report.tables import results_table
from common.schema import Metric, ScoredPair
from common.student.load import load_student
from common.study.design import trial_settings
from common.training.train import train
from common.training.tuning import settings_of

student, pairs, folder = sys.argv[1:]
pairs = [ScoredPair.model_validate_json(line) for line in Path(pairs).read_text().splitlines()]
settings = TrainSettings(epochs=1, batch_size=8, knobs={"tilt": 1.5})
trained = train("tilted", student, pairs, settings, folder)
metric = lambda name: Metric(experiment="safety", method="tilted", seed=0, metric=name, value=0.5, n=4, k=2, low=0.1, high=0.9)
result = Result("tilted", 0, "", [metric("harmlessness"), metric("utility")])
marks = [line for line in safety_utility_figure([result]).axes[0].collections]
print(json.dumps({
    "knobs": settings.as_dict("tilted")["tilt"], "sees scores": sees_scores("tilted"), "own data": "tilted" in TRAINED and KNOBS["tilt"][0],
    "table": list(results_table([result])["method"]), "trials": "tilt" in trial_settings("tilted")[0], "steps": len(trained.history) > 1, "drawn": bool(marks),
}))
"""


@pytest.mark.slow
def test_a_loss_with_a_knob_of_its_own_touches_three_places(micro, pairs, tmp_path):
    """A copy of the package with a made-up loss: written, given a record, its knob made an option of the trainer, and found everywhere."""
    shutil.copytree(ROOT / "common", tmp_path / "common", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (before, after) in MADE_UP.items():
        file = tmp_path / "common" / name
        text = file.read_text()
        assert text.count(before) == 1
        file.write_text(text.replace(before, after))
    loss = (tmp_path / "common/loss.py").read_text()
    (tmp_path / "common/loss.py").write_text(loss.replace("rdpo_flip, route)", "rdpo_flip, route, tilted)"))
    scored = tmp_path / "scored.jsonl"
    scored.write_text("".join(pair.model_dump_json() + "\n" for pair in pairs if pair.is_scored))
    done = subprocess.run([sys.executable, "-c", ASKED, str(micro), str(scored), str(tmp_path / "out")], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "knobs": 1.5, "sees scores": True, "own data": 0.5, "table": ["tilted DPO"], "trials": True, "steps": True, "drawn": True,
    }  # fmt: skip
