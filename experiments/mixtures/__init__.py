"""Learn to Guide (2510.00815) where everything is known: `python -m experiments.mixtures`."""
