"""One runnable experiment a module: `python -m experiments.digits`."""
