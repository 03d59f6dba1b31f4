"""A third answer in the loss, the student's own: SELM's optimism (pytest tests/trainer/test_optimism.py)."""

import pytest
import torch
from datasets import Dataset
from test_trainer import COMMON, adapter_of, loss_and_gradients, randomise_adapter, trainer_for

from common.data.preference import CUT, EXPLORED, preference_dataset
from common.logprobs.compute import summed_logprobs
from common.loss import optimism_term, preference_loss
from common.schema import Reply, ScoredPair
from common.trainer.collator import EXPLORED_IDS, EXPLORED_REFERENCE, REFERENCE, ScoreCollator
from common.trainer.config import RDPOConfig
from common.trainer.displacement import EXPLORED as EXPLORED_SHIFT
from common.trainer.displacement import FALLEN, movement, warning

CUT_OFF = Reply(text="How can I help you with", finish_reason="length")


@pytest.fixture(scope="module")
def scored(pairs):
    """Pairs with an answer of their own, one that equals the chosen, one cut off, an empty one and none."""
    four = [pair for pair in pairs if pair.is_scored][:4]
    said = [Reply(text=four[0].response_revised), CUT_OFF, Reply(text=" "), None]
    return [pair.model_copy(update={"explored": reply}) for pair, reply in zip(four, said)]


@pytest.mark.parametrize(
    "policy, reference, beta, optimism, loss, forces",
    [
        ((-19, -26, -10), (-20, -24, -12), 0.1, 0.01, 0.556355, (-0.042556, 0.042556, 0.001)),
        ((-19, -26, -10), (-20, -24, -12), 0.01, 0.001, 0.678280, None),
        ((-19, -26, -10), (-20, -24, -12), 0.1, 0.0, 0.554355, (-0.042556, 0.042556, 0.0)),
    ],
)
def test_selm_worked_by_hand(policy, reference, beta, optimism, loss, forces):
    policy = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in map(float, policy)]
    reference = [torch.tensor([value], dtype=torch.float64) for value in map(float, reference)]
    losses, *_ = preference_loss("dpo", *policy[:2], *reference[:2], beta=beta)
    whole = losses + optimism_term(policy[2], reference[2], beta=beta, optimism=optimism)
    assert whole.item() == pytest.approx(loss, abs=1e-6)
    if forces:
        assert [force.item() for force in torch.autograd.grad(whole, policy)] == pytest.approx(forces, abs=1e-6)


def test_an_answer_that_is_also_the_chosen_one_is_pushed_down_where_the_margin_is_large():
    """The net push turns where sigmoid(-u) falls below the weight, u = 6.9 at the authors' 1e-3."""
    for u, sign in ((6.8, -1), (7.0, 1)):
        chosen = torch.tensor([u / 0.1], dtype=torch.float64, requires_grad=True)
        zero = torch.zeros(1, dtype=torch.float64)
        loss = preference_loss("dpo", chosen, zero, zero, zero, beta=0.1)[0] + optimism_term(chosen, zero, beta=0.1, optimism=1e-3)
        assert torch.autograd.grad(loss, chosen)[0].sign().item() == sign


def test_the_column_holds_the_answer_as_messages_and_pairs_without_one_have_none(scored, load_micro, tmp_path):
    dataset = preference_dataset(scored)
    assert dataset[EXPLORED][1] == [{"role": "assistant", "content": CUT_OFF.text}] and dataset[EXPLORED][2:] == [[], []]
    assert dataset[CUT] == [False, True, False, False]
    bare = [pair.model_copy(update={"explored": None}) for pair in scored]
    assert not {EXPLORED, CUT} & set(preference_dataset(bare).column_names)
    assert "explored" not in bare[0].model_dump() and ScoredPair(**scored[1].model_dump()) == scored[1]
    trainer = trainer_for(load_micro, scored, tmp_path, method="dpo", optimism=0.01)
    chosen, found, tokenizer = trainer.train_dataset["chosen_ids"], trainer.train_dataset[EXPLORED_IDS], trainer.processing_class
    assert found[0] == chosen[0] and found[2:] == [[], []]  # whole: with its end
    assert tokenizer.decode(found[1]) == CUT_OFF.text  # cut off: without one


def test_the_collator_carries_a_third_completion():
    examples = [
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5], EXPLORED_IDS: [6, 7, 8], EXPLORED_REFERENCE: -2.5},
        {"prompt_ids": [1], "chosen_ids": [3], "rejected_ids": [4], EXPLORED_IDS: [], EXPLORED_REFERENCE: 0.0},
    ]
    batch = ScoreCollator(pad_token_id=0, max_length=4)(examples)
    assert batch["explored_input_ids"].tolist() == [[1, 2, 6, 7], [1, 0, 0, 0]]
    assert batch["explored_completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert batch[EXPLORED_REFERENCE].tolist() == [-2.5, 0.0] and batch["input_ids"].tolist() == [[1, 2, 3, 0], [1, 3, 0, 0], [1, 2, 4, 5], [1, 4, 0, 0]]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("method, more", [("dpo", {}), ("dpo", {"nll_weight": 0.5}), ("rdpo_filter", {})], ids=["dpo", "nll", "filter"])
def test_the_loss_is_the_method_s_with_the_term_of_the_pairs_that_have_an_answer(method, more, packed, scored, load_micro, tmp_path):
    options = {"method": method, "packed": packed, "beta": 0.3, **more}
    found = []
    for optimism in (0.0, 0.5):
        trainer = trainer_for(load_micro, scored, tmp_path, optimism=optimism, **options)
        randomise_adapter(trainer.model)
        found.append(loss_and_gradients(trainer))
    batch = next(iter(trainer.get_train_dataloader()))
    rows = [(row["prompt_ids"], row[EXPLORED_IDS], row[EXPLORED_REFERENCE]) for row in trainer.train_dataset if row[EXPLORED_IDS]]
    prompts, explored, reference = zip(*rows)
    logps = summed_logprobs(trainer.model, list(prompts), list(explored))
    ratios = logps - torch.tensor(reference)
    term = 0.5 * 0.3 * ratios.sum() / len(scored)  # the mean is over all pairs
    assert len(rows) == 2 and abs(term.item()) > 1e-3
    assert found[1][0] - found[0][0] == pytest.approx(term.item(), abs=2e-5)
    parameters = list(adapter_of(trainer.model).values())
    push = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(term, parameters)])
    assert push.norm() > 0 and (found[1][1] - found[0][1] - push).norm() < 2e-3 * push.norm()
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items() if "explored" in name}
    tokens = torch.tensor([len(ids) for ids in explored])
    expected = {"logps/explored": logps.mean(), "rewards/explored": 0.3 * ratios.mean(), EXPLORED_SHIFT: (ratios / tokens).mean()}
    assert logged == {name: pytest.approx(value.item(), rel=1e-3) for name, value in expected.items()}
    live = {name: value for name, value in batch.items() if name not in (*REFERENCE, EXPLORED_REFERENCE)}
    assert trainer.compute_loss(trainer.model, live).item() == pytest.approx(found[1][0], abs=1e-4)


@pytest.mark.slow
def test_without_optimism_the_column_is_not_looked_at(scored, load_micro, tmp_path):
    """And reference numbers of pairs without an explored answer are those of any other training."""
    adapters = []
    for data in (scored, [pair.model_copy(update={"explored": None}) for pair in scored]):
        trainer = trainer_for(load_micro, data, tmp_path / str(len(adapters)), method="dpo", optimism=0.0, reference_cache=str(tmp_path / "kept"), seed=3)
        assert EXPLORED_IDS not in trainer.train_dataset.column_names
        trainer.train()
        adapters.append(torch.cat([p.detach().flatten() for p in adapter_of(trainer.model).values()]))
        assert not any("explored" in name for step in trainer.state.log_history for name in step)
    assert torch.equal(*adapters)
    (kept,) = (tmp_path / "kept").glob("*.json")
    before = kept.read_text().count("[")
    trainer = trainer_for(load_micro, scored, tmp_path / "with", method="dpo", optimism=0.1, reference_cache=str(tmp_path / "kept"))
    assert kept.read_text().count("[") == before + 2 and trainer.train_dataset[EXPLORED_REFERENCE][2:] == [0.0, 0.0]


def test_a_batch_in_which_nothing_was_explored_trains_as_dpo(scored, load_micro, tmp_path):
    none = [pair.model_copy(update={"explored": Reply(text="")}) for pair in scored]
    adapters = []
    for optimism in (0.0, 0.5):
        trainer = trainer_for(load_micro, none, tmp_path, method="dpo", optimism=optimism, seed=3)
        trainer.train()
        adapters.append(torch.cat([p.detach().flatten() for p in adapter_of(trainer.model).values()]))
        assert not any("explored" in name for step in trainer.state.log_history for name in step)
    assert torch.equal(*adapters)


def test_training_pushes_the_explored_answers_down_and_says_so(scored, load_micro, tmp_path):
    ends = []
    for optimism in (1e-4, 10.0):
        trainer = trainer_for(load_micro, scored, tmp_path, method="dpo", optimism=optimism, num_train_epochs=5, learning_rate=5e-3, seed=3)
        trainer.train()
        ends.append(movement(trainer.state.log_history)[EXPLORED_SHIFT])
    assert ends[1] < ends[0] - 0.1 and trainer.state.log_history[0]["rewards/explored"] == pytest.approx(0.0, abs=1e-4)
    history = [{EXPLORED_SHIFT: -0.1 * step} for step in range(10)]
    assert warning(history) == "the student's explored answers lost 0.90 nats a token against the reference, and nothing bounds how far optimism pushes them down; lower optimism or learning_rate"
    assert warning([{EXPLORED_SHIFT: -FALLEN}]) == "" and "; the student's explored" in warning([{"shift/chosen": -1.0, "shift/rejected": -1.0, EXPLORED_SHIFT: -1.0}])


def test_what_the_term_does_not_go_with_is_said_at_once(scored, load_micro, tmp_path):
    for options, message in (
        ({"optimism": -1.0}, "optimism is a weight and cannot be negative"),
        ({"optimism": 0.1, "unchanged_weight": 0.5}, "optimism goes with references='own' and unchanged_weight=1 alone"),
        ({"optimism": 0.1, "references": "second"}, "optimism goes with references='own'"),
    ):
        with pytest.raises(ValueError, match=message):
            RDPOConfig(output_dir=str(tmp_path), **{**COMMON, "method": "dpo", **options})
    bare = [pair.model_copy(update={"explored": None}) for pair in scored]
    with pytest.raises(ValueError, match="optimism=0.1 needs the column explored"):
        trainer_for(load_micro, bare, tmp_path, method="dpo", optimism=0.1)
    text = Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d", EXPLORED: " e"}])
    with pytest.raises(ValueError, match="the column explored of the train dataset needs conversations"):
        trainer_for(load_micro, text, tmp_path, method="dpo", optimism=0.1)
