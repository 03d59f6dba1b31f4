"""The result of one row: what `metrics.json` holds, its place in tables."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from common.data.counterfactual import VARIANTS
from common.methods import METHODS, is_trained
from common.schema import Metric
from common.statistics import rate_of
from common.storage import JsonlStore, read_lines, write_json

ABOUT = ("experiment", "method", "seed")
"""What every metric of a row repeats."""
CONDITIONS = ("noise", "judge_error")
"""What they repeat where it is known."""
OF_RATE, OF_MEAN = ("metric", "k", "n"), ("metric", "value", "n", "low", "high")
"""What a list says of a metric in a line of finished results."""
OUTCOME = {True: "1", False: "0", None: "-"}
"""An outcome in a line of finished results, in which those of a metric are one word."""


@dataclass
class Result:
    """What one training left behind, as `metrics.json` holds it.

    metrics: on the split asked for, adapter as trained; matched: the same at the lambda chosen on validation. outcomes,
    ids: see `Evaluation`. variant: of Counterfactual DPO, whose pairs it was trained on; "" for self-critique. swapped:
    share of the pairs whose answers were exchanged. settings: of the training, but for its seed. precision: see
    `student.precision`. prompts: of SR, the hash of the texts that it was asked with (`ExperimentPrompts.hash`).

    Raises ValueError for a metric that is no finite number.
    """

    method: str
    seed: int
    made_of: str
    metrics: list[Metric]
    matched: list[Metric] = field(default_factory=list)
    matched_lambda: float | None = None
    frontier: list[dict[str, float]] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)
    outcomes: dict[str, list[bool | None]] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    pairs_used: int = 0
    unscored: int = 0
    variant: str = ""
    swapped: float = 0.0
    split: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    precision: str = ""
    prompts: str = ""

    def __post_init__(self):
        if bad := [
            f"{metric.metric} = {metric.value}"
            for metric in (*self.metrics, *self.matched)
            if not isfinite(metric.value)
        ]:
            raise ValueError(
                f"{self.row}, seed {self.seed}: {', '.join(bad)} is no measurement; the model that was measured computes NaN or infinity"
            )

    @property
    def row(self) -> str:
        """Its name in tables and folders: the method, the variant of its pairs, and how many of them were swapped."""
        return row_of(self.method, self.variant, self.swapped)

    @classmethod
    def read(cls, path: str | Path) -> Result:
        return cls.of(json.loads(Path(path).read_text(encoding="utf-8")))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Result:
        """What `content` or `short_content` was made of, now or before metrics were lists there and ids a code; an id is
        passed over."""
        names = {name: content[name] for name in (*ABOUT, *CONDITIONS) if name in content}
        metrics = {
            name: [Metric(**names | _told(metric)) for metric in content.get(name, [])]
            for name in ("metrics", "matched")
        }
        meant = {sign: outcome for outcome, sign in OUTCOME.items()}
        outcomes = {
            metric: [meant[sign] for sign in told] if isinstance(told, str) else told
            for metric, told in content.get("outcomes", {}).items()
        }
        ids = {name: _decoded(of) if isinstance(of, str) else of for name, of in content.get("ids", {}).items()}
        fields = {name: value for name, value in content.items() if name not in ("id", "experiment", *CONDITIONS)}
        return cls(**fields | metrics | {"outcomes": outcomes, "ids": ids})

    def of_seed(self, seed: int) -> Result:
        """The same under another seed's name."""
        told = {
            name: [metric.model_copy(update={"seed": seed}) for metric in getattr(self, name)]
            for name in ("metrics", "matched")
        }
        return replace(self, seed=seed, **told)

    def content(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return asdict(self) | {
            name: [metric.model_dump() for metric in getattr(self, name)] for name in ("metrics", "matched")
        }

    def short_content(self) -> dict[str, Any]:
        """`content` without what every metric repeats of the row, what follows from a rate's counts, and what is empty.

        A rate is [metric, k, n], a mean [metric, value, n, low, high] to four decimals, as in tables, a metric of other names than the
        row's a mapping; the outcomes of a metric are one word, see `OUTCOME`, the ids of a set another, see `_encoded`.
        """
        names = {"experiment": self.metrics[0].experiment, "method": self.method, "seed": self.seed}
        for name in CONDITIONS:
            values = {getattr(metric, name) for metric in (*self.metrics, *self.matched)}
            names |= {name: value for value in values if len(values) == 1 and value is not None}
        empty = asdict(Result(self.method, self.seed, self.made_of, []))
        short = {name: value for name, value in self.content().items() if name in names or value != empty[name]}
        for name in ("metrics", "matched"):
            if told := getattr(self, name):
                short[name] = [_short(metric.model_dump(exclude_none=True), names) for metric in told]
        if self.outcomes:
            short["outcomes"] = {
                metric: "".join(OUTCOME[one] for one in outcomes) for metric, outcomes in self.outcomes.items()
            }
        if self.ids:
            short["ids"] = {name: _encoded(ids) for name, ids in self.ids.items()}
        return names | {"made_of": self.made_of} | short

    def write(self, path: str | Path) -> None:
        write_json(path, self.content())


def _short(metric: Mapping[str, Any], names: Mapping[str, Any]) -> list[Any] | dict[str, Any]:
    known = {**names, **_of_counts(metric)}
    own = {name: value for name, value in metric.items() if known.get(name) != value}
    if names.items() <= metric.items():
        for form in (OF_RATE, OF_MEAN):
            if own.keys() == set(form):
                return [round(own[name], 4) if isinstance(own[name], float) else own[name] for name in form]
    return own


def _told(metric: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """The fields of a metric that JSON holds whole, without what follows from its counts, or as `_short` wrote it."""
    if not isinstance(metric, Mapping):
        metric = dict(zip(OF_RATE if len(metric) == len(OF_RATE) else OF_MEAN, metric))
    return _of_counts(metric) | metric


def _of_counts(metric: Mapping[str, Any]) -> dict[str, float]:
    """Value and interval of a rate, from its k and n; nothing for other metrics."""
    return {} if metric.get("k") is None else rate_of(metric["k"], metric["n"])


def _encoded(ids: Sequence[str]) -> str:
    """Ids of twelve hex digits (`answer_id`) as eight characters each, base64; others with spaces between."""
    if all(re.fullmatch("[0-9a-f]{12}", one) for one in ids):
        return base64.b64encode(bytes.fromhex("".join(ids))).decode()
    return " ".join(ids)


def _decoded(ids: str) -> list[str]:
    """What `_encoded` was given, or wrote before it knew base64."""
    if " " in ids or len(ids) % 8:
        return ids.split()
    told = base64.b64decode(ids).hex()
    return [told[start : start + 12] for start in range(0, len(told), 12)]


def finished_result(path: Path, name: str, of_any_seed: bool) -> Result | None:
    """The result with the name `seed-<s>/<row>.<mark>` in a JSONL file of finished ones, or else, if asked for, the
    first with that row and mark. None where there is none."""
    if not path.exists():
        return None
    with JsonlStore(path, wait=True) as finished:
        by_name = {fields["id"]: fields for fields in finished.load()}
    others = sorted(other for other in by_name if of_any_seed and Path(other).name == Path(name).name)
    return next((Result.of(by_name[one]) for one in (name, *others) if one in by_name), None)


def finished_in(path: Path) -> list[Result]:
    """The result of a `metrics.json`, or all of a JSONL file of finished ones."""
    if path.suffix == ".jsonl":
        return [Result.of(fields) for _, fields in read_lines(path)]
    return [Result.read(path)]


def add_finished(path: Path, name: str, result: Result) -> None:
    """Adds a result to a JSONL file of finished ones unless its name is there; after a kill it is there whole or not at
    all."""
    with JsonlStore(path, wait=True) as finished:
        if name not in finished:
            finished.append({"id": name, **result.short_content()})


def row_of(method: str, variant: str, swapped: float = 0.0) -> str:
    """The method, and where it was trained what is special about its pairs, e.g. `dpo_contrastive`, `dpo_swapped_0.3`."""
    parts = [method, *([variant] if variant else []), *([f"swapped_{swapped:g}"] if swapped else [])]
    return "_".join(parts) if is_trained(method) else method


def place_in_table(result: Result) -> tuple[int, float, int, str, int]:
    """Sorts results as tables show them: by kind of pairs, share swapped and METHODS, what existed before last."""
    return (
        ("", *VARIANTS).index(result.variant),
        result.swapped,
        (*METHODS, result.method).index(result.method),
        result.method,
        result.seed,
    )


def excerpts(result: Result, count: int = 5) -> dict[str, list[str]]:
    """What pages show of a real student's answers: the first words of those to the first `count` held-out prompts, 12
    of an answer to a harmful request, 30 of another. An excerpt's excerpt is itself. Empty for a row without such
    answers."""
    words = 12 if result.metrics[0].experiment == "safety" else 30
    said = [answer.split() for answer in result.answers.get("held_out", [])[:count]]
    return {"held_out": [" ".join([*of[:words], *(["…"] if len(of) > words else [])]) for of in said]} if said else {}
