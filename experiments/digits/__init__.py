"""Learned against tuned guidance on real handwritten digits: `python -m experiments.digits`."""
