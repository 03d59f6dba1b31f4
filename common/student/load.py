"""The QLoRA student: any Hugging Face causal model in NF4, with LoRA adapters trained on top of it.

One loader for every size: the miniature of a million parameters and a 7B model go through the same lines.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.schema import Message
from common.student.identity import commit_of, located

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


FOLD_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\n\n' + messages[1]['content']}] + messages[2:] -%}"
    "{%- endif %}"
)
"""Set before a chat template without a system role: the system text opens the first user turn."""
MERGED_INTO = "merged_into"
"""Entry in the config.json of a merged model: what its base was quantised to when the adapter was trained."""


def best_compute_dtype() -> torch.dtype:
    """bfloat16 on a GPU that computes in it and on a CPU with AMX, else float32: AVX512-BF16 alone may be twice as slow.

    What the processor has decides and not a measurement, so that no two processes of one comparison differ."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if _cpu_has("amx_bf16") else torch.float32


def emulates_bfloat16() -> bool:
    """Whether training here in bfloat16 takes several times as long as in float32: on a CPU without units for it."""
    return not torch.cuda.is_available() and not _cpu_has("amx_bf16", "avx512_bf16", "bf16")  # the last is ARM's


def _cpu_has(*units: str) -> bool:
    return any(torch.cpu.get_capabilities().get(unit, False) for unit in units)


def load_student(
    name: str | Path,
    *,
    revision: str | None = None,
    four_bit: bool = True,
    compute_dtype: torch.dtype | None = None,
    pad_token: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model in NF4 (double quantisation) without adapters, and its tokenizer.

    Args:
        name: folder or Hub name, as `identity.located` reads it.
        revision: commit of a Hub model; pin it for anything that is reported. None takes the commit in the local cache,
            where there is one.
        four_bit: False loads in `compute_dtype` without quantisation.
        compute_dtype: of the matrix products and of everything not quantised; None takes `best_compute_dtype()`.
        pad_token: an existing token to pad with, for tokenizers that have none.

    Raises:
        FileNotFoundError: `name` can only be a folder and is none.
        ValueError: no chat template, one that writes a prompt in two ways (see `check_prompt_is_prefix`), no pad token,
            or a `pad_token` that the vocabulary lacks.

    A chat template that refuses or drops a system prompt (Gemma's and early Mistral's) is extended so that the system
    text opens the first user turn, with a warning. The tokenizer that is returned, and saved beside adapters, has it
    that way.

    On CPUs with AVX512-BF16, bitsandbytes repacks NF4 weights in place at the first forward in evaluation mode;
    gradients through repacked weights are wrong and the way back loses precision. Repacking is therefore switched off
    for every layer, whoever trains the model afterwards (the story and a reproduction are in LOG.md).
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    name, revision = place_of(name, revision)
    tokenizer = load_tokenizer(name, revision, pad_token)
    compute_dtype = compute_dtype or best_compute_dtype()
    quantization = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": compute_dtype,
    }
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        quantization["bnb_4bit_quant_storage"] = compute_dtype  # FSDP spreads floating dtypes alone
    model = AutoModelForCausalLM.from_pretrained(
        name,
        revision=revision,
        dtype=compute_dtype,
        quantization_config=BitsAndBytesConfig(**quantization) if four_bit else None,
        device_map={"": own_device()},
    )
    if four_bit and hasattr(model.config, MERGED_INTO):
        warnings.warn(
            f"{name} was merged into weights on the grid of {getattr(model.config, MERGED_INTO)}; loaded in NF4 it is about the base again, so load it with four_bit=False",
            stacklevel=2,
        )
    forbid_cpu_repacking(model)
    if head := model.get_output_embeddings():
        head.register_forward_pre_hook(_contiguous)
    return model.eval(), tokenizer


def load_as_it_is(
    name: str | Path,
    *,
    revision: str | None = None,
    compute_dtype: torch.dtype | None = None,
    pad_token: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A whole model and its tokenizer with the weights that its folder holds: quantised only where they lie there so.

    compute_dtype: None takes the weights' own, or float32, which holds them all, where this machine multiplies half
    precision slowly (`best_compute_dtype`). The rest, and what is raised, as in `load_student`.
    """
    model, tokenizer = load_student(
        name, revision=revision, four_bit=False, compute_dtype=compute_dtype or "auto", pad_token=pad_token
    )
    slow = compute_dtype is None and best_compute_dtype() == torch.float32 and not getattr(model, "is_quantized", False)
    return model.float() if slow else model, tokenizer


def merged_into(name: str | Path, revision: str | None = None) -> str:
    """The grid that a model's weights lay on when an adapter was merged into them (`export_merged`), such as NF4; ""
    for any other model. Arguments as in `load_student`. Raises OSError for a commit that cannot be had."""
    from huggingface_hub import hf_hub_download

    place, commit = place_of(name, revision)
    config = Path(hf_hub_download(place, "config.json", revision=commit) if commit else f"{place}/config.json")
    return json.loads(config.read_text(encoding="utf-8")).get(MERGED_INTO, "") if config.exists() else ""


def precision(model: torch.nn.Module) -> str:
    """What a model's weights are and what it computes in, e.g. `NF4, computed in bfloat16`."""
    dtype = str(model.dtype).removeprefix("torch.")
    quantised = getattr(model.config, "quantization_config", None) if getattr(model, "is_quantized", False) else None
    if quantised is None:
        return dtype
    kind = "NF4" if getattr(quantised, "load_in_4bit", False) else str(getattr(quantised, "quant_method", "quantised"))
    return f"{kind}, computed in {dtype}"


def check_finite(weights: Mapping[str, torch.Tensor], what: str) -> None:
    """Raises ValueError for weights that hold NaN or infinity: a model of them says nothing."""
    if bad := [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise ValueError(
            f"{what} holds NaN or infinity in {len(bad)} of {len(weights)} weights ({bad[0]}), so it is of no use; train again with a lower learning rate, and look at settings and scores"
        )


def _contiguous(head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """The last states of a batch are a slice, for which torch multiplies with one copy of a frozen head a row: 1.7 GB
    for 32 answers of SmolLM2-135M."""
    return (inputs[0].contiguous(),)


def release_memory() -> None:
    """Collects garbage and gives what was freed back to the system. glibc's allocator keeps it otherwise: after a dozen
    trainings of SmolLM2-135M a process held 8 GB, of which it used one."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)  # not in every C library


def own_device() -> str | int:
    """The GPU of this process, by the number that a launcher of several processes gave it; "cpu" without one."""
    return int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"


def load_tokenizer(
    name: str | Path, revision: str | None = None, pad_token: str | None = None
) -> PreTrainedTokenizerBase:
    """A student's tokenizer alone, checked and extended as `load_student` returns it; arguments and errors as there."""
    from transformers import AutoTokenizer

    name, revision = place_of(name, revision)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    check_tokenizer(tokenizer, name, pad_token)
    return tokenizer


def pad_token_beside(adapter: str | Path, name: str | Path, revision: str | None = None) -> str | None:
    """The `pad_token` of a student whose own tokenizer has none: that of the tokenizer saved beside an adapter. None
    where the student has one, or none was saved. name, revision: as in `load_student`."""
    from transformers import AutoTokenizer

    if not Path(adapter, "tokenizer_config.json").exists():
        return None
    place, commit = place_of(name, revision)
    own = AutoTokenizer.from_pretrained(place, revision=commit).pad_token
    return None if own else AutoTokenizer.from_pretrained(str(adapter)).pad_token


def place_of(name: str | Path, revision: str | None) -> tuple[str, str | None]:
    """(folder or Hub name, commit of the latter) that loaders are given."""
    name = str(located(name))
    return name, None if Path(name).is_dir() else commit_of(name, revision) or revision


def context_of(name: str | Path, revision: str | None = None) -> int | None:
    """`learned_positions` of a student, from its configuration alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    name, revision = place_of(name, revision)
    with torch.device("meta"):
        return learned_positions(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name, revision=revision)))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, pad_token: str | None) -> None:
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the tokenizer of {name} has no chat template; use an instruction-tuned model, or set `chat_template` in its tokenizer_config.json"
        )
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ValueError(f"pad_token {pad_token!r} is not in the vocabulary of {name}")
        tokenizer.pad_token = pad_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer of {name} has no pad token; pass pad_token=, e.g. an unused special token or {tokenizer.eos_token!r}"
        )
    if fold_system(tokenizer):
        warnings.warn(
            f"the chat template of {name} has no system role: system prompts will open the first user turn",
            stacklevel=4,
        )
    check_prompt_is_prefix(
        tokenizer, [{"role": "user", "content": "Hello."}], "Hello to you.", f"the chat template of {name}"
    )


def fold_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Gives a chat template without a system role one: the system prompt opens the first user turn. Returns whether it
    was needed."""
    if needed := not _shows_system_prompt(tokenizer):
        tokenizer.chat_template = FOLD_SYSTEM + tokenizer.chat_template
    return needed


def _shows_system_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    try:
        return "Be brief." in tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return False


def check_prompt_is_prefix(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], answer: str | list[Message], where: str, **template: Any
) -> None:
    """Raises ValueError, naming `where`, unless the tokens a student is prompted with also open the tokens it is
    trained on.

    answer: its text or its messages. template: tools and what else the chat template is rendered with.

    Otherwise the template opens the answer in one way when it is asked for and in another when it is given, or the last
    token of the prompt merges with white space that the answer begins with; the student would be trained on a context
    that it never meets.
    """
    answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, **template)["input_ids"]
    given = tokenizer.apply_chat_template([*prompt, *answer], return_dict=True, **template)["input_ids"]
    if given[: len(asked)] != asked:
        same = next(i for i, (a, b) in enumerate(zip([*asked, None], [*given, None])) if a != b)
        raise ValueError(
            f"{where}: the prompt's tokens are no prefix of prompt and answer; after the same {same} tokens the prompt goes on with "
            f"{tokenizer.decode(asked[same:])!r} and the two together with {tokenizer.decode(given[same : same + 5])!r}. "
            "Strip the answer, or set a `chat_template` that opens an answer the same way with and without add_generation_prompt"
        )


def forbid_cpu_repacking(model: torch.nn.Module) -> None:
    """Keeps bitsandbytes from repacking NF4 weights for CPU inference (see `load_student`). No effect elsewhere."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def learned_positions(model: torch.nn.Module) -> int | None:
    """How many positions a model has that learned one vector for each (GPT-2, OPT); None for others, which have no such
    end."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = (
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module is not model.get_input_embeddings()
    )
    return (
        limit if limit and any(limit <= table.num_embeddings <= limit + 2 for table in tables) else None
    )  # OPT's has two more
