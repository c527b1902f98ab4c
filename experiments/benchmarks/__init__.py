"""Benchmarks: python -m experiments.benchmarks.sampling."""
