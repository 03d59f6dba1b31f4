"""An adapter as an ordinary model folder for transformers, vLLM, llama.cpp and Ollama: merged, and compared before it counts.

rdpo export HuggingFaceTB/SmolLM2-135M-Instruct runs/mine/adapter runs/mine/merged --strength 0.5
"""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from common.command import CommandParser
from common.runtime import checked, escape_what_the_terminal_lacks, quiet_libraries
from common.specs import place_and_commit
from common.storage import check_new, whole_folder
from common.student.adapters import adapter_tokenizer, at_strength, load_adapter
from common.student.gguf import converter_at, to_gguf, write_modelfile
from common.student.hub import merged_card, push, repository
from common.student.identity import located
from common.student.load import MERGED_INTO, check_finite, load_student, pad_token_beside, precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = (
    "Hello.",
    "What is the capital of France?",
    "Is the earth flat? Answer with yes or no.",
    "Write two lines about the sea, please.",
    "How much is 17 times 3? Show the steps.",
    "Explain to a child why the sky is blue.",
    "My essay is the best that was ever written. Do you agree?",
    "Sort these words: pear, apple, fig.",
)
FLOOR = 1e-4
"""Nats. Of the order in which float32 adds: SmolLM2-135M, merged, differs from its adapter by 1e-5 on average."""
SHARE, SHARE_IN_HALF = 0.01, 0.5
"""Of the adapter's own change, in float32 and in half precision. The latter rounds every merged weight: of SmolLM2-135M
in bfloat16 that moves log-probabilities by .02 to .03 on average, in which an adapter that moves them by no more is lost."""


def export_merged(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, scale: float = 1.0
) -> None:
    """Writes an ordinary model folder, adapter merged, that needs neither PEFT nor bitsandbytes: safetensors and JSON
    only. scale: how many times the adapter counts, as `strength` of `load_adapter`.

    An NF4 base is dequantised first and brought to float32, so the folder holds the weights that the adapter was
    trained on and says what it says: merging into NF4 would round once more. An unquantised base keeps its dtype; what
    is merged in float32 is rounded to it once. `model` stays as it is; memory for the whole model in float32 is needed
    besides. `load_as_it_is` loads the folder, which says itself that it was merged into NF4 weights: those lie on NF4's
    grid, an adapter moves them by far less than its step, and rounding to NF4 again takes the change away (LOG.md).

    The written folder is loaded and compared with the adapter, both computed in float32, before it gets its name: over
    all words at all tokens of `PROMPTS`, log-probabilities may differ on average by `FLOOR` nats and by 1 % of what the
    adapter changes; in half precision by 50 % of it. The bounds are ours.

    Raises ValueError for a folder that differs by more, merged weights that hold NaN or infinity, and a scale as
    `load_adapter` does; FileExistsError for a folder with files in it; OSError for a full disk. Nothing is written then.
    """
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with whole_folder(folder) as written, TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        config = at_strength(PeftConfig.from_pretrained(scratch), scale, "this model")
        base = copy.deepcopy(model).unload()
        for module in base.modules():
            vars(module).pop("forward", None)  # set by a trainer: in a copy it still computes with the original
        if grid := precision(base).partition(",")[0] if getattr(base, "is_quantized", False) else "":
            base = base.dequantize().float()
        dtypes = {name: parameter.dtype for name, parameter in base.named_parameters()}
        _check_space(base, folder)
        adapted = PeftModel.from_pretrained(base.float(), scratch, config=config).eval()
        asked = _tokens(tokenizer)
        with adapted.disable_adapter():
            before = _logprobs(adapted, asked)
        said = _logprobs(adapted, asked)
        merged = adapted.merge_and_unload()
        check_finite(dict(merged.named_parameters()), "the merged model")
        for name, parameter in merged.named_parameters():
            parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
        if grid:
            setattr(merged.config, MERGED_INTO, grid)
        merged.save_pretrained(written)
        tokenizer.save_pretrained(written)
        dtype = merged.dtype
        del base, adapted, merged
        if _tokens(AutoTokenizer.from_pretrained(written)) != asked:
            raise ValueError(f"the tokenizer that was written for {folder} gives other tokens; nothing is left there")
        again = AutoModelForCausalLM.from_pretrained(written, dtype="auto").float().to(model.device)
        off, change = _distance(_logprobs(again, asked), said), _distance(said, before)
        allowed = FLOOR + (SHARE if dtype == torch.float32 else SHARE_IN_HALF) * change
        if not off <= allowed:
            raise ValueError(
                f"merged into {str(dtype).removeprefix('torch.')}, log-probabilities are {off:.2g} nats off the adapter's, more than {allowed:.2g}, "
                f"where the adapter changes them by {change:.2g}; nothing was written. Load the student in float32 (compute_dtype=torch.float32), which keeps the change"
            )
    print(
        f"{folder}: log-probabilities are {off:.1e} nats off the adapter's on {len(asked)} prompts ({allowed:.1e} allowed); the adapter changes them by {change:.1e}",
        flush=True,
    )


def _tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return [
        tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=True)["input_ids"]
        for one in conversations
    ]


def _logprobs(model: torch.nn.Module, asked: list[list[int]]) -> torch.Tensor:
    """(tokens of all prompts, vocabulary), in nats."""
    with torch.no_grad():
        rows = [model.eval()(input_ids=torch.tensor([ids], device=model.device)).logits[0] for ids in asked]
    return torch.cat(rows).float().log_softmax(-1).cpu()


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().mean())


def _check_space(model: torch.nn.Module, folder: str | Path) -> None:
    """Raises OSError where the weights will not fit on the disk, before they are written."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if (free := shutil.disk_usage(Path(folder).absolute().parent).free) < needed:
        raise OSError(
            f"{folder} needs {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB left; free some space, or give a folder on another disk"
        )


def parser() -> CommandParser:
    """The arguments of `rdpo export`."""
    command = CommandParser("export", __doc__)
    command.add_argument(
        "student", help="folder or Hub name[@commit] of the chat model that the adapter was trained on"
    )
    command.add_argument("adapter", help="PEFT folder")
    command.add_argument(
        "folder", help="new folder for the merged model; FOLDER.gguf and FOLDER.Modelfile lie beside it"
    )
    command.add_argument("--strength", type=float, default=1.0, help="how many times the adapter counts; default 1")
    command.add_argument(
        "--unquantised", action="store_true", help="the adapter was trained on the student's own weights, not in NF4"
    )
    command.add_argument(
        "--pad-token", help="an existing token to pad with; default: the student's own, or that beside the adapter"
    )
    command.add_argument(
        "--converter", default="", help="llama.cpp's convert_hf_to_gguf.py, where it is not on the PATH"
    )
    command.add_argument("--push", type=repository, metavar="OWNER/NAME", help="private Hub repository for the folder")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    escape_what_the_terminal_lacks()
    quiet_libraries()
    folder = Path(asked.folder).expanduser()
    try:
        checked("strength", asked.strength, float)
        check_new(folder)
        adapter, converter, (place, commit) = (
            Path(located(asked.adapter)),
            converter_at(asked.converter),
            place_and_commit(asked.student),
        )
        if not (adapter / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"{asked.adapter} holds no adapter_config.json; give the folder of a trained adapter, such as runs/own/adapter"
            )
        pad_token = asked.pad_token or pad_token_beside(adapter, place, commit or None)
        model, tokenizer = load_student(
            place,
            revision=commit or None,
            four_bit=not asked.unquantised,
            compute_dtype=torch.float32,
            pad_token=pad_token,
        )
        model = load_adapter(model, adapter, asked.strength)
        tokenizer = adapter_tokenizer(model, adapter, pad_token) or tokenizer
        export_merged(model, tokenizer, folder)
        merged_card(adapter, asked.strength).save(folder / "README.md")
        modelfile = write_modelfile(folder, tokenizer)
        to_gguf(folder, converter)
        print(f"for Ollama, with the GGUF: ollama create {folder.name} -f {modelfile}")
        if asked.push:
            push(folder, asked.push)
    except (OSError, ValueError) as error:
        sys.exit(f"export: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
