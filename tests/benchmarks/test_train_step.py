"""A short cut of the benchmark: every contestant trains on the same pairs (pytest tests/benchmarks)."""

import contextlib
import json
from types import SimpleNamespace

import contest
import pytest
import torch
import train_step
import transformers

from common.storage import write_json
from common.trainer.rdpo import RDPOTrainer

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}
CONTESTANTS = [name for contestants in train_step.LINES.values() for name in contestants]
KIND = {"four_bit": True, "checkpointing": False}


@pytest.mark.parametrize("four_bit, checkpointing", [(True, False), (False, False), (True, True)])
def test_every_contestant_trains_on_the_same_pairs(tmp_path, four_bit, checkpointing):
    train_step.make_model(tmp_path, SHAPE)
    pairs = train_step.random_pairs(6, 20, 8, SHAPE["vocab_size"])
    figures = {name: train_step.measure(name, tmp_path, pairs, 2, four_bit, checkpointing) for name in train_step.CONTESTANTS}
    for name in train_step.CONTESTANTS:
        found = figures[name]
        assert found["mean_loss"] == pytest.approx(figures["trl"]["mean_loss"], rel=1e-2)
        assert found["tokens"] == {"prompt": 20, "chosen": 8, "rejected": 8} and found["computed_in"] == figures["trl"]["computed_in"]
        assert found["pairs_per_second"] == pytest.approx(2 / found["seconds_per_step"]) and found["peak_gib"] > 0
        assert found["cold_epoch_seconds"] > sum(found[part] for part in ("before_first_step_seconds", "first_step_seconds", "seconds_per_step", "last_step_seconds"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("contestants, lengths", [(train_step.NLL, {"prompt": 20, "chosen": 8, "rejected": 8}), (train_step.SFT, {"prompt": 20, "chosen": 8})])
def test_nll_and_sft_train_on_the_loss_of_trls(tmp_path, dtype, contestants, lengths, monkeypatch):
    monkeypatch.setattr("common.student.load.best_compute_dtype", lambda: dtype)
    train_step.make_model(tmp_path, SHAPE)
    pairs = train_step.random_pairs(6, 20, 8, SHAPE["vocab_size"])
    ours, stock = (train_step.measure(name, tmp_path, pairs, 2, True, False) for name in contestants)
    assert ours["mean_loss"] == pytest.approx(stock["mean_loss"], rel=1e-5 if dtype == torch.float32 else 1e-2) and stock["mean_loss"] > 5  # log 300 = 5.7
    assert ours["computed_in"] == stock["computed_in"] == train_step.name_of(dtype)
    assert ours["tokens"] == stock["tokens"] == lengths


@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_a_cold_epoch_is_the_time_from_before_the_trainer_is_made_to_the_epochs_end(tmp_path, contestant, monkeypatch):
    """By a clock that only what is named here moves."""
    passed = [0.0]

    def takes(owner, name, *seconds):
        """Each call the next of them, the last for good."""
        own, left = getattr(owner, name), list(seconds)

        def slow(*args, **kwargs):
            passed[0] += left.pop(0) if len(left) > 1 else left[0]
            return own(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    def unpacked(model, training):
        passed[0] += 1000
        return contextlib.nullcontext()

    monkeypatch.setattr(contest, "time", SimpleNamespace(perf_counter=lambda: passed[0]))
    takes(train_step, "trainer_for", 1)
    takes(transformers.Trainer, "create_optimizer", 10)
    takes(transformers.Trainer, "get_batch_samples", 0.5)
    takes(transformers.Trainer, "training_step", 100, 7)
    takes(RDPOTrainer, "chosen_kl", 3)
    monkeypatch.setattr("common.trainer.rdpo.dequantised", unpacked)
    monkeypatch.setattr("common.training.supervised.dequantised", unpacked)
    train_step.make_model(tmp_path, SHAPE)
    found = train_step.measure(contestant, tmp_path, train_step.random_pairs(8, 20, 8, SHAPE["vocab_size"]), 2, True, False)
    before, kl = 1 + 10 + 0.5 + 1000 * contestant.startswith("ours"), 3 * (contestant in contest.OURS)
    assert [found[f"{name}_seconds"] for name in ("before_first_step", "first_step", "last_step")] == [before, 100, 7 + kl]
    assert found["seconds_per_step"] == 7 and found["cold_epoch_seconds"] == before + 100 + 3 * (0.5 + 7) + kl


def test_the_shortest_cell_is_six_pairs_of_60_tokens_for_every_line_and_the_grid_has_rounds_of_its_own(monkeypatch, capsys, tmp_path):
    made, measured = [], []

    def compare(folder, pairs, batch, rounds, four_bit=True, checkpointing=False, contestants=train_step.CONTESTANTS):
        lengths = {len(pair[name].split()) for pair in pairs for name in ("prompt", "chosen", "rejected")}
        made.append((len(pairs), lengths, batch, rounds, (four_bit, checkpointing), contestants))
        tokens = {"prompt": 60, "chosen": 60} | ({} if contestants == train_step.SFT else {"rejected": 60})
        return comparison(contestants, [(1, 1, 1)], [(2, 3, 2)], tokens=tokens, batch=batch, pairs=len(pairs), **dict(zip(KIND, (four_bit, checkpointing))))

    monkeypatch.setattr(train_step, "compare", compare)
    monkeypatch.setattr(train_step, "make_model", lambda folder, shape: None)
    monkeypatch.setattr(train_step, "best_compute_dtype", lambda: torch.float32)
    monkeypatch.setattr(train_step, "matmul_rate", lambda dtype: measured.append(dtype) or 1e9)
    assert len([*train_step.benchmark(["shortest", "grid", "growth"], None, 5, 3, results := {})]) == 12 + 36 + 8
    assert made[:12] == [(6, {60}, 2, 5, kind, contestants) for kind in train_step.KINDS for contestants in train_step.LINES.values()]
    assert {rounds for _, _, _, rounds, *_ in made[12:]} == {3} and {pairs for pairs, *_ in made[12:48]} == {8}
    assert results["cold_epoch"] == train_step.COLD_EPOCH and [row["pairs"] for row in results["shortest"]] == [6] * 12
    assert [sorted(row.get("share_of_matmul_rate", [])) for row in results["shortest"][:3]] == [["ours", "trl", "trl_precomputed"], ["ours_nll", "trl_nll"], []]
    assert measured == [torch.float32] and results["matmul_gflops"] == {"float32": 1.0}
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  round")]
    assert said[0] == "the rate of matrix products in float32" and said[1].startswith("shortest, prompt 60, answers 60, 6 pairs, 2 a step, 3 layers")
    assert said[3] == "  " + train_step.describe(results["shortest"][0])


def test_the_floor_counts_what_a_pair_needs():
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100}
    weights = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16
    lora = 16 * (2 * 16 + 2 * 12 + 3 * 24)
    tokens = 3 + 2 * 1  # the last token of an answer predicts nothing
    attention = 12 * 8 * (3 * 3 / 2 + 2 * (1 * 3 + 1 / 2))
    assert train_step.floor_operations(shape, 3, 2) == tokens * (4 * weights + 6 * lora) + attention + 4 * 4 * 100 * 8


def comparison(contestants, ours, other, tokens=None, pairs=20, batch=4, **more):
    """What `compare` makes of processes with these (seconds a step, of a cold epoch, GiB), a round each; all rivals take the same."""
    runs = {name: list(of_rounds) for name, of_rounds in zip(contestants, [ours, *[other] * len(contestants[1:])])}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_step, "in_own_process", lambda measure, name, *_: {
            **dict(zip(("seconds_per_step", "cold_epoch_seconds", "peak_gib"), runs[name].pop(0))), "tokens": dict(tokens or {"prompt": 60, "chosen": 60, "rejected": 60}), "computed_in": "float32",
        })  # fmt: skip
        return COMPARE("folder", [None] * pairs, batch, len(ours), contestants=contestants, **KIND | more)


COMPARE = train_step.compare


def test_figures_and_ratios_are_medians_of_the_rounds_with_minimum_and_maximum(capsys):
    row = comparison(train_step.NLL, [(2, 10, 1), (1, 10, 1), (4, 10, 3)], [(6, 10, 2), (8, 5, 2), (8, 20, 4)])
    assert row["ours_nll"] == {"seconds_per_step": 2, "cold_epoch_seconds": 10, "peak_gib": 1} and row["rounds"] == 3
    assert row["ranges"]["trl_nll"] == {"seconds_per_step": [6, 8], "cold_epoch_seconds": [5, 20], "peak_gib": [2, 4]}
    assert row["ratios"] == {"trl_nll": {"step": 3, "cold_epoch": 1, "memory": 0.5}}  # of 3, 8, 2; of 1, .5, 2; of .5, .5, .75
    assert row["ratio_ranges"] == {"trl_nll": {"step": [2, 8], "cold_epoch": [0.5, 2], "memory": [0.5, 0.75]}}
    assert train_step.describe(row) == "a step 3.00 (2.00 to 8.00) times as fast as trl_nll, a cold epoch 1.00 (0.50 to 2.00) times, memory 0.50 (0.50 to 0.75) of its"
    assert capsys.readouterr().out.splitlines()[1] == "  round 1 of 3: trl_nll"


def test_no_ratio_is_made_of_other_tokens(monkeypatch):
    tokens = {"ours_sft": {"prompt": 60, "chosen": 60}, "trl_sft": {"prompt": 60, "chosen": 61}}
    monkeypatch.setattr(train_step, "in_own_process", lambda measure, name, *_: {"tokens": tokens[name], "computed_in": "float32"})
    with pytest.raises(AssertionError, match="trl_sft: {'prompt': 60, 'chosen': 61} tokens in float32, ours_sft: .* no ratio is fair"):
        train_step.compare("folder", [], 2, 1, contestants=train_step.SFT)


@pytest.fixture
def results():
    """Of three lines, each with two rounds; SFT's cold epoch is slower than stock's."""
    rounds = {"bars": (train_step.CONTESTANTS, [(24, 6, 2), (16, 6, 4)]), "nll": (train_step.NLL, [(16, 12, 2), (16, 9, 2)]), "sft": (train_step.SFT, [(8, 3, 2), (8, 2, 2)])}
    found = {name: [{"prompt": 300, "answer": 120, **comparison(contestants, [(4, 3, 1)] * 2, stock)}] for name, (contestants, stock) in rounds.items()}
    found["real"] = [comparison(train_step.CONTESTANTS, [(4, 3, 1)] * 2, [(16, 9, 2)] * 2, tokens={"prompt": 215.1, "chosen": 48, "rejected": 59.9})]
    return found


def test_the_table_has_a_line_for_every_kind_of_training_and_ranges_for_every_ratio(results):
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in train_step.table(results).splitlines()]
    assert [lines[0], *lines[2:]] == [
        ["SmolLM2-135M in NF4, 4 pairs a step (tokens)", "stock TRL, seconds a step", "precomputed reference, seconds a step", "ours, seconds a step", "faster than stock", "cold epoch", "memory"],
        ["DPO, random weights, prompt 300, answers 120", "20.0", "20.0", "4.0", "5.0 times (4.0 to 6.0)", "2.0 times (2.0 to 2.0)", "0.38 of stock's (0.25 to 0.50)"],
        ["DPO, role-play pairs, prompt 215, answers 48 and 60 on average", "16.0", "16.0", "4.0", "4.0 times (4.0 to 4.0)", "3.0 times (3.0 to 3.0)", "0.50 of stock's (0.50 to 0.50)"],
        ["DPO with NLL, random weights, prompt 300, answers 120", "16.0", "-", "4.0", "4.0 times (4.0 to 4.0)", "3.5 times (3.0 to 4.0)", "0.50 of stock's (0.50 to 0.50)"],
        ["SFT, random weights, prompt 300, answers 120", "8.0", "-", "4.0", "2.0 times (2.0 to 2.0)", "0.8 times (0.7 to 1.0)", "0.50 of stock's (0.50 to 0.50)"],
    ]  # fmt: skip


def test_cold_epochs_slower_than_stock_are_named(results):
    results["shortest"] = [{"prompt": 60, "answer": 60, "vocabulary": 4915, **comparison(train_step.NLL, [(1, 4, 1)], [(2, 3, 1)], pairs=6, batch=2, checkpointing=True)}]
    assert train_step.slower_than_stock(results) == [
        "sft: SFT, random weights, prompt 300, answers 120, 20 pairs, 4 a step, NF4: a cold epoch 0.83 (0.67 to 1.00) times as fast as stock",
        "shortest: DPO with NLL, random weights, prompt 60, answers 60, 6 pairs, 2 a step, 4915 words, NF4, checkpointing: a cold epoch 0.75 (0.75 to 0.75) times as fast as stock",
    ]
    assert train_step.slower_than_stock({"bars": results["bars"], "where_time_goes": [{"shares": {}}]}) == []


def test_the_figure_shows_medians_and_the_rounds_reach(results, monkeypatch, tmp_path):
    results["shortest"] = [{"prompt": 60, "answer": 60, **comparison(contestants, [(1, 4, 1)], [(2, 3, 1)], pairs=6, batch=2)} for contestants in train_step.LINES.values()]
    results["grid"] = [{"prompt": 60, "answer": 60, **comparison(train_step.CONTESTANTS, [(1, 4, 1)] * 2, [(2, 4, 1), (4, 8, 1)], pairs=8, batch=2)}]
    drawn, save = [], train_step.save_figure
    monkeypatch.setattr(train_step, "save_figure", lambda figure, path: drawn.append(figure) or save(figure, path))
    train_step.draw(results, tmp_path / "figure.png")
    steps, epochs, _, _, _, lines = drawn[0].axes
    for axes, heights, ends in ((steps, [2, 3], [[2, 2], [2, 4]]), (epochs, [0.75, 1.5], [[0.75, 0.75], [1, 2]])):
        line, _, [reach] = axes.containers[0]
        assert list(line.get_ydata()) == heights and [segment[:, 1].tolist() for segment in reach.get_segments()] == ends
        assert [text.get_text() for text in axes.get_xticklabels()] == ["6 × 60/60", "60/60"]
    assert [text.get_text() for text in lines.get_yticklabels()] == ["SFT, 300/120", "DPO with NLL, 300/120", "DPO, real pairs", "DPO, 300/120"]
    assert [bar.get_width() for bar in lines.patches] == pytest.approx([5 / 6, 3.5, 3, 2, 2, 4, 4, 5])
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.fixture
def run(monkeypatch, tmp_path, results):
    """Runs the command with options in place of everything that measures; (its results, what it printed)."""
    monkeypatch.setattr(train_step, "RESULTS", tmp_path / "benchmarks.json")
    monkeypatch.setattr(train_step, "draw", lambda results, path: None)

    def benchmark(parts, rows_file, rounds, grid_rounds, found):
        found["cold_epoch"] = train_step.COLD_EPOCH
        for part in parts:
            found[part] = [{**results["bars"][0], "rounds": grid_rounds if part == "grid" else rounds}]
            yield

    monkeypatch.setattr(train_step, "benchmark", benchmark)

    def command(*options):
        monkeypatch.setattr("sys.argv", ["train_step.py", *options])
        train_step.main()
        return json.loads((tmp_path / "benchmarks.json").read_text())

    return command


def test_parts_are_measured_anew_beside_the_others(run, tmp_path, capsys):
    first = run("--only", "bars,real,grid", "--rounds", "4", "--grid-rounds", "2")
    assert {name: rows[0]["rounds"] for name, rows in first.items() if name != "cold_epoch"} == {"bars": 4, "grid": 2}  # real needs --rows
    second = run("--only", "grid")
    assert second["bars"] == first["bars"] and second["grid"][0]["rounds"] == 5
    assert (tmp_path / "benchmarks.md").read_text() == train_step.table(second) + "\n"
    assert capsys.readouterr().out.splitlines()[-1] == "no cold epoch is slower than stock"


def test_figures_of_another_clock_are_not_kept_beside_new_ones(run, tmp_path, capsys):
    write_json(tmp_path / "benchmarks.json", {"bars": [{}], "grid": [{}], "real": {}, "evaluation": {"nf4": {}}, "where_time_goes": []})
    with pytest.raises(SystemExit):
        run("--only", "")
    assert "benchmarks.json was timed by another clock: measure bars, grid, real anew" in capsys.readouterr().err
    found = run("--only", "bars")
    assert set(found) == {"bars", "cold_epoch", "evaluation", "where_time_goes"} and found["bars"][0]["pairs"] == 20
    assert capsys.readouterr().out.startswith("left out, timed by another clock: grid, real\n")


def test_the_help_says_what_a_round_takes(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_step.py", "--help"])
    with pytest.raises(SystemExit):
        train_step.main()
    said = " ".join(capsys.readouterr().out.split())
    assert "of grid and growth; each takes about 20 minutes on 2 cores" in said and "each takes about 25 minutes on 2 cores" in said


@pytest.mark.slow
def test_a_comparison_of_processes_becomes_ratios_a_table_and_a_figure(tmp_path):
    train_step.make_model(tmp_path, SHAPE)
    row = train_step.compare(tmp_path, train_step.random_pairs(6, 20, 8, SHAPE["vocab_size"]), batch=2, rounds=1)
    ours, stock = row["ours"], row["trl"]
    assert row["ratios"]["trl"]["step"] == pytest.approx(stock["seconds_per_step"] / ours["seconds_per_step"])
    assert row["ratios"]["trl_precomputed"]["memory"] == pytest.approx(ours["peak_gib"] / row["trl_precomputed"]["peak_gib"])
    assert row["ranges"]["ours"]["seconds_per_step"] == [ours["seconds_per_step"]] * 2 and row["ratio_ranges"]["trl"]["step"] == [row["ratios"]["trl"]["step"]] * 2
    row |= {"prompt": 20, "answer": 8, "vocabulary": 300, "floor_gflop": 1.0, "share_of_matmul_rate": {"ours": 0.5}}
    shares = [{"prompt": 20, "answer": 8, "shares": {"head": 0.4, "the rest": 0.6}}]
    results = {"matmul_gflops": {"bfloat16": 400.0}, "bars": [row], "real": [row], "grid": [row], "growth_with_pairs": [row], "growth_with_vocabulary": [row], "where_time_goes": shares}
    assert f"{row['ratios']['trl']['step']:.1f} times" in train_step.table(results)
    train_step.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
