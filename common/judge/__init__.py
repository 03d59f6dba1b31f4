"""Judges: verdicts in text or numbers, and how far they can be trusted."""

from common import hand_on

__all__, __getattr__ = hand_on(__name__, {"parse_score": "verdict"})
