"""Refined Direct Preference Optimization (rDPO): what the notebooks import. Importing `common` itself loads nothing."""
