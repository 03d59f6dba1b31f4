"""The trainer of refined DPO, in the place of TRL's DPOTrainer."""

from common import hand_on

__all__, __getattr__ = hand_on(__name__, {"RDPOConfig": "config", "RDPOTrainer": "rdpo"})
