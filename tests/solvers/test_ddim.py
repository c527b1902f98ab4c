import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax import analytic
from tests.helpers import sample

KEY = jax.random.key(0)
NONE = gj.guidance(gj.cfg, omega=0.0)
PROCESSES = {
    "rectified_flow": gj.processes.rectified_flow(),
    "cosine": gj.processes.cosine(),
    "linear_vp": gj.processes.linear_vp(),
    "edm": gj.processes.edm(sigma_max=20.0, rho=3.0),
}


def _run(denoise, process, noise, steps, churn=0.0, key=KEY, **kwargs):
    return sample(
        key,
        denoise,
        process,
        noise,
        **{"times": gj.uniform_times(steps), "solver": gj.ddim(churn), "guidance": NONE, **kwargs},
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_exact_where_the_denoiser_is_constant(name):
    point = jnp.array([[1.5, -2.0]])
    got = _run(lambda x, t, c: jnp.broadcast_to(point, x.shape), PROCESSES[name], 3 * point, 3)
    np.testing.assert_allclose(got, point, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_first_order_on_an_exact_gaussian(x64, name):
    """The flow of N(μ, std²) is x_0 = μ + (x_1 − α_1 μ) std / √(α_1² std² + σ_1²)."""
    process, mean, std = PROCESSES[name], 0.7, 0.4
    denoise = analytic.denoiser(analytic.gaussian(jnp.array([mean]), std), process)
    x = process.sigma(1.0) * jnp.linspace(-2, 2, 5)[:, None]
    alpha, sigma = process.alpha(1.0), process.sigma(1.0)
    exact = mean + (x - alpha * mean) * std / jnp.sqrt(alpha**2 * std**2 + sigma**2)
    errors = [float(jnp.abs(_run(denoise, process, x, n) - exact).max()) for n in (400, 800)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 1, atol=0.06)
    assert errors[-1] < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("omega", [1.0, 2.5, gj.interval(3.0, 0.2, 0.6)])
def test_first_order_under_guidance(x64, omega):
    """Guidance in one mode contracts by `contraction`, and DDIM gets there with order 1."""
    process = gj.processes.rectified_flow()
    model = analytic.stagewise(means=[[1.0]], weights=[1.0], std=0.5)
    denoise, noise = analytic.denoiser(model, process), jnp.array([[-1.0], [1.0]])
    errors = []
    for steps in (400, 800):
        got = _run(
            denoise, process, noise, steps, cond=jnp.zeros(2, int), uncond=model.null,
            guidance=gj.guidance(gj.cfg, omega=omega),
        )  # fmt: skip
        width = float(got[1, 0] - got[0, 0]) / 2
        errors.append(abs(width - analytic.within_mode_std(0.5, omega, gj.uniform_times(steps))))
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 1, atol=0.06)


@pytest.mark.parametrize(("omega", "gain"), [(0.0, 1.0), (0.5, 1.238), (1.0, 1.380), (2.0, 1.5)])
def test_guided_mean_of_one_mode(x64, omega, gain):
    """The mean that the stage-wise analysis has for std = 0.5, its ω being 1 + ω here."""
    process, model = gj.processes.rectified_flow(), analytic.stagewise([[1.0]], [1.0], 0.5)
    got = _run(
        analytic.denoiser(model, process), process, jnp.zeros((1, 1)), 4000,
        cond=jnp.zeros(1, int), uncond=model.null, guidance=gj.guidance(gj.cfg, omega=omega),
    )  # fmt: skip
    np.testing.assert_allclose(got[0, 0], gain, atol=1.5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("churn", [0.0, 0.4, 1.0])
def test_samples_have_the_law_of_the_data(churn):
    process, n, std = gj.processes.cosine(), 40_000, 0.5
    denoise = analytic.denoiser(analytic.gaussian(jnp.array([1.0]), std), process)
    noise = jax.random.normal(jax.random.key(1), (n, 1))
    got = _run(denoise, process, noise, 100, churn)
    # Sampling error at five sigma, and DDIM's own bias of the width, which is O(1/steps).
    assert abs(float(got.mean()) - 1) < 5 * std / n**0.5
    assert abs(float(got.std()) / std - 1) < 5 / (2 * n) ** 0.5 + 0.02


def test_without_churn_no_noise_is_drawn():
    half = lambda x, t, cond: 0.5 * x

    def drawn(churn):
        jaxpr = jax.make_jaxpr(lambda x: _run(half, gj.processes.cosine(), x, 2, churn))(
            jnp.ones((2, 3))
        )
        return "random_bits" in str(jaxpr)

    assert not drawn(0.0)
    assert drawn(0.5)


def test_the_last_step_adds_no_noise():
    got = _run(
        lambda x, t, c: 0 * x + 2.0, gj.processes.rectified_flow(), jnp.ones((4, 3)), 5, churn=1.0
    )
    np.testing.assert_allclose(got, 2.0, rtol=1e-6)


@pytest.mark.slow
def test_churn_is_traced():
    traces = []

    def network(x, t, cond):
        traces.append(0)
        return 0.5 * x

    run = lambda churn: _run(network, gj.processes.cosine(), jnp.ones((2, 3)), 4, churn)
    swept = jax.vmap(run)(jnp.array([0.0, 0.5, 1.0]))
    count = len(traces)
    np.testing.assert_allclose(swept[0], run(0.0), rtol=1e-5)
    np.testing.assert_allclose(swept[1], run(0.5), rtol=1e-5)
    np.testing.assert_allclose(swept[2], run(1.0), rtol=1e-5)
    assert count == 1
    assert len(traces) == 3  # 0 has a program that draws nothing; 0.5 and 1 share one
    assert np.isfinite(jax.grad(lambda churn: run(churn).sum())(0.0))


def test_noise_is_fresh_at_every_step_and_for_every_leaf():
    x = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 3))}
    got = sample(
        KEY, lambda x, t, c: jax.tree.map(jnp.zeros_like, x), gj.processes.rectified_flow(), x,
        times=jnp.array([1.0, 0.6, 0.5]), solver=gj.ddim(1.0),
    )  # fmt: skip
    once = sample(
        KEY, lambda x, t, c: jax.tree.map(jnp.zeros_like, x), gj.processes.rectified_flow(), x,
        times=jnp.array([1.0, 0.6]), solver=gj.ddim(1.0),
    )  # fmt: skip
    assert not np.allclose(got["a"], got["b"])
    assert not np.allclose(got["a"] / once["a"], (got["a"] / once["a"])[0, 0])


@pytest.mark.parametrize("churn", [-0.1, 1.1, float("nan")])
def test_wrong_input(churn):
    with pytest.raises(ValueError, match=r"churn in \[0, 1\]"):
        gj.ddim(churn)
