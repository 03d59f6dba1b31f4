"""Data: prompts, self-critique, counterfactual pairs, files of users."""
