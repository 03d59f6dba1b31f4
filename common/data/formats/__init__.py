"""Preference data in the formats that people have: one small function each, one result for all of them."""
