"""Names of models, judges and rows as users write them, `kind:name@commit`, taken apart once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from common.runtime import nearest, resolve

WITH_COMMIT = ("local", "reward", "yes_no", "model")
"""Kinds whose name may be one of the Hub."""


@dataclass(frozen=True)
class Spec:
    """kind: such as endpoint, local or yes_no. name: a folder, a Hub name, a file, or a model behind an endpoint; ""
    for a kind without.
    commit: of a Hub name, "" for the newest."""

    kind: str
    name: str = ""
    commit: str = ""

    @property
    def revision(self) -> str | None:
        """The commit as loaders take it."""
        return self.commit or None


def place_and_commit(text: str) -> tuple[str, str]:
    """(folder, file or Hub name; commit, tag or branch behind the @). Only Hub names have one, and nothing that is
    there under the whole name."""
    name, _, commit = text.rpartition("@")
    is_hub_name = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) and re.fullmatch(r"[\w.-]+", commit)
    return (name, commit) if is_hub_name and not resolve(text).exists() else (text, "")


def spec_of(role: str, text: str, alone: Iterable[str] = (), named: Iterable[str] = ()) -> Spec:
    """What `text` names as `role`.

    Args:
        alone: kinds written without a name; named: kinds written `kind:name`.

    Raises ValueError for any other kind, with the nearest one, and for a name that is missing or too much.
    """
    alone, named = list(alone), list(named)
    kind, _, name = text.partition(":")
    if kind in alone and not name:
        return Spec(kind)
    if kind in named and name:
        return Spec(kind, *(place_and_commit(name) if kind in WITH_COMMIT else (name, "")))
    forms = {kind: kind for kind in alone} | {kind: f"{kind}:..." for kind in named}
    raise ValueError(f"unknown {role} {text!r}{nearest(kind, forms.values())}; there are {', '.join(forms.values())}")
