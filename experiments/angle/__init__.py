"""Angle domain guidance against its closed forms, docs/angle.md: `python -m experiments.angle`."""
