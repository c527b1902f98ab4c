"""What the property tests draw: samples of every kind and size, each one by itself in its batch.

A batch is several cases at once, for samples are independent; its shape and dtype are among a few,
so that thousands of cases take tens of programs.
"""

import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

BATCH = 4
# The same cases at each run, as many as `--hypothesis-profile` or a test says; programs take long
# to compile and then no time.
EACH = settings(derandomize=True, deadline=None, database=None)

# Powers of ten of the values: as far as the dtype goes with room for the largest ω, 10⁴.
EXPONENTS = {
    "float16": (-6, 0),
    "bfloat16": (-30, 30),
    "float32": (-30, 30),
    "float64": (-30, 30),
}
OMEGAS = (0.0, 1e-30, 0.5, 1.0, 7.5, 100.0, 1e4, -0.3, -1.0, -2.0)
TIMES = (1.0, 1 - 1e-7, 0.9, 0.5, 1e-3, 1e-7)


def of_kind(kind, names, rng, shape):
    base, other = rng.normal(size=(2, *shape))
    which = rng.integers(len(names))
    first = np.arange(base.size).reshape(shape)
    make = {
        "independent": lambda i: rng.normal(size=shape),
        "equal": lambda i: base,
        "opposite": lambda i: base * (-1) ** i,
        "parallel": lambda i: 0.37 * (1 + i) * base,
        "orthogonal": lambda i: np.where(first % 2 == i % 2, base, 0),
        "apart by rounding": lambda i: base * (1 + i * 2e-7),
        "zero": lambda i: 0 * base,
        "one zero": lambda i: 0 * base if i == which else base,
        "constant": lambda i: np.ones(shape),
        "constants": lambda i: np.full(shape, i - 1.0),
        "one element": lambda i: np.where(first == i % base.size, other, 0),
        "of all sizes": lambda i: base * 10.0 ** rng.integers(-6, 1, size=shape),
    }[kind]
    return {name: make(i) for i, name in enumerate(names)}


KINDS = (
    "independent", "equal", "opposite", "parallel", "orthogonal", "apart by rounding", "zero",
    "one zero", "constant", "constants", "one element", "of all sizes",
)  # fmt: skip


def batches(exponents, apart=True, size=BATCH):
    """`size` samples: (kind, power of ten, whether the arrays have powers of their own, seed)."""
    own = st.booleans() if apart else st.just(False)
    one = st.tuples(st.sampled_from(KINDS), st.integers(*exponents), own, st.integers(0, 2**16))
    return st.lists(one, min_size=size, max_size=size).map(lambda drawn: (exponents, drawn))


def arrays(names, batch, shape, dtype):
    """{name: (batch, *shape)} of what `batches` drew."""
    (lowest, highest), samples = batch
    rows = []
    for kind, power, apart, seed in samples:
        rng = np.random.default_rng(seed)
        powers = rng.integers(lowest, highest + 1, len(names)) if apart else [power] * len(names)
        drawn = of_kind(kind, names, rng, shape)
        rows.append({n: drawn[n] * 10.0 ** float(e) for n, e in zip(names, powers, strict=True)})
    most = float(jnp.finfo(dtype).max)
    stacked = {n: np.clip(np.stack([row[n] for row in rows]), -most, most) for n in names}
    return {n: jnp.asarray(v, dtype) for n, v in stacked.items()}


def each(values, size=BATCH):
    """One of `values` for each sample, (batch,)."""
    chosen = st.lists(st.sampled_from(values), min_size=size, max_size=size)
    return chosen.map(lambda chosen: np.asarray(chosen, np.float32))


def pick(choices, seed, size=BATCH):
    """{name: (batch,)} of one of its values for each sample."""
    rng = np.random.default_rng(seed)
    return {name: rng.choice(values, size).astype(np.float32) for name, values in choices.items()}


def per_sample(test, tree, size=BATCH):
    """(batch,) of whether `test` is true anywhere in a sample, over the floating leaves."""
    found = np.zeros(size, bool)
    for leaf in tree:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            found |= test(np.asarray(leaf, np.float64)).reshape(size, -1).any(axis=1)
    return found
