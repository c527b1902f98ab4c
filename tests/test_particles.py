import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidejax.particles import effective_sample_size, fkc_log_weight, systematic_resample
from guidejax.processes import cosine, edm, rectified_flow
from guidejax.rules import cfg


def _gaussian(mean, variance):
    """x̂0(x, σ) of N(mean, variance) in EDM."""
    return lambda x, sigma: (variance * x + sigma**2 * mean) / (variance + sigma**2)


@pytest.mark.slow
@pytest.mark.parametrize("resample", [False, True])
def test_weighted_particles_sample_the_product(resample):
    """c = N(1, ½), u = N(0, 1), ω = 1: p_c²/p_u is N(4/3, 1/3) exactly, which CFG alone misses."""
    omega, particles, steps = 1.0, 4000, 150
    process = edm(sigma_max=10.0, rho=3.0)
    cond, uncond = _gaussian(1.0, 0.5), _gaussian(0.0, 1.0)
    times = jnp.linspace(1, 0, steps + 1)
    key = jax.random.key(1)
    # At σ = 10 the product is itself a Gaussian.
    precision = 2 / (0.5 + 100) - 1 / (1 + 100)
    mean = 2 / (0.5 + 100) / precision
    x = mean + jax.random.normal(jax.random.fold_in(key, steps), (particles, 1)) / precision**0.5

    def step(carry, i):
        x, log_weights = carry
        t, s = times[i], times[i + 1]
        sigma, less = process.sigma(t), process.sigma(s)
        c, u = cond(x, sigma), uncond(x, sigma)
        log_weights = log_weights + fkc_log_weight(c, u, omega, process, s, t)
        noise, drawn = jax.random.split(jax.random.fold_in(key, i))
        shrink = sigma**2 - less**2
        x = x + shrink * (cfg(c, u, omega) - x) / sigma**2
        x = x + jnp.sqrt(shrink) * jax.random.normal(noise, x.shape)
        low = resample & (effective_sample_size(log_weights) < 0.9 * particles)
        x = jnp.where(low, x[systematic_resample(drawn, log_weights)], x)
        return (x, jnp.where(low, 0, log_weights)), low

    (x, log_weights), resampled = jax.lax.scan(step, (x, jnp.zeros(particles)), jnp.arange(steps))
    weights = jax.nn.softmax(log_weights)
    mean = jnp.sum(weights * x[:, 0])
    variance = jnp.sum(weights * (x[:, 0] - mean) ** 2)
    np.testing.assert_allclose([mean, variance], [4 / 3, 1 / 3], atol=0.05)
    if resample:
        assert 1 <= jnp.sum(resampled) < steps / 4
    else:
        assert abs(jnp.mean(x) - 4 / 3) > 0.1  # the weights are what does it


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [rectified_flow(), cosine()])
def test_log_weight_is_edms_in_x_over_alpha(process):
    t, s = 0.7, 0.5
    rng = np.random.default_rng(2)
    c, u = (jnp.asarray(rng.normal(size=(3, 4))) for _ in range(2))
    st, ss = (float(process.sigma(v) / process.alpha(v)) for v in (t, s))
    expected = 0.5 * 2.5 * 3.5 * (st**2 - ss**2) * np.sum((c - u) ** 2, axis=1) / st**4
    np.testing.assert_allclose(fkc_log_weight(c, u, 2.5, process, s, t), expected, rtol=1e-9)
    # No guidance, no weight; nor at the unconditional model, nor from pure noise.
    for omega, time in ((0.0, t), (-1.0, t), (2.5, 1.0)):
        np.testing.assert_allclose(fkc_log_weight(c, u, omega, process, s, time), 0, atol=1e-30)


@pytest.mark.slow
def test_effective_sample_size_at_its_ends():
    np.testing.assert_allclose(effective_sample_size(jnp.full((2, 7), 300.0)), [7, 7], rtol=1e-4)
    one = jnp.full(7, -jnp.inf).at[3].set(-1000.0)
    np.testing.assert_allclose(effective_sample_size(one), 1, rtol=1e-5)


@pytest.mark.slow
def test_systematic_resampling_is_unbiased_and_as_even_as_can_be():
    rng = np.random.default_rng(3)
    log_weights = jnp.asarray(rng.normal(size=37) * 2, jnp.float32).at[5].set(-jnp.inf)
    expected = 37 * np.asarray(jax.nn.softmax(log_weights))
    keys = jax.random.split(jax.random.key(4), 2000)
    ancestors = jax.vmap(systematic_resample, (0, None))(keys, log_weights)
    children = jax.vmap(lambda a: jnp.bincount(a, length=37))(ancestors)
    assert np.all(children >= np.floor(expected - 1e-3))
    assert np.all(children <= np.ceil(expected + 1e-3))
    np.testing.assert_allclose(np.mean(children, axis=0), expected, atol=0.06)
    assert np.all(np.sum(children, axis=1) == 37)


def test_equal_weights_keep_everyone():
    np.testing.assert_array_equal(
        systematic_resample(jax.random.key(5), jnp.full(100, -3.0)), jnp.arange(100)
    )


def test_groups_of_weights_are_no_one_group():
    groups = jnp.log(jnp.array([[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]]))
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        systematic_resample(jax.random.key(0), groups)
