"""A trained student beside itself untrained, for any prompt that a reader thinks of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from common.chat.local import LocalChat
from common.data.self_critique import opening
from common.evaluation.matched_utility import scaled
from common.evaluation.result import Result
from common.methods import existing, is_trained
from common.report.before_after import WHEN
from common.schema import Sampling
from common.show.tables import Shown, answers_table
from common.training.kept import kept_training, training_of

if TYPE_CHECKING:
    from common.chat.model import ChatModel
    from common.evaluation.answers import TrainedStudent
    from common.training.comparison import Experiment


def ask(
    student: TrainedStudent, chat: Callable[[TrainedStudent], ChatModel] | None = None, max_new_tokens: int = 128
) -> Callable[..., Shown]:
    """`ask(student)("prompt", system="")` answers greedily with the adapter off (before training) and on (after).

    A student without an adapter gives one answer.
    chat: how the student is asked, such as an evaluator's `chat`, so that answers are those of the tables; None asks
        the model itself.
    Raises ValueError for an empty prompt, and RuntimeError where an endpoint gives no answer.
    """
    columns = {student.method: 1.0}
    if hasattr(student.model, "disable_adapter"):
        columns = {f"{when} {student.method}": factor for when, factor in WHEN.items()}

    def answered(prompt: str, system: str = "") -> Shown:
        if not prompt.strip():
            raise ValueError('an empty prompt; write a request, such as ask("How do I bake bread?")')
        answers = {}
        for column, factor in columns.items():
            with scaled(student, factor):
                opened = chat(student) if chat else student.chat or LocalChat(student.model, student.tokenizer)
                [reply] = opened.complete([opening(system, prompt)], Sampling(max_new_tokens=max_new_tokens))
            if reply.failed:
                raise RuntimeError(f"{opened.name} gave no answer ({reply.finish_reason}); ask again")
            answers[column] = reply.text
        return answers_table([(prompt, answers)])

    return answered


def last_student(run: Experiment, results: Sequence[Result]) -> TrainedStudent | None:
    """The student of the last result whose adapter is kept in the run's folder, else of the last untrained row, else
    None; nothing is trained."""
    for result in reversed(results):
        if is_trained(result.method):
            row = result.method, result.seed, result.swapped
            made_of = training_of(
                result.method,
                run.student,
                run.pairs_of(result.seed, result.swapped),
                run.settings_of(result.method, result.seed),
                **run.load,
            )
            if kept_training(run.path_of(*row).parent, made_of):
                return run.train(*row)
    here = [
        one.method for one in results if not is_trained(one.method) and existing(one.method) != "endpoint"
    ]  # not paid again
    return run.as_it_is(here[-1]) if here else None
