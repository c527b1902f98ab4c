import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from guidejax.processes import cosine, edm, rectified_flow
from guidejax.rules import cfg, feedback, feedback_numbers

NUMBERS = {"pi": 0.9, "temperature": 0.05, "offset": -0.1, "max_omega": 4.0}


def normal(seed, shape=(3, 2, 2, 1)):
    return np.random.default_rng(seed).normal(size=shape)


def steps(process, times):
    """x, c and u at each time: a path that no model made."""
    for i, t in enumerate(times):
        a, s = float(process.alpha(t)), float(process.sigma(t))
        x = a * normal(1) + s * normal(10 + i)
        yield t, x, normal(1) + 0.1 * normal(20 + i), normal(2) + 0.1 * normal(30 + i)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [edm(sigma_max=2.0, rho=1.0), rectified_flow(), cosine()])
def test_the_log_ratio_is_that_of_the_two_posteriors(process):
    """Against SciPy's normal densities of q(x_s | x_t, x̂0), in the process's own units."""
    times, omega = [1.0, 0.8, 0.5, 0.3], 0.5
    lo, hi = np.log(0.1 * 4.5 / 3.5), 3.0
    state = feedback.init(jnp.zeros((3, 2, 2, 1)))
    log_ratio, before = np.zeros(3), None
    for t, x, c, u in steps(process, times):
        if before is not None:
            t0, x0, c0, u0 = before
            at, st, as_, ss = (float(f(v)) for v in (t0, t) for f in (process.alpha, process.sigma))
            r = at * ss / (as_ * st)  # √(SNR_t/SNR_s)
            std = ss * np.sqrt(1 - r**2)

            def density(x0_hat, x=x, x0=x0, ss=ss, st=st, as_=as_, r=r, std=std):
                mean = r * ss / st * x0 + as_ * (1 - r**2) * x0_hat
                return stats.norm.logpdf(x, mean, std).sum((1, 2, 3))

            log_ratio = np.clip(log_ratio + 0.05 * (density(c0) - density(u0)) - 0.1, lo, hi)
        got, state = feedback(
            *(jnp.asarray(v) for v in (c, u)), omega, jnp.asarray(x), t, process, state, **NUMBERS
        )
        np.testing.assert_allclose(state.log_ratio, log_ratio, rtol=1e-9, atol=1e-9)
        scale = np.exp(log_ratio) / (np.exp(log_ratio) - 0.1) + omega
        expected = u + scale[:, None, None, None] * (c - u)
        np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)
        assert np.all(scale <= 5 + 1e-9)
        before = t, x, c, u
    assert np.ptp(log_ratio) > 0.1  # the samples' paths told them apart


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_path_of_the_unconditional_model_is_guided_up_to_the_cap():
    process, times = edm(sigma_max=2.0, rho=1.0), np.linspace(1, 0.05, 30)
    c, u = jnp.full((1, 4), 1.0), jnp.full((1, 4), -1.0)
    numbers = dict(NUMBERS, offset=0.0, temperature=0.5)
    ends = {}
    for name, clean in (("uncond", u), ("cond", c)):
        state = feedback.init(c)
        for i, t in enumerate(times):
            x = clean + process.sigma(t) * normal(i, (1, 4))
            got, state = feedback(c, u, 0.0, x, t, process, state, **numbers)
        ends[name] = float(got[0, 0])
    np.testing.assert_allclose(ends["uncond"], cfg(c, u, 4.0)[0, 0], rtol=1e-6)
    # L at its upper end, 3: λ = e³/(e³ − 0.1).
    np.testing.assert_allclose(ends["cond"], -1 + 2 * np.e**3 / (np.e**3 - 0.1), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_numbers_of_the_authors_grid():
    """By their procedure: δ = log((1−π)λ/(λ−1))/((1−t0)N) at λ = 3; τ = 2σ̃²(t1)|δ|/10."""
    sigma = np.append(
        (80 ** (1 / 7) + np.arange(64) / 63 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0
    )
    numbers = feedback_numbers(
        edm(), (sigma / 80) ** (1 / 7), pi=0.95, guide_from=0.5, guide_to=0.4
    )
    delta = np.log(0.05 * 3 / 2) / (0.5 * 64)
    variance = ((sigma[:-1] ** 2 - sigma[1:] ** 2) * sigma[1:] ** 2 / sigma[:-1] ** 2)[::-1]
    tau = 2 * (0.4 * variance[25] + 0.6 * variance[26]) / 10 * -delta
    np.testing.assert_allclose(numbers["offset"], delta, rtol=1e-9)
    np.testing.assert_allclose(numbers["temperature"], tau, rtol=1e-6)
    np.testing.assert_allclose(feedback.defaults["offset"], delta, rtol=1e-3)
    np.testing.assert_allclose(feedback.defaults["temperature"], tau, rtol=1e-2)


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"pi in \(0, 1\)"):
        feedback_numbers(edm(), jnp.linspace(1, 0, 5), pi=1.0)


@pytest.mark.parametrize("size", [1e-30, 1e15, 1e25])
def test_predictions_whose_squares_are_out_of_range(size):
    """The evidence is, too, and it is held within its ends all the same."""
    process, rng = rectified_flow(), np.random.default_rng(0)
    c, u, x = size * jnp.asarray(rng.normal(size=(3, 4, 6)), jnp.float32)
    state = feedback.init(c)

    def total(temperature, c):
        guided, after = feedback(c, u, 0.0, 0.9 * x, 1e-7, process, state, temperature=temperature)
        return guided.sum() / size, (guided, after)

    for t in (1.0, 0.5, 1e-3):
        _, state = feedback(c, u, 0.0, x, t, process, state)
    slopes, outcome = jax.jit(jax.grad(total, (0, 1), has_aux=True))(0.0035, c)
    for leaf in jax.tree.leaves((slopes, outcome)):
        assert np.all(np.isfinite(leaf))
