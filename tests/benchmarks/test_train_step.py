"""A short cut of the benchmark: every contestant trains on the same pairs (pytest tests/benchmarks)."""

import pytest
import torch
import train_step

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}


@pytest.mark.parametrize("four_bit, checkpointing", [(True, False), (False, False), (True, True)])
def test_every_contestant_trains_on_the_same_pairs(tmp_path, four_bit, checkpointing):
    train_step.make_model(tmp_path, SHAPE)
    pairs = train_step.random_pairs(4, 20, 8, SHAPE["vocab_size"])
    figures = {name: train_step.measure(name, tmp_path, pairs, 2, 1, four_bit, checkpointing) for name in train_step.CONTESTANTS}
    for name in train_step.CONTESTANTS:
        found = figures[name]
        assert found["mean_loss"] == pytest.approx(figures["trl"]["mean_loss"], rel=1e-2)
        assert found["tokens"] == {"prompt": 20, "chosen": 8, "rejected": 8} and found["computed_in"] == figures["trl"]["computed_in"]
        assert found["pairs_per_second"] == pytest.approx(2 / found["seconds_per_step"]) and found["peak_gib"] > 0
        assert found["cold_seconds_per_pair"] > found["seconds_per_step"] / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sft_trains_on_the_chosen_answers_as_trls_does(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("common.student.load.best_compute_dtype", lambda: dtype)
    train_step.make_model(tmp_path, SHAPE)
    pairs = train_step.random_pairs(4, 20, 8, SHAPE["vocab_size"])
    ours, stock = (train_step.measure(name, tmp_path, pairs, 2, 1, True, False) for name in train_step.SFT)
    assert ours["mean_loss"] == pytest.approx(stock["mean_loss"], rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert ours["computed_in"] == stock["computed_in"] == train_step.name_of(dtype)


def test_the_rate_is_measured_in_what_students_compute_in_and_said_before(monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(train_step, "best_compute_dtype", lambda: torch.float32)
    monkeypatch.setattr(train_step, "matmul_rate", lambda dtype: measured.append(dtype) or 1e9)
    assert [*train_step.benchmark(["real"], None, 1, results := {})] == []
    assert measured == [torch.float32] and results["matmul_gflops"] == {"float32": 1.0}
    assert capsys.readouterr().out == "the rate of matrix products in float32\n"


def test_the_floor_counts_what_a_pair_needs():
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100}
    weights = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16
    lora = 16 * (2 * 16 + 2 * 12 + 3 * 24)
    tokens = 3 + 2 * 1  # the last token of an answer predicts nothing
    attention = 12 * 8 * (3 * 3 / 2 + 2 * (1 * 3 + 1 / 2))
    assert train_step.floor_operations(shape, 3, 2) == tokens * (4 * weights + 6 * lora) + attention + 4 * 4 * 100 * 8


@pytest.mark.slow
def test_a_comparison_becomes_ratios_a_table_and_a_figure(tmp_path):
    train_step.make_model(tmp_path, SHAPE)
    row = train_step.compare(tmp_path, train_step.random_pairs(4, 20, 8, SHAPE["vocab_size"]), batch=2, steps=1, rounds=1)
    ours, stock = row["ours"], row["trl"]
    assert row["ratios"]["trl"]["step"] == pytest.approx(stock["seconds_per_step"] / ours["seconds_per_step"])
    assert row["ratios"]["trl_precomputed"]["memory"] == pytest.approx(ours["peak_gib"] / row["trl_precomputed"]["peak_gib"])
    assert row["ranges"]["ours"]["seconds_per_step"] == [ours["seconds_per_step"]] * 2 and row["ratio_ranges"]["trl"]["step"] == [row["ratios"]["trl"]["step"]] * 2
    row |= {"prompt": 20, "answer": 8, "vocabulary": 300, "floor_gflop": 1.0, "share_of_matmul_rate": {"ours": 0.5}}
    shares = [{"prompt": 20, "answer": 8, "shares": {"head": 0.4, "the rest": 0.6}}]
    results = {"matmul_gflops": {"bfloat16": 400.0}, "bars": [row], "real": row, "grid": [row], "growth_with_pairs": [row], "growth_with_vocabulary": [row], "where_time_goes": shares}
    assert f"{row['ratios']['trl']['step']:.1f} times" in train_step.table(results)
    assert f"a step {row['ratios']['trl']['step']:.2f} times as fast as trl (" in train_step.describe(row)
    train_step.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
