"""Stage-wise dynamics of guidance, and docs/stagewise.md: `python -m experiments.stages`."""
