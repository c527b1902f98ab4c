"""Contenders of the sampling benchmark, each run by the Python of its own environment."""
