"""What teacher and judge are asked, per experiment, as data. Our own words throughout: the paper's prompts can be put in
their place with a YAML file of the same fields (`ExperimentPrompts.from_yaml`)."""

from common.prompts.form import ExperimentPrompts, JudgePrompt, fill, opening_turns
from common.prompts.texts import PROMPTS, ROLEPLAY, SAFETY, SYCOPHANCY, VERSIONS

__all__ = [
    "PROMPTS",
    "ROLEPLAY",
    "SAFETY",
    "SYCOPHANCY",
    "VERSIONS",
    "ExperimentPrompts",
    "JudgePrompt",
    "fill",
    "opening_turns",
]
