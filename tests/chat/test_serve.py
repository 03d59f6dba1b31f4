"""The whole of steps 1 and 2 against `transformers serve` on a tiny folder: `pytest tests/chat/test_serve.py`."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.chat.endpoint import EndpointChat
from common.chat.kept import KeptChat
from common.data.self_critique import generate_pairs
from common.judge.llm import LLMJudge
from common.judge.scoring import score_pairs
from common.miniature.worlds import safety
from common.schema import Sampling

pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn")
pytest.importorskip("uvicorn", reason="transformers serve needs fastapi and uvicorn")


@pytest.fixture
def served(micro, tmp_path):
    """URL of the micro student behind `transformers serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "transformers", "serve", micro, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with open(tmp_path / "server.log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as server:
        for _ in range(600):
            with socket.socket() as probe:
                if server.poll() is not None or probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        assert server.poll() is None, (tmp_path / "server.log").read_text()
        yield f"http://127.0.0.1:{port}/v1"
        server.terminate()


@pytest.mark.slow
def test_generation_and_scoring_through_a_real_server(served, micro, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    chat = EndpointChat(str(micro), served, "", concurrency=2)
    records, sampling = safety.prompts_for("train", 3, 0.25, 0), Sampling(max_new_tokens=48)

    def run():
        kept = KeptChat(chat, tmp_path / "replies.jsonl")
        pairs = generate_pairs(kept, records, safety.PROMPTS, sampling, tmp_path / "pairs.jsonl", failed_limit=1)
        score_pairs(LLMJudge(kept, safety.PROMPTS, max_new_tokens=16), pairs, tmp_path / "scored.jsonl", unscored_limit=1)
        return pairs

    pairs = run()
    failed = tmp_path / "failed_pairs.jsonl"
    assert len(pairs) + (len(failed.read_text().splitlines()) if failed.exists() else 0) == 3
    asked = chat.usage["requests"]
    assert asked >= 3 and chat.usage["prompt_tokens"] > 0 and chat.usage["completion_tokens"] > 0
    assert run() == pairs and chat.usage["requests"] == asked
