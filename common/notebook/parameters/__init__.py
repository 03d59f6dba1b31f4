"""The parameters of each stage, and how their values are taken and checked."""

from common.notebook.parameters.checked import RENAMED, Checked
from common.notebook.parameters.stages import (
    INPUTS,
    MINIATURES,
    PARAMETERS,
    FromPairs,
    GenerateData,
    RewardScore,
    Stage,
    TrainRDPO,
    check_scale,
    input_of,
    judge_named,
    parameters,
)

__all__ = [
    "Checked",
    "FromPairs",
    "GenerateData",
    "INPUTS",
    "MINIATURES",
    "PARAMETERS",
    "RENAMED",
    "RewardScore",
    "Stage",
    "TrainRDPO",
    "check_scale",
    "input_of",
    "judge_named",
    "parameters",
]
