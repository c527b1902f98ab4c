"""One runnable experiment a module: `python -m experiments.digits`."""

import os

# Threads that wait for each other by spinning make the small eigenproblems of a Fréchet distance
# many times slower on a busy machine. Before NumPy and JAX are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
