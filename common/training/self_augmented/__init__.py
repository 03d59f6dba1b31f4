"""Preference training on good answers alone: the student makes the rejected ones itself, while it trains."""
