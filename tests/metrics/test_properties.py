"""Every metric on sets of every kind and size, by its cases in `test_every_metric`."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from guidejax.metrics import vendi_from_kernel
from tests.cases import EACH, KINDS, of_kind

from .test_every_metric import CASES, by_name

ROWS, COLUMNS = 6, 3


def highest(case):
    """The largest power of ten: where a result is a sixth power of the values, theirs is 6."""
    return 25 if case.degree is not None else 4


@st.composite
def sets(draw, case, highest):
    """Two sets: their rows beside one another, or one set beside the other, is of some kind."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    kind, how = draw(st.sampled_from(KINDS)), draw(st.sampled_from(["rows", "sets", "far"]))
    size = 10.0 ** draw(st.integers(-30, highest))
    if how == "rows":
        rows = of_kind(kind, range(2 * ROWS), rng, (COLUMNS,))
        x, y = np.stack([*rows.values()]).reshape(2, ROWS, COLUMNS)
    else:
        x, y = of_kind(kind, range(2), rng, (ROWS, COLUMNS)).values()
        y = y + 10.0 ** draw(st.integers(-6, 2)) if how == "far" else y
    if case.metric is vendi_from_kernel:  # the test's own cosines are of vectors that aren't 0
        return np.float32(x + (np.abs(x) < 0.1)), np.float32(y)
    return np.float32(x * size), np.float32(y * size)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_finite_and_a_nan_is_seen(case):
    """A degenerate set (all points one point, on a line, 0) has a value too."""
    call = jax.jit(case.call)

    @settings(EACH, max_examples=60)
    @given(both=sets(case, highest(case)))
    def run(both):
        x, y = both
        given = jax.tree.leaves(call(x, y))
        assert all(np.all(np.isfinite(leaf)) for leaf in given)
        broken = x.copy()
        broken[2, 1] = np.nan
        for after, where in zip(jax.tree.leaves(call(broken, y)), case.broken, strict=True):
            np.testing.assert_array_equal(np.isnan(after), np.broadcast_to(where, after.shape))

    run()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_gradients_are_finite(case):
    """Where two points, or all of them, coincide as elsewhere."""

    def loss(x, y):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(case.call(x, y)))

    slope = jax.jit(jax.grad(loss, (0, 1)))

    @settings(EACH, max_examples=30)
    @given(both=sets(case, 4))
    def run(both):
        x, y = (np.where(np.abs(a) < 1e-6, 0, a) for a in both)
        for leaf in slope(x, y):
            assert np.all(np.isfinite(leaf))

    run()
