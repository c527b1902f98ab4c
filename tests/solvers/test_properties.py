"""Every solver through `sample`: a few steps of any size, of samples of any size."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import guidejax as gj
from tests.cases import BATCH, EACH, arrays, batches, each, per_sample

from .common import PROCESSES, SOLVERS

OMEGAS = (0.0, 0.5, 7.5, 100.0, -1.0, -2.0)
NEAR = (1.0, 1 - 1e-7, 0.999, 0.9, 0.5, 0.4999999, 0.1, 1e-3, 1e-4, 1e-7)
# Half of x, guided by 100 up to four times in each of three steps, has a place in the dtype.
EXPONENTS = (-25, 12)
ON = {"float32": ["cosine", "edm"], "bfloat16": ["linear_vp"]}


def network(x, t, cond):
    """Bounded beside its input, and of its size; a branch that is 0 is the opposite of another."""
    return jax.tree.map(
        lambda leaf: (
            0.5 * leaf * jnp.reshape(cond, (-1, *[1] * (leaf.ndim - 1))).astype(leaf.dtype)
        ),
        x,
    )


@functools.partial(jax.jit, static_argnums=0)
def sampled(name, keys, process, noise, omega, cond, times):
    return gj.sample(
        keys, gj.denoiser(network, process), noise, cond=cond, uncond=jnp.zeros_like(cond),
        guidance=gj.guidance(gj.cfg, omega=omega), solver=SOLVERS[name](), times=times,
    )  # fmt: skip


def noise_of(drawn, dtype):
    """An image and a text, of shapes of their own."""
    image = arrays(["image"], drawn, (2, 1, 2), dtype)
    return {**image, **arrays(["text"], drawn, (3,), dtype)}


grids = st.tuples(
    st.lists(st.sampled_from(NEAR), min_size=4, max_size=4, unique=True), st.booleans()
).map(
    lambda drawn: jnp.asarray([*sorted(drawn[0], reverse=True)[: 4 - drawn[1]], *[0.0] * drawn[1]])
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "ddim churn")) for n in SOLVERS]
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_finite_and_each_sample_by_itself(name, dtype):
    @settings(EACH, max_examples=24)
    @given(
        drawn=batches(EXPONENTS, apart=False), omega=each(OMEGAS), cond=each((1.0, 0.0)),
        times=grids, process=st.sampled_from(ON[dtype]),
        sample=st.integers(0, BATCH - 1), leaf=st.sampled_from(["image", "text"]),
        seed=st.integers(0, 99),
    )  # fmt: skip
    def run(drawn, omega, cond, times, process, sample, leaf, seed):
        if process == "edm":
            times = jnp.where(times > 0, jnp.maximum(times, jnp.arange(4, 0, -1) / 100), 0)
        noise, keys = noise_of(drawn, dtype), jax.random.split(jax.random.key(seed), BATCH)
        rest = jnp.asarray(omega), jnp.asarray(cond), times
        found = sampled(name, keys, PROCESSES[process], noise, *rest)
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, noise)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
        for part, value in found.items():
            assert np.all(np.isfinite(np.asarray(value, np.float64))), part
        index = (sample, *[0] * (noise[leaf].ndim - 1))
        spoiled = {**noise, leaf: noise[leaf].at[index].set(jnp.nan)}
        broken = sampled(name, keys, PROCESSES[process], spoiled, *rest)
        others = np.arange(BATCH) != sample
        for part, value in found.items():
            one, other = (np.asarray(v, np.float64)[others] for v in (value, broken[part]))
            np.testing.assert_array_equal(one, other)
        assert per_sample(np.isnan, [broken[leaf]])[sample]
        assert not np.any(per_sample(np.isnan, jax.tree.leaves(broken))[others])

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_are_finite(name):
    """In ω and in the noise, through a grid that comes near both ends."""

    def loss(omega, noise, keys, process, times):
        found = sampled(name, keys, process, noise, omega, jnp.ones(BATCH), times)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(found))

    slope = jax.jit(jax.grad(loss, (0, 1)))
    shape = {"image": jnp.zeros((BATCH, 2, 1, 2)), "text": jnp.zeros((BATCH, 3))}

    @settings(EACH, max_examples=12)
    @given(omega=each(OMEGAS[:3]), times=grids)
    def run(omega, times):
        keys = jax.random.split(jax.random.key(0), BATCH)
        for leaf in jax.tree.leaves(slope(omega, shape, keys, PROCESSES["cosine"], times)):
            assert np.all(np.isfinite(leaf))

    run()
