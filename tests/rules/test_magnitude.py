import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import guidejax as gj
from guidejax.rules import beta_cfg, cfg, mambo_g, pmc, power_law


def normal(seed, shape=(3, 20)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def length(x):
    return np.linalg.norm(np.asarray(x), axis=1)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("rule", "numbers"),
    [(mambo_g, {"damping": 0.0}), (power_law, {"power": 0.0}), (beta_cfg, {"gamma": 0.0})],
)
def test_is_cfg_with_its_number_at_zero(rule, numbers):
    c, u = normal(0), normal(1)
    np.testing.assert_allclose(rule(c, u, 3.0, **numbers), cfg(c, u, 3.0), rtol=1e-12)
    np.testing.assert_array_equal(rule(c, c, 3.0, **numbers), c)


@pytest.mark.usefixtures("x64")
def test_mambo_g_scale_falls_with_the_difference():
    c, u = normal(2), normal(3)
    scales = [
        length(mambo_g(u + k * (c - u), u, 9.0) - u) / length(k * (c - u)) for k in (1e-6, 0.1, 5)
    ]
    ratio = length(c - u) / length(u)
    np.testing.assert_allclose(scales[0], 10, rtol=1e-3)
    np.testing.assert_allclose(scales[1], 1 + 9 * np.exp(-8 * 0.1 * ratio), rtol=1e-12)
    np.testing.assert_allclose(scales[2], 1, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_power_law_is_homogeneous_of_degree_one_more():
    c, u = normal(4), normal(5)
    shift = lambda k: power_law(k * c, k * u, 2.0, power=0.9) - k * c
    np.testing.assert_allclose(shift(3.0), 3**1.9 * shift(1.0), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_beta_cfg_steps_are_as_long_as_the_scale():
    c, u = normal(6), normal(7)
    for k in (0.01, 1, 100):
        np.testing.assert_allclose(length(beta_cfg(u + k * (c - u), u, 6.5) - u), 7.5, rtol=1e-9)
    half = beta_cfg(c, u, 6.5, gamma=0.5)
    np.testing.assert_allclose(length(half - u), 7.5 * length(c - u) ** 0.5, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cap", [1.0, 1.05, 2.0])
def test_pmc_stops_where_a_root_finder_says(cap):
    # Differences forward, across and backward along c.
    for seed, bend in ((8, 2.0), (9, 0.0), (10, -2.0)):
        c, noise = normal(seed), normal(seed + 20)
        u = c - noise - bend * c
        got = pmc(c, u, 50.0, cap=cap)
        np.testing.assert_allclose(length(got), cap * length(c), rtol=1e-9)
        for i in range(3):
            ci, di = np.asarray(c[i]), np.asarray(c[i] - u[i])
            over = lambda b, ci=ci, di=di: np.linalg.norm(ci + b * di) - cap * np.linalg.norm(ci)
            # The far root: from the minimum of the parabola outwards.
            start = max(-ci @ di / (di @ di), 0)
            beta = optimize.brentq(over, start, start + 100) if over(start) < 0 else start
            np.testing.assert_allclose(got[i], ci + beta * di, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_pmc_is_cfg_under_its_cap():
    c, u = normal(11), normal(12)
    np.testing.assert_array_equal(pmc(c, u, 0.3, cap=100.0), cfg(c, u, 0.3))
    np.testing.assert_array_equal(pmc(c, u, -0.5), cfg(c, u, -0.5))


def test_power_law_is_finite_in_the_scores_of_a_whole_run():
    """σ = 10⁻¹⁵ at the end of EDM's grid in equal steps: a score of 10³⁰ to the power 1.9."""
    denoise = gj.denoiser(lambda x, t, cond: 0 * x + cond[:, None], gj.processes.edm())
    x = gj.sample(
        jax.random.key(0), denoise, jnp.full((1, 4), 80.0), cond=jnp.ones(1), uncond=jnp.zeros(1),
        guidance=gj.guidance(power_law, 0.1), times=gj.uniform_times(256),
    )  # fmt: skip
    assert np.all(np.isfinite(x))
    # Below the limit nothing is held.
    c = jnp.full((1, 4), 1e10)
    np.testing.assert_allclose(power_law(c, 0 * c, 1.0, power=1.0) / 1e20, 2.0, rtol=1e-5)
