"""SAPO and self-play: rejected answers that the student makes while it trains (pytest tests/training/test_self_augmented.py)."""

import json
import random
from collections import Counter

import pytest
import torch

from common.data.preference import accepted, preference_dataset
from common.methods import METHODS, SelfAugmentedSettings, TrainSettings, check_references, sees_scores
from common.miniature import lab
from common.miniature.worlds import safety
from common.notebook.parameters import TrainRDPO
from common.schema import ScoredPair
from common.student.adapters import lora_settings
from common.trainer.config import RDPOConfig
from common.trainer.rdpo import RDPOTrainer
from common.training.before import preference_methods
from common.training.comparison import Experiment
from common.training.kept import training_of
from common.training.self_augmented.buffer import Buffer, MadePair, draw_probabilities
from common.training.self_augmented.counts import counts_of
from common.training.self_augmented.segments import cut_point, spliced
from common.training.self_augmented.trainer import SelfAugmentedTrainer, move
from common.training.train import common_arguments, preference_trainer, train

ROWS = ("sapo", "sapo_accepted", "self_play")
SETTINGS = TrainSettings(
    learning_rate=1e-2, epochs=2, batch_size=4, beta=0.2, max_length=256, lora_rank=4, self_augmented=SelfAugmentedSettings(segment=4)
)  # fmt: skip
FLOAT32 = {"compute_dtype": torch.float32}


@pytest.fixture(scope="module")
def good():
    """Six pairs with good answers of several segments, two of them not accepted."""
    made = []
    for number, record in enumerate(safety.prompts_for("train", 6, benign_share=0.25, seed=0)):
        better = 0.1 if number % 4 == 0 else 0.9
        made.append(ScoredPair(**record.model_dump(), response=f"No {number}.", response_revised=f"Here we see {number}, and take it.", score_response=0.5, score_revised=better))
    return made


@pytest.fixture
def trainer_of(load_micro, good, tmp_path):
    def make(method="sapo", settings=SETTINGS, **load):
        return preference_trainer(method, *load_micro(**load), good, settings, tmp_path)[0]

    return make


def lora(model, adapter="default"):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if f".{adapter}." in name}


def equal(one, other):
    return [torch.equal(*both) for both in zip(one.values(), other.values(), strict=True)].count(False) == 0


@pytest.mark.parametrize("kept, copies", [(0.5, [0, 0.5, 1.25, 2.125]), (0.9, [0, 0.1, 0.29, 0.561]), (0.0, [0, 1, 2, 3]), (1.0, [0, 0, 0, 0])])
def test_oracle_numbers_of_the_moving_copy(kept, copies):
    copy, found = torch.zeros(1, dtype=torch.float64), []
    for policy in range(4):
        move(copy, torch.tensor([float(policy)], dtype=torch.float64), kept)
        found.append(copy.item())
    assert found == pytest.approx(copies, abs=1e-6)


def test_the_average_of_factors_is_not_that_of_products():
    factors = [torch.tensor([2.0, 3.0]), torch.tensor([4.0, 1.0])]
    move(factors[0], factors[1], 0.5)
    assert factors[0].prod().item() == pytest.approx(6, abs=1e-6) and (2 * 3 + 4 * 1) / 2 == 5


def test_oracle_numbers_of_the_draws():
    assert draw_probabilities([0, 1, 3]) == pytest.approx([0.571429, 0.285714, 0.142857], abs=1e-6)


@pytest.mark.parametrize("tokens, segment, last", [(47, 16, 28), (20, 16, 1), (19, 16, 0), (10, 10, 0), (5, 9, 0)])
def test_a_segment_begins_where_three_tokens_stay_behind_it(tokens, segment, last):
    rng = random.Random(0)
    assert {cut_point(tokens, segment, rng) for _ in range(1000)} == set(range(last + 1))


STOP, NEWLINE = 99, 98


@pytest.mark.parametrize(
    "cut, piece, tokens, ended",
    [
        (2, [7, 8], [1, 2, 7, 8, 5, 6, STOP, NEWLINE], False),
        (2, [7, STOP, 8], [1, 2, 7, STOP, NEWLINE], True),
        (0, [STOP], [STOP, NEWLINE], True),
        (0, [7] * 8, [7] * 8, False),
        (0, [1, 2, 3, 4, 5, 6, STOP, 7], [1, 2, 3, 4, 5, 6, STOP, NEWLINE], True),
        (4, [], [1, 2, 3, 4, 5, 6, STOP, NEWLINE], False),
    ],
)
def test_a_piece_takes_the_place_of_as_many_tokens_or_ends_the_answer(cut, piece, tokens, ended):
    assert spliced([1, 2, 3, 4, 5, 6, STOP, NEWLINE], cut, piece, {STOP, 97}) == (tokens, ended)
    assert spliced([1, 2, 3], 1, [97, 5], {STOP, 97}) == ([1, 97], True)  # a good answer that max_length has cut


def test_the_buffer_loses_the_oldest_and_draws_what_was_drawn_least():
    buffer = Buffer(3, random.Random(0))
    assert buffer.draw(4) == []
    buffer.add([MadePair([i], [i], []) for i in range(4)])
    assert [pair.prompt for pair in buffer.pairs] == [[1], [2], [3]]
    drawn = buffer.draw(3000)
    assert [pair.drawn for pair in buffer.pairs] == list(Counter(pair.prompt[0] for pair in drawn)[i] for i in (1, 2, 3))
    buffer.add([MadePair([4], [4], [])])
    assert buffer.pairs[-1].drawn == 0 and all(pair.drawn > 900 for pair in list(buffer.pairs)[:-1])
    assert sum(pair.prompt == [4] for pair in buffer.draw(20)) == 20  # a weight of 1 against 2 of a thousandth


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_three_adapters_begin_alike_in_float32_and_one_is_trained(compute_dtype, micro, good, tmp_path):
    from common.student.load import load_student

    trainer, used = preference_trainer("sapo", *load_student(micro, compute_dtype=compute_dtype), good, SETTINGS, tmp_path)
    adapters = {name: lora(trainer.model, name) for name in ("default", "ema", "ref")}
    assert used == 6 and equal(adapters["default"], adapters["ema"]) and equal(adapters["default"], adapters["ref"])
    assert {values.dtype for adapter in adapters.values() for values in adapter.values()} == {torch.float32}
    assert {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad} == adapters["default"].keys()


@pytest.mark.parametrize("kept, method", [(0.0, "sapo"), (0.5, "sapo"), (1.0, "sapo"), (0.5, "self_play")])
def test_the_copy_follows_the_policy_and_the_reference_the_copy_at_an_epoch_s_beginning(kept, method, trainer_of):
    trainer = trainer_of(method, SETTINGS.changed(self_augmented=SelfAugmentedSettings(ema=kept)))
    start, expected, reference = lora(trainer.model), lora(trainer.model), lora(trainer.model)
    for number in range(5):
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter)
        begins = number in (0, 3)
        policy = lora(trainer.model)
        trainer._move(begins)
        if method == "self_play":
            expected = policy if begins else expected
        else:
            expected = {name: (1 - kept) * policy[name] + kept * expected[name] for name in policy}
        reference = expected if begins else reference
        for adapter, values in (("ema", expected), ("ref", reference), ("default", policy)):
            for one, other in zip(lora(trainer.model, adapter).values(), values.values(), strict=True):
                torch.testing.assert_close(one, other)
    if kept == 0.0:
        assert equal(lora(trainer.model, "ema"), lora(trainer.model))
    if kept == 1.0:
        assert equal(lora(trainer.model, "ema"), start) and equal(lora(trainer.model, "ref"), start)


@pytest.mark.parametrize("method, segment", [("sapo", 4), ("sapo", 500), ("self_play", 4)])
def test_the_copy_makes_a_segment_and_the_rest_is_the_good_answer_s(method, segment, trainer_of, monkeypatch):
    trainer = trainer_of(method, SETTINGS.changed(self_augmented=SelfAugmentedSettings(segment=segment)))
    whole = method == "self_play" or segment == 500
    asked, continuations = [], trainer._chat.continuations

    def noted(prefixes, sampling, top_k):
        asked.append((trainer.model.active_adapter, trainer.model.training, sampling, top_k))
        return continuations(prefixes, sampling, top_k)

    monkeypatch.setattr(trainer._chat, "continuations", noted)
    rows = [(row["prompt_ids"], row["chosen_ids"]) for row in trainer.train_dataset]
    trainer.model.train()
    state = torch.get_rng_state()
    made = trainer._remade(rows) + trainer._remade(rows)
    assert torch.equal(torch.get_rng_state(), state) and trainer.model.training and trainer.model.active_adapter == "default"
    assert {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad} == lora(trainer.model).keys()
    [first, second] = asked
    assert first[0] == "ema" and (first[2].temperature, first[2].top_p, first[3]) == (0.7, 0.95, 50) and first[2].seed != second[2].seed
    assert first[2].max_new_tokens == (max(len(answer) for _, answer in rows) if whole else 4)
    stops, lengths = trainer._chat.stops, set()
    for pair, (prompt, answer) in zip(made, rows * 2):
        assert pair.prompt == prompt and pair.chosen == answer and len(pair.rejected) <= len(answer)
        alike = next((i for i, (one, other) in enumerate(zip(pair.rejected, answer)) if one != other), len(answer))
        ended = len(pair.rejected) < len(answer)
        lengths.add(alike)
        assert stops.intersection(pair.rejected[-2:]) if ended else whole or pair.rejected[alike + 4 :] == answer[alike + 4 :]
        assert whole or not ended or len(pair.rejected) <= len(answer) - 3
    assert whole or len(lengths) > 3  # cut in several places
    assert trainer.made.answers == 12 and trainer.made.distinct == len({(tuple(pair.prompt), tuple(pair.rejected)) for pair in made})
    assert trainer.made.identical == sum(pair.chosen == pair.rejected for pair in made)
    checkpointed = trainer_of(method, SETTINGS.changed(self_augmented=SelfAugmentedSettings(segment=segment)))
    checkpointed.model.base_model.model.gradient_checkpointing_enable()
    checkpointed.model.train()
    assert [pair.rejected for pair in checkpointed._remade(rows)] == [pair.rejected for pair in made[:6]]


def test_identical_answers_stay_out_of_the_buffer_and_a_batch_of_them_alone_has_no_gradient(trainer_of):
    trainer = trainer_of()
    alike, other = MadePair([1], [2, 3], [2, 3]), MadePair([1], [2, 3], [2, 4])
    assert trainer._drawn([alike, alike]) == [alike, alike]
    assert trainer._drawn([alike, other, alike]) == [other] * 3 and list(trainer._buffer.pairs) == [other]
    batch = trainer.data_collator([{"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [7, 8]}])
    trainer.compute_loss(trainer.model.train(), batch).backward()
    assert all(not parameter.grad.any() for parameter in trainer.model.parameters() if parameter.grad is not None)


def test_given_pairs_and_a_reference_that_never_moves_are_dpo_to_the_bit(load_micro, good, trainer_of, tmp_path, monkeypatch):
    """b = 1, the newest pairs of the buffer, and the teacher's rejected answers."""
    settings, found, rejected = SETTINGS.changed(self_augmented=SelfAugmentedSettings(ema=1.0)), [], {}
    monkeypatch.setattr(SelfAugmentedTrainer, "_remade", lambda self, rows: [MadePair(prompt, answer, rejected[tuple(prompt)]) for prompt, answer in rows])
    monkeypatch.setattr(Buffer, "draw", lambda self, count: list(self.pairs)[-count:])
    model, tokenizer = load_micro()
    arguments = RDPOConfig(method="dpo", learning_rate=1e-2, beta=0.2, precompute_ref_log_probs=False, **common_arguments(model, settings, tmp_path))
    plain = lambda: RDPOTrainer(model, args=arguments, train_dataset=preference_dataset(good), processing_class=tokenizer, peft_config=lora_settings(4))  # noqa: E731
    for make in (plain, lambda: trainer_of("sapo", settings)):
        trainer = make()
        rejected |= {tuple(row["prompt_ids"]): row["rejected_ids"] for row in trainer.train_dataset}
        trainer.train()
        found.append((lora(trainer.model), [step["loss"] for step in trainer.state.log_history if "loss" in step]))
    assert equal(found[0][0], found[1][0]) and found[0][1] == found[1][1] and found[0][1][-1] < found[0][1][0]


@pytest.mark.slow
def test_a_rerun_is_the_same_to_the_bit_and_a_batch_in_parts_nearly(micro, good, tmp_path, monkeypatch, capsys):
    begun, moved = [], SelfAugmentedTrainer._move
    monkeypatch.setattr(SelfAugmentedTrainer, "_move", lambda self, begins_epoch: (begun.append(begins_epoch), moved(self, begins_epoch))[1])
    runs = [train("sapo", micro, good, SETTINGS.changed(micro_batch=parts), tmp_path, **FLOAT32) for parts in (0, 0, 2)]
    said = capsys.readouterr().out
    assert begun == [True, False, True, False] * 3
    first, again, in_parts = (lora(run.model) for run in runs)
    log = lambda run: [{name: value for name, value in step.items() if "runtime" not in name and "per_second" not in name} for step in run.history]  # noqa: E731
    assert equal(first, again) and log(runs[0]) == log(runs[1])
    different = torch.cat([(first[name] - in_parts[name]).flatten() for name in first]).norm()
    assert different <= 0.01 * torch.cat([values.flatten() for values in first.values()]).norm()
    made = counts_of(runs[0].history)
    assert (made.answers, runs[0].pairs_used) == (12, 6) and 6 < made.distinct <= 12 and f"training sapo, seed 0: {made}" in said and "answers made" in said
    assert list(runs[0].model.peft_config) == ["default"] and not any(".ema." in name or ".ref." in name for name, _ in runs[0].model.named_parameters())


def test_scores_decide_who_is_accepted_and_nothing_else(trainer_of, micro, good, tmp_path):
    assert trainer_of("sapo_accepted").pairs_used == len(accepted(good)) == 4
    with pytest.raises(ValueError, match="sapo_accepted: no revision scored higher than its original, so there is nothing to train on"):
        train("sapo_accepted", micro, [pair.swapped() for pair in accepted(good)], SETTINGS, tmp_path, **FLOAT32)


@pytest.mark.slow
def test_the_rows_stand_in_the_table_as_others_do(micro, good, tmp_path, monkeypatch):
    evaluator = lab.evaluator("safety", prompts=4, max_new_tokens=12)
    experiment = lambda: Experiment(micro, good, evaluator, tmp_path, SETTINGS, match_utility=False, **lab.LOADED)  # noqa: E731
    results = experiment().run(ROWS, [0])
    assert [result.pairs_used for result in results] == [6, 4, 6]
    for result in results:
        folder = tmp_path / "seed-0" / result.method
        assert result.settings["made"]["answers"] == 2 * result.pairs_used and {metric.metric for metric in result.metrics} >= {"harmlessness", "utility", "kl"}
        assert {path.name for path in (folder / "adapter").iterdir()} >= {"adapter_model.safetensors", "README.md"} and not (folder / "adapter" / "ema").exists()
        assert json.loads((folder / "training.json").read_text())["history"][-2]["made/answers"] == result.settings["made"]["answers"]
    assert results[0].settings["self_augmented"] == {"segment": 4, "ema": 0.5, "buffer": 2000} and "self_augmented" not in results[2].settings
    monkeypatch.setattr(SelfAugmentedTrainer, "__init__", None)  # nothing is trained again
    kept = experiment().train("sapo", 0)
    assert counts_of(kept.history).answers == 12 and kept.mark == training_of("sapo", micro, good, SETTINGS, **lab.LOADED)


def test_what_the_rows_need_and_read(micro, good):
    assert {name for name, row in METHODS.items() if row.remakes} == {*ROWS, "sapo_nll"}
    assert [sees_scores(name) for name in ROWS] == [False, True, False] and all(METHODS[name].needs_pairs_alone for name in ROWS)
    assert preference_methods(["dpo", *ROWS]) == ["dpo"]
    for changed in ({"segment": 8}, {"ema": 0.9}, {"buffer": 5}):
        other = SETTINGS.changed(self_augmented=SelfAugmentedSettings(**{"segment": 4} | changed))
        assert {name for name in METHODS if training_of(name, micro, good, SETTINGS) != training_of(name, micro, good, other)} == {"sapo", "sapo_nll", "sapo_accepted"}
    check_references(["dpo"], SETTINGS.changed(reference="unquantised"))
    with pytest.raises(ValueError, match="sapo: the reference is the policy of an earlier step; leave reference = unquantised out"):
        check_references(["dpo", "sapo"], SETTINGS.changed(reference="unquantised"))


def test_settings_come_from_the_parameters_and_are_checked():
    given = {"experiment": "safety", "output": "runs", "methods": ["sapo"]}
    assert TrainRDPO.of(given | {"self_augmented": {"segment": 8}}).training.self_augmented == SelfAugmentedSettings(8)
    for wrong, message in (
        ({"segment": 0}, "segment = 0"), ({"ema": 1.5}, "ema = 1.5"), ({"buffer": 2.5}, "buffer = 2.5"), ({"segments": 4}, "unknown setting 'segments', did you mean segment"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"self_augmented: {message}"):
            TrainRDPO.of(given | {"self_augmented": wrong})
