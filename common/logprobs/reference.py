"""Log-probabilities under the reference, computed once per pair and kept on disk for every method and seed."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

from common.schema import fingerprint
from common.storage import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SAVE_EVERY = 30.0  # seconds
PACKAGES = ("torch", "transformers", "bitsandbytes")
VERSION = 2
"""Raise it when the same pair gets other numbers from the same model."""
VOLATILE = ("_name_or_path", "transformers_version", "use_cache")
"""Entries of a model's config that change no log-probability."""


class ReferenceCache:
    """The numbers of a pair by key, one for each of its answers, in one JSON file per reference.

    Args:
        folder: holds the file of every reference.
        identity: of the reference, see `reference_identity`.

    A file that cannot be read is made again, with a warning. Processes that add at the same time keep each other's
    values.
    """

    def __init__(self, folder: str | Path, identity: str):
        self.path = Path(folder) / f"{identity}.json"
        self.values = self._read()
        self.saved = time.monotonic()

    def add_now_and_then(self, values: dict[str, tuple[float, ...]]) -> None:
        """`add`, but only when the last time is `SAVE_EVERY` past: a long pass that is killed loses no more."""
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.add(values)
            self.saved = time.monotonic()

    def add(self, values: dict[str, tuple[float, ...]]) -> None:
        """Keeps new values, in memory and on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            self.values = {**self._read(), **self.values, **values}
            write_json(self.path, self.values)

    def _read(self) -> dict[str, tuple[float, ...]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            values = {key: tuple(map(float, numbers)) for key, numbers in content.items()}
            if any(len(numbers) < 2 for numbers in values.values()):
                raise ValueError("a pair has fewer than two numbers")
            return values
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            warnings.warn(f"{self.path} cannot be read ({error}) and is made again", stacklevel=3)
            return {}


def _adapters_on(model: torch.nn.Module) -> list[list]:
    """[layer, adapter, its strength where it has one] of all adapters that a model computes with."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return [
        [name, adapter, module.scaling.get(adapter) if isinstance(getattr(module, "scaling", None), dict) else None]
        for name, module in layers
        if not module.disable_adapters
        for adapter in module.active_adapters
    ]


def _names_switched_off(model: torch.nn.Module, on: set[str]) -> set[str]:
    """Names of the weights of adapters that are not on; of a learned prompt, those that are trained."""
    if not hasattr(model, "disable_adapter"):
        return set()
    if model.active_peft_config.is_prompt_learning:
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name
        for name in model.state_dict()
        if any(part in name for part in switched_parts(model)) and not on & set(name.split("."))
    }


def switched_parts(model: torch.nn.Module) -> tuple[str, ...]:
    """Parts of the names of weights that a PeftModel switches on and off."""
    return model.base_model.prefix, "modules_to_save", "trainable_tokens_"


def reference_identity(model: PreTrainedModel, **computed: object) -> str:
    """Hash of everything but the pair that decides a reference log-probability: frozen weights, config, which adapters
    are on and how strongly, and how it is computed. Ask for it while the model is the reference.

    Weights on top of a base (an adapter, a head kept in full) count where they are on. Of a sharded model every process
    must ask.
    """
    from torch.distributed.tensor import DTensor

    on, digest = _adapters_on(model), hashlib.sha256()
    off = _names_switched_off(model, {adapter for _, adapter, _ in on})
    for name, tensor in sorted(model.state_dict().items()):
        if name not in off:
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            digest.update(
                f"{name.replace('.base_layer', '').removeprefix('base_model.model.')} {tensor.dtype} {tuple(tensor.shape)}".encode()
            )
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if on:
        computed = computed | {"on": on}
    config = {name: value for name, value in model.config.to_dict().items() if name not in VOLATILE}
    versions = [VERSION, *(version(package) for package in PACKAGES)]
    return fingerprint(digest.hexdigest(), config, computed, versions, digits=32)
