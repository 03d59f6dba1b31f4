"""Pair doctor: faults, label noise and a recommended method for a file of pairs, before a model is loaded."""

from common import hand_on

__all__, __getattr__ = hand_on(
    __name__,
    {"examine": "diagnosis", "noted_beside": "noise", "short_table": "report", "verdict": "report", "rows_of": "rows"},
)
