"""What a loss does to clean and to mislabelled pairs while it trains, measured, beside the push that its formula
promises."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.engines import Place
from common.logprobs.compute import pair_logprobs
from common.loss import knobs_of, preference_loss
from common.methods import METHODS, TrainSettings
from common.miniature.world import world_of
from common.report.figures import grid_of_axes
from common.runtime import ROOT
from common.schema import ScoredPair, fingerprint
from common.storage import write_json, write_whole
from common.student.load import load_student
from common.study.cells import SETTINGS, admitted_student, scored_pairs
from common.study.design import Row
from common.training.kept import Setting, training_of
from common.training.train import preference_trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import TrainerCallback


PROBED, MOMENTS = 40, 12  # pairs of a kind, and moments of a training
COLORS = {"clean": "#2ca02c", "no signal": "#7f7f7f", "mislabelled": "#d62728"}
"""Kinds of pairs by the oracle: the revision mends a wrong answer, spoils a right one, or does neither."""


def kind_of(pair: ScoredPair, experiment: str) -> str:
    right = world_of(experiment).right
    return {(False, True): "clean", (True, False): "mislabelled"}.get(
        (right(pair.prompt, pair.response), right(pair.prompt, pair.response_revised)), "no signal"
    )


def noise_of(row: Row, folder: Path) -> dict[str, float]:
    """The oracle's view of the pairs that a row is trained on: what share of the revisions corrects a wrong answer,
    spoils a right one, and what share of both answers is wrong (the rest is right before and after)."""
    student = admitted_student(row.cell.experiment, row.seed, folder)
    right = world_of(row.cell.experiment).right
    found = [
        (right(pair.prompt, pair.response), right(pair.prompt, pair.response_revised))
        for pair in scored_pairs(row.cell, row.seed, student)
        if pair.is_scored
    ]
    return {
        name: round(found.count(kind) / len(found), 4)
        for name, kind in (
            ("pairs_mended", (False, True)),
            ("pairs_spoiled", (True, False)),
            ("pairs_wrong", (False, False)),
        )
    }


def probe(row: Row, folder: Path) -> list[dict[str, Any]]:
    """Trains a row of a preference loss and looks, `MOMENTS` times, at the first `PROBED` training pairs of every kind.

    One record a moment and kind. done: share of the training's steps; chosen, rejected: mean log-ratio of policy to
    reference in nats, summed over the answer's tokens; n: pairs. Kept below `folder`.
    """
    experiment = row.cell.experiment
    student, settings, pairs = _training(row, folder)
    if (path := _path(row, folder)).exists():
        return json.loads(path.read_text(encoding="utf-8"))
    kinds = [kind_of(pair, experiment) for pair in pairs]
    chosen = {kind: [i for i, of_pair in enumerate(kinds) if of_pair == kind][:PROBED] for kind in COLORS}
    model, tokenizer = load_student(student, compute_dtype=torch.float32)
    with tempfile.TemporaryDirectory(prefix="rdpo-") as scratch:
        trainer, _ = preference_trainer(row.method, model, tokenizer, pairs, settings, Path(scratch))
        records: list[dict[str, Any]] = []
        trainer.add_callback(_look(trainer.train_dataset, chosen, records))
        trainer.train()
    write_json(path, [{"method": row.method, "seed": row.seed, **record} for record in records])
    return json.loads(path.read_text(encoding="utf-8"))


def _training(row: Row, folder: Path) -> tuple[Path, TrainSettings, list[ScoredPair]]:
    student = admitted_student(row.cell.experiment, row.seed, folder)
    pairs = [pair for pair in scored_pairs(row.cell, row.seed, student) if pair.is_scored]
    return student, SETTINGS.changed(seed=row.seed, **row.setting), pairs


def _path(row: Row, folder: Path) -> Path:
    student, settings, pairs = _training(row, folder)
    return folder / row.cell.experiment / "mechanism" / f"{training_of(row.method, student, pairs, settings)}.json"


def _files(row: Row, folder: Path) -> list[Path]:
    return [_path(row, folder)]


def probe_place(row: Row, folder: Path) -> Place:
    name = (
        folder.relative_to(ROOT)
        / row.cell.experiment
        / "mechanism"
        / fingerprint(row.cell.unlike_centre, row.method, row.seed, row.setting)
    )
    return Place(name.as_posix(), partial(_files, row, folder))


def _look(dataset: Any, rows: Mapping[str, Sequence[int]], records: list[dict[str, Any]]) -> TrainerCallback:
    """A callback that adds to `records` before the first step and `MOMENTS` times after one."""
    from transformers import TrainerCallback

    probed = {kind: dataset.select(of_kind) for kind, of_kind in rows.items() if of_kind}

    @torch.no_grad()
    def look(model: torch.nn.Module, done: float) -> None:
        model.eval()
        for kind, of_kind in probed.items():
            ids = [list(of_kind[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
            policy = pair_logprobs(model, *ids)
            with model.disable_adapter():
                reference = pair_logprobs(model, *ids)
            chosen, rejected = (float((own - other).mean()) for own, other in zip(policy, reference))
            records.append(
                {
                    "done": round(done, 4),
                    "kind": kind,
                    "chosen": round(chosen, 4),
                    "rejected": round(rejected, 4),
                    "n": len(of_kind),
                }
            )
        model.train()

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            look(model, 0.0)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step % max(1, state.max_steps // MOMENTS) == 0 or state.global_step == state.max_steps:
                look(model, state.global_step / state.max_steps)

    return Look()


def write_probed(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """Writes what `probe` found of several rows as CSV."""
    import pandas as pd

    return write_whole(path, pd.DataFrame(records).to_csv(index=False, lineterminator="\n"))


def read_probed(path: Path) -> list[dict[str, Any]]:
    """What `write_probed` wrote."""
    import pandas as pd

    return pd.read_csv(path).to_dict("records")


def push(method: str, setting: Setting, log_ratio: Sequence[float], gap: float) -> list[float]:
    """-dL/dD at each difference of log-ratios D (chosen minus rejected, nats), for a pair with that score gap (revised
    minus original): above 0 the loss pushes the revision up against the original, below 0 down."""
    difference = torch.tensor(list(log_ratio), requires_grad=True)
    zeros = torch.zeros(len(difference))
    knobs = {name: setting[name] for name in knobs_of(method) if name in setting}
    preference_loss(
        method,
        difference,
        zeros,
        zeros,
        zeros,
        zeros + (1 + gap) / 2,
        zeros + (1 - gap) / 2,
        beta=setting["beta"],
        **knobs,
    )[0].sum().backward()
    return (-difference.grad).tolist()


def mechanism_figure(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Setting], gap: float = 0.8) -> Figure:
    """A column a method. Above, the push that its formula gives to a pair that the judge sees as clean (score gap
    `gap`), tied and mislabelled (-`gap`); below, how far training moved the three kinds of pairs, mean over seeds, thin
    lines a seed."""
    methods = list(dict.fromkeys(record["method"] for record in records))
    figure, axes = grid_of_axes(2, len(methods), 2.4 * len(methods) + 1.4, 5.0)
    grid = [i / 4 for i in range(-60, 61)]
    reach = max(abs(record["chosen"] - record["rejected"]) for record in records)
    for column, method in enumerate(methods):
        above, below = axes[0][column], axes[1][column]
        for kind, of_gap in zip(COLORS, (gap, 0.0, -gap)):
            above.plot(grid, push(method, settings[method], grid, of_gap), color=COLORS[kind], label=kind)
            by_seed: dict[int, list[tuple[float, float]]] = {}
            for record in records:
                if (record["method"], record["kind"]) == (method, kind):
                    by_seed.setdefault(record["seed"], []).append(
                        (record["done"], record["chosen"] - record["rejected"])
                    )
            for points in by_seed.values():
                below.plot(*zip(*points), color=COLORS[kind], linewidth=0.6, alpha=0.4)
            moments = list(zip(*by_seed.values()))
            below.plot(
                [moment[0][0] for moment in moments],
                [sum(d for _, d in moment) / len(moment) for moment in moments],
                color=COLORS[kind],
                linewidth=1.8,
            )
        for one in (above, below):
            one.axhline(0, color="0.7", linewidth=0.7)
        above.set_title(METHODS[method].label, fontsize=10)
        above.set(xlabel="log-ratio difference (nats)")
        below.set(xlabel="share of training", ylim=(-1.05 * reach, 1.05 * reach))
    axes[0][0].set_ylabel("push by the formula")
    axes[1][0].set_ylabel("log-ratio difference (nats)")
    axes[0][-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
