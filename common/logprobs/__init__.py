"""Log-probabilities of pairs, with every prompt computed once."""

from common import hand_on

__all__, __getattr__ = hand_on(__name__, {"pair_logprobs": "compute"})
