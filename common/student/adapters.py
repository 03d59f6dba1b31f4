"""LoRA adapters of a student: settings, saving, loading."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common.storage import write_json
from common.student.identity import weights_of
from common.student.load import check_finite, check_tokenizer

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BASE_FILE = "trained_on.json"
"""Beside an adapter: which base it was trained on, the identity of its weights, and the score it is asked for."""


def adapters_to_float32(model: torch.nn.Module, modules: bool = True) -> None:
    """Trainable weights in float32: TRL casts QLoRA adapters to bfloat16, in which small updates round away. modules:
    whole ones too (`modules_to_save`), which a model in bfloat16 without autocast could not compute with."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (modules or ".modules_to_save." not in name):
            parameter.data = parameter.data.float()


def lora_settings(
    rank: int = 16, alpha: int | None = None, dropout: float = 0.0, target_modules: str | list[str] = "all-linear"
) -> LoraConfig:
    """LoRA on every linear layer of the blocks.

    rank 16, alpha = 2 * rank and no dropout are ours (TRL switches dropout off while training with DPO anyway). The
    author's closest published code has rank 24, alpha 48, dropout 0.05 on the same layers (configurable-safety-tuning,
    `cst_train.py`); the paper's own settings are not known to us.
    """
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        bias="none",
        target_modules=target_modules,
    )


def save_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    card: str,
    asked_for: float | None = None,
) -> None:
    """Writes a PEFT folder with tokenizer, model card and what it was trained on (`BASE_FILE`): safetensors, JSON and
    Markdown only, nothing pickled. asked_for: the score that its answers are asked for. Raises ValueError, and writes nothing, where the adapter holds NaN or infinity."""
    from peft import get_peft_model_state_dict

    check_finite(get_peft_model_state_dict(model, save_embedding_layers=False), "the trained adapter")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(Path(folder, BASE_FILE), _base(model) | ({} if asked_for is None else {"asked_for": asked_for}))
    Path(folder, "README.md").write_text(card, encoding="utf-8")


def load_adapter(
    base: PreTrainedModel, folder: str | Path, strength: float = 1.0, trainable: bool = False
) -> PreTrainedModel:
    """The base model with a trained adapter on it, frozen unless it is to be trained on, ready to generate. Warns where
    all that is known of the adapter is that its config names another base model.

    strength: how many times the adapter counts: 0 is the base, 1 as it was trained, between them a weaker dose. Saved or
    merged again, it has that strength for good.

    Raises ValueError for an adapter that was trained on other weights, that does not fit this model, or that holds NaN
    or infinity, and for a strength that is negative or that the adapter has no scale for.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = at_strength(PeftConfig.from_pretrained(str(folder)), strength, folder)
    named, made, own = config.base_model_name_or_path, Path(folder, BASE_FILE), _base(base)
    told = (
        json.loads(made.read_text(encoding="utf-8")) if made.exists() else {"base": named or own["base"], "weights": ""}
    )
    said = f"the adapter in {folder} was trained on {told['base']}, and the student is {own['base']}"
    if told["weights"] and own["weights"]:
        if told["weights"] != own["weights"]:
            raise ValueError(f"{said}, whose weights are others; give it the student that it was trained on")
    elif Path(told["base"]).name != Path(own["base"]).name:
        warnings.warn(said, stacklevel=2)
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable, config=config).train(trainable)
        adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
        if unlike := [
            key for key in load_peft_weights(str(folder), device="cpu").keys() ^ adapter.keys() if "lora_" in key
        ]:
            raise ValueError(
                f"{len(unlike)} of its weights have no layer here, or a layer here has none in it, such as {min(unlike)}"
            )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{said}, which it does not fit ({' '.join(str(error).split())[:200]}); give it the student that it was trained on"
        ) from None
    check_finite(adapter, f"the adapter in {folder}")
    return model


def load_adapters(base: PreTrainedModel, folders: Mapping[str, Path]) -> PreTrainedModel:
    """The base model with several adapters that were trained on it, by name, frozen; the first one is on, and
    `set_adapter` turns on another in its place."""
    from peft import PeftModel

    (first, folder), *others = folders.items()
    model = PeftModel.from_pretrained(base, str(folder), adapter_name=first)
    for name, folder in others:
        model.load_adapter(str(folder), adapter_name=name)
    return model.eval()


def at_strength(config: PeftConfig, strength: float, folder: str | Path) -> PeftConfig:
    """The config of an adapter that counts `strength` times. Raises ValueError where that is no matter of LoRA's scale."""
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"the strength of an adapter is 0 or more, 1 as it was trained, not {strength}")
    if strength == 1.0:
        return config
    if config.peft_type != "LORA" or config.use_dora or config.modules_to_save or config.bias != "none":
        raise ValueError(
            f"the adapter in {folder} is no plain LoRA, so it has no scale that could be turned to {strength:g}; use it as it is"
        )
    config.lora_alpha *= strength
    config.alpha_pattern = {layer: alpha * strength for layer, alpha in config.alpha_pattern.items()}
    return config


def turn(model: PreTrainedModel, strength: float) -> None:
    """Makes the adapter of a model count `strength` times from now on, also in what is saved or merged. Raises what
    `load_adapter` does."""
    from peft.tuners.lora import LoraLayer

    for name in model.active_adapters:
        at_strength(model.peft_config[name], strength, "this model")
        for module in model.modules():
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.scaling[name] *= strength


def adapter_asked_for(folder: str | Path) -> float | None:
    """The score that the answers of a saved adapter are asked for (`common.data.conditioned`), None for one that knows no
    scores."""
    path = Path(folder, BASE_FILE)
    return json.loads(path.read_text(encoding="utf-8")).get("asked_for") if path.exists() else None


def adapter_tokenizer(
    base: PreTrainedModel, folder: str | Path, pad_token: str | None = None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside an adapter, which it was trained with; None where none does. Raises ValueError for
    one with tokens that the base model has no embedding for, and what `load_student` raises of a tokenizer."""
    from transformers import AutoTokenizer

    if not Path(folder, "tokenizer_config.json").exists():
        return None
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    check_tokenizer(tokenizer, str(folder), pad_token)
    if len(tokenizer) > (known := base.get_input_embeddings().weight.size(0)):
        raise ValueError(
            f"the tokenizer beside the adapter in {folder} has {len(tokenizer)} tokens, and the student {base.name_or_path} an embedding for {known}; merge the adapter where it was trained, and give the merged folder as model:"
        )
    return tokenizer


def _base(model: PreTrainedModel) -> dict[str, str]:
    """What an adapter is trained on, for `BASE_FILE`: a Hub name with its commit, or a folder and the hash of its
    weights alone, since a tokenizer may change beside them."""
    name, commit = str(model.name_or_path), getattr(model.config, "_commit_hash", None)
    return {"base": f"{name}@{commit}" if commit else name, "weights": weights_of(name) if Path(name).is_dir() else ""}
