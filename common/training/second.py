"""The model that rows with a second reference compare with, loaded as `second_reference` names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.methods import TrainSettings, existing, existing_commit, existing_place, existing_strength
from common.student.adapters import adapter_tokenizer, load_adapter
from common.student.load import learned_positions, load_as_it_is, load_student, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def base_again(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, four_bit: bool = False) -> PreTrainedModel:
    """A student's base model, loaded once more: in NF4, or as NF4 was made of."""
    revision = getattr(model.config, "_commit_hash", None)
    how = {"revision": revision, "four_bit": four_bit, "compute_dtype": model.dtype, "pad_token": tokenizer.pad_token}
    return load_student(model.name_or_path, **how)[0]


def load_second(settings: TrainSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The second reference beside a student: its unquantised weights, an adapter on them as they are, or another model.

    Raises ValueError for an adapter that was trained on other weights, and for a model whose tokens are not the
    student's or that has fewer positions than `max_length`: token ids of another tokenizer are nonsense to it.
    """
    name, kind = settings.second_reference, existing(settings.second_reference)
    if not kind:
        return base_again(model, tokenizer)
    place = existing_place(name)
    if kind == "adapter":
        base = base_again(model, tokenizer, four_bit=getattr(model, "is_quantized", False))
        if beside := adapter_tokenizer(base, place, tokenizer.pad_token):
            _check_tokens(name, beside, tokenizer)
        return load_adapter(base, place, existing_strength(name))
    how = {"revision": existing_commit(name) or None, "pad_token": tokenizer.pad_token}
    _check_tokens(name, load_tokenizer(place, how["revision"]), tokenizer)
    second, _ = load_as_it_is(place, **how)
    if (positions := learned_positions(second)) and positions < settings.max_length:
        raise ValueError(
            f"second_reference = {name} has {positions} positions, fewer than max_length={settings.max_length}; set max_length to {positions} at most"
        )
    return second


def _check_tokens(name: str, second: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> None:
    if second.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"second_reference = {name} has another tokenizer than the student, so that it cannot score the student's tokens; give a model of the same family, or an adapter of this student"
        )
