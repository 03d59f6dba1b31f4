"""The rows of the table and the settings that train them."""

from common.methods.existing import (
    EXISTING,
    by_identity,
    check_methods,
    existing,
    existing_commit,
    existing_place,
    existing_strength,
    mixture_in,
)
from common.methods.record import METHODS, Method, is_trained, label_of, sees_scores
from common.methods.settings import RoundSettings, SelfAugmentedSettings, TrainSettings, check_references
from common.methods.table import register

__all__ = [
    "EXISTING",
    "METHODS",
    "Method",
    "RoundSettings",
    "SelfAugmentedSettings",
    "TrainSettings",
    "by_identity",
    "check_methods",
    "check_references",
    "existing",
    "existing_commit",
    "existing_place",
    "existing_strength",
    "is_trained",
    "label_of",
    "mixture_in",
    "register",
    "sees_scores",
]
