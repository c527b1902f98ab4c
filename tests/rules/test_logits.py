import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidejax.rules import logits_cfg

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def pair():
    """Logits, (batch, length, vocabulary)."""
    return tuple(np.random.default_rng(0).normal(size=(2, 3, 5, 7)) * 3)


OMEGA = np.array([0.0, 0.5, 4.0])


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_powers_of_probabilities(pair):
    """p ∝ p_c^w p_u^(1 − w)."""
    p_c, p_u = map(softmax, pair)
    w = (OMEGA + 1)[:, None, None]
    expected = p_c**w * p_u ** (1 - w)
    expected = expected / expected.sum(-1, keepdims=True)
    guided = logits_cfg(*map(jnp.asarray, pair), OMEGA)
    np.testing.assert_allclose(jnp.exp(guided), expected, rtol=1e-11)
    np.testing.assert_allclose(jnp.exp(guided).sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(guided[0], jax.nn.log_softmax(pair[0][0]), rtol=1e-12)


def test_by_hand():
    c, u = jnp.log(jnp.asarray([[0.5, 0.3, 0.2]])), jnp.log(jnp.asarray([[0.25, 0.5, 0.25]]))
    # ω = 1: c²/u = 1, 0.18, 0.16, over their sum 1.34.
    expected = np.array([[1, 0.18, 0.16]]) / 1.34
    np.testing.assert_allclose(jnp.exp(logits_cfg(c, u, 1.0)), expected, rtol=1e-12)


def test_a_constant_on_the_logits_says_nothing(pair):
    c, u = map(jnp.asarray, pair)
    np.testing.assert_allclose(
        logits_cfg(c + 5.0, u - 300.0, OMEGA), logits_cfg(c, u, OMEGA), rtol=1e-10, atol=1e-10
    )


def test_masked_tokens_stay_masked(pair):
    c, u = map(jnp.asarray, pair)
    c = c.at[..., 2].set(-jnp.inf)
    guided = logits_cfg(c, u.at[..., 2].set(-jnp.inf), OMEGA)
    kept = np.array([0, 1, 3, 4, 5, 6])
    np.testing.assert_allclose(
        guided[..., kept], logits_cfg(c[..., kept], u[..., kept], OMEGA), rtol=1e-12,
        atol=1e-15,  # The logarithm of nearly 1: a GPU adds up in another order.
    )  # fmt: skip
    assert np.all(np.isneginf(guided[..., 2]))
    # Masked in `cond` alone: the same tokens stay out, all is still a distribution.
    alone = logits_cfg(c, u, OMEGA)
    assert np.all(np.isneginf(alone[..., 2]))
    np.testing.assert_allclose(jnp.exp(alone).sum(-1), 1, rtol=1e-12)


def test_masked_in_uncond_alone_keeps_cond():
    c, u = jnp.log(jnp.asarray([[0.5, 0.5]])), jnp.asarray([[0.0, -jnp.inf]])
    # log ratio 0.5/1 for the first token, none for the second: 0.5 · 0.5, 0.5 at ω = 1.
    np.testing.assert_allclose(jnp.exp(logits_cfg(c, u, 1.0)), [[1 / 3, 2 / 3]], rtol=1e-12)


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
def gradient(c, u, omega):
    guided = logits_cfg(c, u, omega)
    return jnp.sum(jnp.where(jnp.isneginf(guided), 0, guided).astype(jnp.float32)), guided


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("masked", [[1], [0, 1, 2, 3]], ids=["one", "all"])
@pytest.mark.parametrize("where", ["cond", "uncond", "both"])
def test_no_nan_in_value_or_gradient(dtype, masked, where):
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4)), dtype)
    mask = logits.at[:, :2, jnp.asarray(masked)].set(-jnp.inf)
    c = mask if where != "uncond" else logits
    u = mask - 1 if where != "cond" else logits - 1

    grads, guided = gradient(c, u, jnp.ones(2))
    assert not np.any(np.isnan(np.asarray(guided, np.float32)))
    np.testing.assert_array_equal(jnp.isneginf(guided), jnp.isneginf(c))
    assert all(np.all(np.isfinite(np.asarray(g, np.float32))) for g in grads)


def test_vocabulary_on_another_axis(pair):
    c, u = map(jnp.asarray, pair)
    moved = logits_cfg(c.swapaxes(1, 2), u.swapaxes(1, 2), OMEGA, axis=1)
    np.testing.assert_allclose(moved.swapaxes(1, 2), logits_cfg(c, u, OMEGA), rtol=1e-12)


def test_large_logits_are_normalised():
    """Their rounding is large too, and the peak must be among them to the last bit."""
    c, u = 1e22 * np.random.default_rng(0).normal(size=(2, 64, 5)).astype(np.float32)
    found = np.asarray(jax.jit(logits_cfg)(c, u, 100.0))
    np.testing.assert_array_equal(np.max(found, axis=1), 0)
    slopes = jax.jit(jax.grad(lambda *a: logits_cfg(*a).max(), (0, 1, 2)))(c, u, 100.0)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)
