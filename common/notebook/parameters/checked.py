"""Parameters that are checked one by one and together, and how they are taken from what a reader gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator

from common.runtime import checked, is_list, nearest, yaml_file
from common.storage import read_yaml

RENAMED = {
    **dict.fromkeys(("base_url", "api_key_env", "concurrency", "prices", "max_cost"), "is a field of a provider: name a file of them as providers, see docs/models.md (local_batch: of a local model)"),
    **dict.fromkeys(("alpha", "eta", "tau", "variance", "label_smoothing"), "is a knob of a loss: knobs = {\"%s\": 1.0}, or knobs %s=1.0 on a command line"),
    **dict.fromkeys(("revision", "source_revision"), "is written behind the name: owner/name@commit"),
    **dict.fromkeys(("labels_file", "labels_texts"), "is now labels: a list of the file of labels and, where that holds ids, the file of texts"),
    "profile": "is gone: output names the folder of the run",
}  # fmt: skip
"""Former parameter -> what took its place."""
AnyOf = TypeVar("AnyOf", bound="Checked")


class Checked(BaseModel):
    """Parameters that are checked one by one and together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _in_range(cls, value: Any, info: Any) -> Any:
        return checked(info.field_name, value, cls.model_fields[info.field_name].annotation)

    @classmethod
    def of(cls: type[AnyOf], given: Mapping[str, Any]) -> AnyOf:
        """The parameters with these values, and those of the file `settings` where they are not given.

        A list is also taken from a single value or one string, `0,1` or `[0, 1]`, and knobs from `alpha=2,eta=4`, since
        `papermill -p` passes neither. Raises ValueError naming every unknown, renamed, mistyped or impossible
        parameter.
        """
        problems, values = [], dict(given)
        if path := values.get("settings"):
            rare = yaml_file("settings", str(path))
            problems += [
                f"settings: {path} gives {name}, which is given already; leave it out of the file"
                for name in rare
                if rare[name] != values.get(name, rare[name])
            ]
            values = {**rare, **values}
        where = lambda name: f"settings: {path}: " if path and name in rare else ""  # noqa: E731
        for name in [name for name in values if name not in cls.model_fields]:
            problems.append(where(name) + _unknown(name, list(cls.model_fields)))
            del values[name]
        for name, value in list(values.items()):
            try:
                values[name] = checked(name, *_parsed(value, cls.model_fields[name].annotation))
            except ValueError as error:
                problems.append(f"{where(name)}parameter {error}")
        missing = [name for name, field in cls.model_fields.items() if field.is_required() and name not in values]
        problems += [f"parameter {name} is missing" for name in missing]
        made = cls.model_construct(**values)  # every value is checked
        problems = problems or made.problems()
        if problems:
            raise ValueError("; ".join(problems))
        return made

    def problems(self) -> list[str]:
        """What is wrong with values that are each of the right type: names of models, methods, kinds and providers."""
        return [str(error) for check in self._checks() if (error := _error_of(check))]

    def _checks(self) -> list[Callable[[], object]]:
        return []


def _parsed(value: Any, kind: Any) -> tuple[Any, Any, bool]:
    """(value, kind, whether it must be of that type as it is) for `checked`."""
    if is_list(kind) and not isinstance(value, list):
        from_text = not isinstance(value, tuple)
        return _listed(str(value)) if from_text else list(value), kind, not from_text
    if getattr(kind, "__origin__", None) is dict and isinstance(value, str):
        if value.strip().startswith("{"):
            return read_yaml(value), kind, True
        parts = [part.partition("=") for part in _listed(value)]
        return {knob.strip(): number for knob, _, number in parts}, kind, False
    return value, kind, True


def _listed(text: str) -> list[str]:
    """The parts of `a,b`, `[a, b]` or `["a", "b"]`."""
    text = text.strip()
    inner = text[1:-1] if (text[:1], text[-1:]) in (("[", "]"), ("(", ")")) else text
    return [part for piece in inner.split(",") if (part := piece.strip().strip("'\"").strip())]


def _unknown(name: str, there: list[str]) -> str:
    if name in RENAMED:
        return f"parameter {name} {RENAMED[name].replace('%s', name)}"
    return f"unknown parameter {name}" + (nearest(name, there) or f"; there are {', '.join(there)}")


def _error_of(check: Callable[[], object]) -> Exception | None:
    try:
        check()
    except (OSError, ValueError) as error:
        return error
    return None
