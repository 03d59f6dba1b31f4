"""A model folder for llama.cpp and Ollama: its GGUF by llama.cpp's own converter, and a Modelfile."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.schema import Message
from common.storage import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONVERTER = "convert_hf_to_gguf.py"
TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
GREEDY = {"temperature": "0", "repeat_penalty": "1"}
"""Ollama samples and penalises repetition unless told not to; answers were measured greedily."""


def converter_at(given: str = "") -> str:
    """The converter that is given, else the one on the PATH, "" where there is none. Raises FileNotFoundError for a
    given one that is not there."""
    if given and not Path(given).expanduser().is_file():
        raise FileNotFoundError(
            f"--converter {given}: no such file; it is {CONVERTER} of github.com/ggml-org/llama.cpp"
        )
    return str(Path(given).expanduser()) if given else shutil.which(CONVERTER) or ""


def to_gguf(folder: str | Path, converter: str) -> Path | None:
    """Converts a model folder to `<folder>.gguf`, in the precision of its weights; without a converter it prints the
    command and returns None. Raises ValueError with the converter's last words where it fails; no file is left then."""
    folder = Path(folder)
    target, scratch = folder.with_name(f"{folder.name}.gguf"), folder.with_name(f"{folder.name}.part.gguf")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    command = [str(folder), "--outfile", str(scratch), "--outtype", TYPES.get(config.get("dtype"), "auto")]
    if not converter:
        shown = shlex.join(["python", CONVERTER, *command]).replace(str(scratch), str(target))
        print(f"{CONVERTER} is not on the PATH, so no GGUF was made; with github.com/ggml-org/llama.cpp: {shown}")
        return None
    try:
        done = subprocess.run([sys.executable, converter, *command], capture_output=True, text=True)
        if done.returncode or not scratch.exists():
            said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
            raise ValueError(f"{converter} made no GGUF of {folder}: {said[-1][:300]}")
        return scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


class Format(NamedTuple):
    """A chat format in which every turn is written alike: opening, role, `between`, content, closing."""

    name: str
    opening: str
    between: str
    closing: str

    def written(self, messages: Sequence[Message]) -> str:
        """A conversation that asks for the next answer."""
        turns = [f"{self.opening}{one['role']}{self.between}{one['content']}{self.closing}" for one in messages]
        return "".join(turns) + f"{self.opening}assistant{self.between}"

    @property
    def template(self) -> str:
        """In Ollama's language."""
        turn = f"{self.opening}{{{{ .Role }}}}{self.between}{{{{ .Content }}}}{self.closing}"
        return f"{{{{- range .Messages }}}}{turn}{{{{ end }}}}{self.opening}assistant{self.between}"


FORMATS = (
    Format("ChatML", "<|im_start|>", "\n", "<|im_end|>\n"),
    Format("Llama 3", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
    Format("Phi 3", "<|", "|>\n", "<|end|>\n"),
    Format("Zephyr", "<|", "|>\n", "</s>\n"),
)
HELLO = [{"role": "user", "content": "Hello."}]
TURNS = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi."}, *HELLO]


def format_of(tokenizer: PreTrainedTokenizerBase) -> tuple[Format, str] | None:
    """The format in which a chat template writes, and the system prompt that it adds where none is given ("" for none);
    None where it writes in none of `FORMATS`. The token that opens a text is llama.cpp's to add."""
    from jinja2 import TemplateError

    try:
        texts = [tokenizer.apply_chat_template(of, add_generation_prompt=True, tokenize=False) for of in (TURNS, HELLO)]
    except TemplateError:
        return None
    for known in FORMATS:
        bos = tokenizer.bos_token or ""
        several, one = (text if known.opening == bos else text.removeprefix(bos) for text in texts)
        before = one.removesuffix(known.written(HELLO))
        system = before.removeprefix(f"{known.opening}system{known.between}").removesuffix(known.closing)
        told = [{"role": "system", "content": system}, *HELLO] if before else HELLO
        if (several, one) == (known.written(TURNS), known.written(told)):
            return known, system
    return None


def write_modelfile(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Writes `<folder>.Modelfile` for `ollama create`, of `<folder>.gguf`, asked greedily in the model's chat format."""
    folder, found = Path(folder), format_of(tokenizer)
    lines = [f"FROM ./{folder.name}.gguf", *(f"PARAMETER {name} {value}" for name, value in GREEDY.items())]
    if found:
        known, system = found
        lines += [f'PARAMETER stop "{known.closing.strip()}"', f'TEMPLATE """{known.template}"""']
        lines += [f'SYSTEM """{system}"""'] if system else []
    else:
        lines += [
            f'PARAMETER stop "{tokenizer.eos_token}"',
            f"# The chat template is none of {', '.join(known.name for known in FORMATS)}: Ollama looks for one of its own that is like the template in the GGUF.",
            "# Compare what it sends (OLLAMA_DEBUG=1) with tokenizer.apply_chat_template before you rely on it.",
        ]
    return write_whole(folder.with_name(f"{folder.name}.Modelfile"), "\n".join(lines) + "\n")
