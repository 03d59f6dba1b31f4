"""Evaluate students: answers, verdicts, metrics, results."""
