"""Methods whose student answers, is judged and trains in turns: iterative DPO and active preference learning."""
