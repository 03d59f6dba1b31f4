"""Trainings that are kept: an adapter on disk with a mark of what it was made of, so that none is trained twice and a
kill during the evaluation loses none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.evaluation.answers import TrainedStudent
from common.methods import TrainSettings
from common.schema import ScoredAnswer, ScoredPair, fingerprint
from common.storage import write_json
from common.student.adapters import load_adapter, save_adapter
from common.student.identity import identity, weights_of
from common.student.load import load_student
from common.training.train import remove_checkpoints, train

Setting = dict[str, Any]
"""Of a training: some of the fields of `TrainSettings`."""


def training_of(
    method: str,
    student: str | Path,
    pairs: Sequence[ScoredPair] | Sequence[ScoredAnswer],
    settings: TrainSettings,
    start_adapter: Path | None = None,
    weights: Sequence[float] | None = None,
    **load: Any,
) -> str:
    """The mark of a training: student, pairs, what the method reads of the settings, the weights that it goes on from,
    and those of the pairs.

    A local teacher stands in it by the place where the profile `small` keeps its models, as when its name held no hash:
    what it is made of shows in its texts, and wherever it lies these make the same student."""
    shown = [pair.model_dump(mode="json") for pair in pairs]
    for pair in (one for one in shown if "teacher" in one):
        pair["teacher"] = re.sub(r"^(.+) [0-9a-f]{12} (in NF4)$", r"runs/models/\1 \2", pair["teacher"])
    return fingerprint(
        method,
        identity(student, load.get("revision")),
        shown,
        settings.as_dict(method),
        {k: str(v) for k, v in load.items()},
        *([weights_of(start_adapter)] if start_adapter else []),
        *([] if weights is None else [list(weights)]),
    )


def kept_training(folder: Path, made_of: str) -> dict[str, Any] | None:
    """What `<folder>/training.json` holds of the training with this mark; None where it is of another or not there."""
    mark = folder / "training.json"
    kept = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else {}
    return kept if kept.get("made_of") == made_of else None


def kept_student(
    method: str, student: str | Path, settings: TrainSettings, folder: Path, made_of: str, **load: Any
) -> TrainedStudent | None:
    """Loads the student whose adapter is kept in `<folder>/adapter`, and prints that; None for another training or
    none."""
    if not (kept := kept_training(folder, made_of)):
        return None
    adapter = folder / "adapter"
    print(f"{method}, seed {settings.seed}: trained before, its adapter reused from {adapter}", flush=True)
    model, tokenizer = load_student(student, **load)
    return TrainedStudent(
        method, load_adapter(model, adapter), tokenizer, kept["history"], kept["pairs_used"], kept["unscored"],
        asked_for=settings.asked_for(method), reward_gaps=kept.get("reward_gaps", {}), mark=made_of,
    )  # fmt: skip


def keep_student(trained: TrainedStudent, settings: TrainSettings, folder: Path) -> None:
    """Writes `<folder>/adapter`, and then `<folder>/training.json`, by whose mark it is found again."""
    untold = f"# {trained.method}, seed {settings.seed}\n\nTrained, not measured yet.\n"
    (mark := folder / "training.json").unlink(missing_ok=True)
    save_adapter(trained.model, trained.tokenizer, folder / "adapter", untold, trained.asked_for)
    write_json(
        mark,
        {
            "made_of": trained.mark,
            "history": trained.history,
            "pairs_used": trained.pairs_used,
            "unscored": trained.unscored,
        }
        | ({"reward_gaps": trained.reward_gaps} if trained.reward_gaps else {}),
    )


def take_over(folder: Path, made_of: str, others: Iterable[Path]) -> None:
    """Copies the training with this mark from the first of `others` that keeps it, unless `folder` keeps it itself."""
    if kept_training(folder, made_of):
        return
    for other in others:
        if kept := kept_training(other, made_of):
            (mark := folder / "training.json").unlink(missing_ok=True)
            shutil.copytree(other / "adapter", folder / "adapter", dirs_exist_ok=True)
            write_json(mark, kept)
            return


def trained_once(
    method: str,
    student: str | Path,
    pairs: Sequence[ScoredPair] | Sequence[ScoredAnswer],
    settings: TrainSettings,
    folder: str | Path,
    start_adapter: Path | None = None,
    weights: Sequence[float] | None = None,
    trials: Iterable[Path] = (),
    **load: Any,
) -> TrainedStudent:
    """`train` with the adapter kept in `<folder>/adapter` and its history in `<folder>/training.json`; where both are
    there of the same student, pairs, settings, start and weights, or in one of the folders `trials`, it is loaded and
    not trained, which is said. A long training that was killed goes on from its last checkpoint."""
    folder, made_of = Path(folder), training_of(method, student, pairs, settings, start_adapter, weights, **load)
    take_over(folder, made_of, trials)
    if kept := kept_student(method, student, settings, folder, made_of, **load):
        return kept
    mark = folder / "trainer" / "made_of.json"
    if not mark.exists() or json.loads(mark.read_text(encoding="utf-8")) != made_of:
        remove_checkpoints(mark.parent)  # of another training
        write_json(mark, made_of)
    trained = train(method, student, pairs, settings, mark.parent, start_adapter, weights, resume=True, **load)
    trained.mark = made_of
    keep_student(trained, settings, folder)
    return trained


def read_tuned(path: str | Path) -> dict[str, Setting]:
    """Method -> its chosen setting, of a file that `common.notebook.tune` wrote. Raises FileNotFoundError or ValueError
    for another file."""
    if not Path(path).exists():
        raise FileNotFoundError(f"tuned: no file {path}; python -m common.notebook.tune makes it")
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not content.get("chosen"):
        raise ValueError(f"tuned: {path} holds no trials; python -m common.notebook.tune makes such a file")
    return content["chosen"]
