"""Products that a compiler may not contract into a fused multiply-add."""

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import combine


def _draw(seed):
    return np.random.default_rng(seed).normal(size=1000).astype(np.float32)


def test_combine_is_numpy_bit_for_bit():
    x, y, z = (_draw(seed)[:, None] for seed in range(3))
    c = _draw(3)
    run = jax.jit(lambda *args: combine((args[0], 0.3, -2.0), *args[1:]))
    want = c[:, None] * x + np.float32(0.3) * y + np.float32(-2.0) * z
    np.testing.assert_array_equal(run(c, x, y, z), want)


def test_combine_keeps_the_first_dtype_and_sums_in_float32():
    x, y = (jnp.asarray(_draw(seed)[:, None], jnp.bfloat16) for seed in range(2))
    got = combine((2.0, 0.1), {"a": x}, {"a": y})["a"]
    want = 2 * np.asarray(x, np.float32) + np.float32(0.1) * np.asarray(y, np.float32)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.asarray(want, jnp.bfloat16))
