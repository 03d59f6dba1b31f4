"""A short cut of the benchmark: every contestant trains on the same pairs (pytest tests/benchmarks)."""

import bench_trainer
import pytest

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}


def test_every_contestant_trains_on_the_same_pairs(tmp_path):
    bench_trainer.make_model(tmp_path, SHAPE)
    figures = {name: bench_trainer.measure(name, tmp_path, 20, 8, batch=2, steps=2, checkpointing=False) for name in bench_trainer.CONTESTANTS}
    for name in bench_trainer.CONTESTANTS:
        assert figures[name]["mean_loss"] == pytest.approx(figures["trl"]["mean_loss"], rel=1e-2)
        assert figures[name]["pairs_per_second"] == pytest.approx(2 / figures[name]["seconds_per_step"]) and figures[name]["peak_gib"] > 0
