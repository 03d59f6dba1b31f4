"""Profiles: parameter files of all notebooks, and the code that prepares their data."""
