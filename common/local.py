"""The paper's three steps at home: a teacher behind a server, and a student that this machine trains.

    rdpo local http://127.0.0.1:8080/v1 --student runs/models/SmolLM2-135M-Instruct --short

The server is any that speaks OpenAI's protocol: llama.cpp, vLLM, Ollama, a provider. It is asked which model it serves.
Everything is below `runs/local`, that of `--short` below `runs/local-short`, and goes on where it was stopped: no reply
is asked for twice, and no training is done twice. Run on several evenings, it is the same run.
"""

from __future__ import annotations

import json
import os
import sys
from urllib.error import URLError
from urllib.request import Request, urlopen

from common import batch
from common.chat.endpoint import A_KEY
from common.command import CommandParser
from common.notebook.providers import Provider
from common.runtime import escape_what_the_terminal_lacks, nearest, resolve
from common.storage import write_whole

STUDENT = "runs/models/SmolLM2-135M-Instruct"


def served(url: str, key: str = "") -> list[str]:
    """The models that a server names at `/models`. Raises ValueError where it does not answer, or names none."""
    if key and not A_KEY.fullmatch(key):
        raise ValueError("the key holds spaces or line breaks, which no key has; put the bare key into the variable")
    request = Request(f"{url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urlopen(request, timeout=15) as reply:
            names = [model["id"] for model in json.load(reply)["data"]]
    except (URLError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{url} does not say which models it serves ({error}); start the server, and give the address that ends in /v1"
        ) from None
    if not names:
        raise ValueError(f"{url} serves no model; load one")
    return names


def teacher_at(url: str, wanted: str = "", key: str = "") -> str:
    """The model that is asked: the wanted one, or the only one. Raises ValueError where it is not served, or nobody
    said which of several."""
    names = served(url, key)
    if wanted and wanted not in names:
        raise ValueError(f"{url} does not serve {wanted!r}{nearest(wanted, names)}; it serves {', '.join(names[:8])}")
    if not wanted and len(names) > 1:
        raise ValueError(f"{url} serves {len(names)} models; say which with --teacher: {', '.join(names[:8])}")
    return wanted or names[0]


def parser() -> CommandParser:
    """The arguments of `rdpo local`."""
    command = CommandParser("local", __doc__)
    command.add_argument("url", help="of the teacher's server, up to and including /v1")
    command.add_argument("--student", default=STUDENT, help=f"folder or Hub name of a chat model; default: {STUDENT}")
    command.add_argument("--teacher", default="", help="name of the model there; default: the only one")
    command.add_argument(
        "--key-from", default="", metavar="VARIABLE", help="environment variable with the key; default: no key"
    )
    command.add_argument("--experiment", action="append", help="default: all three")
    command.add_argument("--short", action="store_true", help="twelve prompts and one method through the same code")
    command.add_argument("--at-a-time", type=int, default=4, metavar="N", help="requests at once; default: 4")
    command.add_argument(
        "--to", default="", metavar="NAME", help="folder below runs/; default: local, or local-short with --short"
    )
    command.add_argument("--dry-run", action="store_true", help="say what would run and what it takes")
    return command


def main(arguments: list[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    escape_what_the_terminal_lacks()
    try:
        where = {"base_url": asked.url, "api_key_env": asked.key_from, "concurrency": asked.at_a_time}
        Provider(**where)
        model = teacher_at(asked.url, asked.teacher, os.environ.get(asked.key_from, "").strip())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"teacher {model} at {asked.url}, student {asked.student}", flush=True)
    name = asked.to or ("local-short" if asked.short else "local")
    providers = f"runs/{name}/providers.yaml"
    write_whole(resolve(providers), json.dumps({"teacher": where}) + "\n")
    given = {
        "teacher": f"endpoint:teacher/{model}", "respond_with": f"local:{asked.student}", "student": asked.student, "providers": providers
    }  # fmt: skip
    options = [part for pair in given.items() for part in ("-p", *pair)]
    options += [part for name in asked.experiment or () for part in ("--experiment", name)]
    options += ["-f", "short"] if asked.short else []
    options += ["--dry-run"] if asked.dry_run else []
    return batch.main(["local", "--to", name, *options])


if __name__ == "__main__":
    sys.exit(main())
