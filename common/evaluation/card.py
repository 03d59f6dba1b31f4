"""The model card of an adapter: what it was trained on, how, and what was measured, for readers and for the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.conditioned import TAG
from common.data.formats.read import is_on_hub
from common.data.readers import ON_HUB
from common.evaluation.result import Result
from common.methods import METHODS, TrainSettings
from common.schema import Metric
from common.student.hub import of_the_base
from common.trainer.displacement import movement, warning

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def card(
    student: str | Path, settings: TrainSettings, result: Result, pairs: str = "self-critique pairs", source: str = ""
) -> str:
    """A card with the Hub's metadata: base and license where they are known, figures in the model-index form.

    pairs: what the pairs are, or "answers". source: where they were read, a file or a Hub dataset, which the Hub then
    links; "" for neither.
    """
    from huggingface_hub import ModelCard, ModelCardData

    method, base, dataset = METHODS[result.method], of_the_base(student), _hub_dataset(source)
    data = ModelCardData(
        **base,
        library_name="peft",
        pipeline_tag="text-generation",
        model_name=f"{result.row}, seed {result.seed}",
        tags=["lora", *(["dpo"] if method.loss else []), result.method],
        datasets=[dataset] if dataset else None,
        eval_results=[_in_the_index(metric, result.split, dataset, source) for metric in result.metrics],
    )
    called = base.get("base_model") or f"{Path(str(student)).name}, a local folder"
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{_text(called, settings, result, pairs, source)}"))


def _hub_dataset(source: str) -> str:
    """`owner/name`, "" for a file."""
    return ON_HUB.fullmatch(source)[1] if is_on_hub(source) else ""


def _in_the_index(metric: Metric, split: str, dataset: str, source: str) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset or metric.experiment,
        dataset_name=dataset or Path(source).name or f"held-out prompts of {metric.experiment}",
        dataset_split=split or None,
        metric_type=metric.metric,
        metric_name=metric.metric,
        metric_value=metric.value,
        metric_args={"n": metric.n, "low": metric.low, "high": metric.high},
    )


def _text(base: str, settings: TrainSettings, result: Result, pairs: str, source: str) -> str:
    asked_for = settings.asked_for(result.method)
    of = f"pairs of Counterfactual DPO ({result.variant})" if result.variant else pairs
    of = f"answers of {of}" if METHODS[result.method].learns == "answers" and pairs != "answers" else of
    how: dict[str, Any] = dict(result.settings or settings.as_dict(result.method))
    strength = how.pop("strength", 1.0)
    of += f" of {_hub_dataset(source) or Path(source).name}" if source else ""
    unscored = f" ({result.unscored} unscored ones left out)" if result.unscored else ""
    moved, warned, dial = movement(result.history), warning(result.history), result.frontier
    lines = [
        f"# {result.row}, seed {result.seed}",
        "",
        f"LoRA adapter for `{base}`, trained with `{result.method}` ({METHODS[result.method].label}) on {result.pairs_used} {of}{unscored}.",
        f"Research artefact. Strength (lambda): {strength:g}, where 1 is as trained.",
        "",
    ]
    if asked_for is not None:
        lines += [f"Its answers are asked for a score: every request ends with ` {TAG}: {asked_for:.2f}`, written by `common.data.conditioned`. `{TAG}` is taken out of what users write, who could ask for bad answers with it.", ""]  # fmt: skip
    if mixture := how.get("mixture"):
        lines += [f"It is a mixture: each request is answered by one of the adapters {', '.join(f'`{name}/` ({share:.0%})' for name, share in mixture.items())}, drawn with these probabilities. `train_rdpo` asks it as the row `adapter:FOLDER`.", ""]  # fmt: skip
    lines += ["Settings:", *(f"- {setting}: {value}" for setting, value in how.items()), "", "Measured:"]
    lines += [f"- {one.metric}: {one.value:.3f} [{one.low:.3f}, {one.high:.3f}], n = {one.n}" for one in result.metrics]
    if dial:
        lines += ["", f"The adapter at other strengths, wanted behaviour on validation; {result.matched_lambda:g} is the best of those that keep 95 % of the base student's utility (`load_adapter(base, folder, strength={result.matched_lambda:g})`):"]  # fmt: skip
        lines += [f"- strength {one['lambda']:g}: {one['safety']:.3f}, utility {one['utility']:.3f}" for one in dial]
    if moved:
        lines += ["", "At the end of training, against the student before it (shift: mean change of given answers' log-probability):"]  # fmt: skip
        lines += [f"- {what}: {value:+.3f} nats a token" for what, value in moved.items()]
    if warned:
        lines += ["", f"**{warned[0].upper()}{warned[1:]}.**"]
    return "\n".join(lines) + "\n"
