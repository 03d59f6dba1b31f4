"""ReverseGen: a trained proposer of prompts that a target student fails on (arXiv 2410.16736).

The prompts found for a real model are working attacks on it. Keep them below `runs/`, and publish counts in place of
texts.
"""
