"""KL to the reference while a preference loss trains, and the end of a training that has moved too far."""

from __future__ import annotations

from transformers import TrainerCallback

from common.trainer.displacement import KL, TIMES

ANSWERS = 4
"""Chosen answers of a batch that KL is measured on."""
EVERY = 5
"""Steps from one measurement to the next, at least: one takes as long as a third of a step."""


class KLMeter(TrainerCallback):
    """Measures KL in every tenth of a training, `EVERY` steps apart at least, with a budget at every logged step, and
    ends the training where it is above the budget."""

    def __init__(self, trainer, budget: float):
        self.trainer, self.budget = trainer, budget

    def on_step_end(self, args, state, control, **kwargs):
        times = max(1, min(TIMES, state.max_steps // EVERY))
        due = {round(part * state.max_steps / times) for part in range(1, times + 1)}
        if state.global_step not in due and not (self.budget and control.should_log):
            return
        kl = self.trainer.chosen_kl()
        self.trainer._metrics["train"][KL].append(kl)
        if self.budget and kl > self.budget:
            control.should_log = control.should_training_stop = True
            print(
                f"stopped after step {state.global_step} of {state.max_steps}: KL to the reference is {kl:.3g} nats a token, above kl_budget = {self.budget:g}",
                flush=True,
            )
