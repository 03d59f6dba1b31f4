"""Fixtures shared by the suite: a tiny pre-trained student, scored pairs, and a plain TRL-format dataset."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402
import torch  # noqa: E402

from common.data.self_critique import generate_pairs  # noqa: E402
from common.judge.llm import LLMJudge
from common.judge.scoring import score_pairs  # noqa: E402
from common.miniature.actors import MiniatureJudge, MiniatureTeacher  # noqa: E402
from common.miniature.lab import miniature_student  # noqa: E402
from common.miniature.language_model import MICRO, Recipe  # noqa: E402
from common.miniature.worlds import safety  # noqa: E402
from common.runtime import quiet_libraries  # noqa: E402
from common.schema import Sampling  # noqa: E402

quiet_libraries()


@pytest.fixture(scope="session")
def micro():
    """Folder of the micro student: seconds to make, real in every respect but its answers."""
    return miniature_student(safety, MICRO)


@pytest.fixture(scope="session")
def miniature():
    """Folder of the full miniature student: about a minute to make, then cached."""
    return miniature_student(safety, Recipe())


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """32 scored safety pairs of the miniature teacher and judge, unscored ones included."""
    folder = tmp_path_factory.mktemp("pairs")
    records = safety.prompts_for("train", 32, benign_share=0.25, seed=0)
    made = generate_pairs(MiniatureTeacher(safety), records, safety.PROMPTS, Sampling(), folder / "pairs.jsonl")
    judge = LLMJudge(MiniatureJudge(safety, safety.PROMPTS, unclear=0.05), safety.PROMPTS)
    return score_pairs(judge, made, folder / "scored.jsonl", unscored_limit=0.5)


@pytest.fixture
def load_micro(micro):
    """Loads a fresh micro student in NF4 with float32 compute, the setting of every equality below."""
    from common.student.load import load_student

    return lambda **kwargs: load_student(micro, compute_dtype=torch.float32, **kwargs)
