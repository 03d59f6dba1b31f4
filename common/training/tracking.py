"""Trackers beside the trainer's own log: one run for each training, with the settings that its row reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback


class OneRun(TrainerCallback):
    """Hands the settings of a row to the tracker of its trainer once it has begun a run, and ends that run, so that the
    next row of this process has its own."""

    def __init__(self, tracker: str, trainer: Trainer, settings: Mapping[str, Any]):
        flat = {name: value if isinstance(value, bool | int | float | str) else json.dumps(value) for name, value in settings.items()}  # fmt: skip
        self.tracker, self.trainer, self.settings = tracker, trainer, flat

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        if self.tracker == "tensorboard":
            [board] = [one for one in self.trainer.callback_handler.callbacks if isinstance(one, TensorBoardCallback)]
            board.tb_writer.add_hparams(self.settings, {}, run_name=".")  # "." is the run that has just begun
        elif self.tracker == "wandb":
            import wandb

            wandb.config.update(self.settings, allow_val_change=True)
        else:
            import trackio

            trackio.config.update(self.settings)

    def on_train_end(self, args, state, control, **kwargs):
        if self.tracker == "wandb" and state.is_world_process_zero:
            import wandb

            wandb.finish()  # TensorBoard and Trackio end their run themselves


def track(trainer: Trainer, tracker: str, method: str, settings: Mapping[str, Any]) -> None:
    """Gives a trainer whose `report_to` is `tracker` a run named after the row's folder. settings: what the row reads of
    them."""
    trainer.args.run_name = "/".join(Path(trainer.args.output_dir).absolute().parent.parts[-3:])
    trainer.add_callback(OneRun(tracker, trainer, {"row": method, **settings}))
