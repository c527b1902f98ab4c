import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax._guidance import guidance
from guidejax._sampling import sample
from guidejax._times import uniform_times
from guidejax.processes import cosine, linear_vp, rectified_flow
from guidejax.rules import cfg, input_gradient, recfg, recfg_table, reg


def normal(seed, shape=(2, 5)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [rectified_flow(), cosine(), linear_vp()])
def test_reg_is_the_papers_formula_in_eps(process):
    """ε_c + ω (1 − σ ∇(1ᵀε_c)) ⊙ (ε_c − ε_u), written with ε throughout."""
    t, x, mix = 0.6, normal(0), normal(1, (5, 5))
    a, s = process.alpha(t), process.sigma(t)
    denoise = gj.denoiser(lambda x, t, cond: jnp.tanh(x @ mix + cond[:, None]), process)
    cond, null = jnp.array([1.0, -2.0]), jnp.zeros(2)
    eps = lambda x, cond: (x - a * denoise(x, t, cond)) / s
    slope = jax.grad(lambda x: jnp.sum(eps(x, cond)))(x)
    guided_eps = eps(x, cond) + 3 * (1 - s * slope) * (eps(x, cond) - eps(x, null))
    gradient = input_gradient(denoise)(x, t, cond)
    got = reg(denoise(x, t, cond), denoise(x, t, null), 3.0, gradient, t, process)
    np.testing.assert_allclose((x - a * got) / s, guided_eps, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_input_gradient_of_an_elementwise_network_is_its_diagonal():
    x, cond = normal(2), jnp.array([0.5, 2.0])
    denoise = gj.denoiser(lambda x, t, cond: jnp.sin(cond[:, None] * x), rectified_flow())
    got = input_gradient(denoise)(x, 0.5, cond)
    np.testing.assert_allclose(got, cond[:, None] * jnp.cos(cond[:, None] * x), rtol=1e-12)


def test_reg_through_the_sampler():
    """The gradient comes in as a branch with a network of its own."""
    process, times = rectified_flow(), jnp.array([0.9, 0.5])
    denoise = gj.denoiser(lambda x, t, cond: jnp.tanh(x + cond[:, None]), process)
    noise, labels, null = normal(3).astype(jnp.float32), jnp.array([1.0, -1.0]), jnp.zeros(2)
    got = sample(
        jax.random.key(0), denoise, noise, times=times, cond=labels, uncond=null,
        guidance=guidance(reg, 2.0), conditions={"gradient": (input_gradient(denoise), labels)},
    )  # fmt: skip
    c, u = denoise(noise, 0.9, labels), denoise(noise, 0.9, null)
    x0 = c + 2 * 0.1 * (1 - c**2) * (c - u)
    expected = noise * 0.5 / 0.9 + (0.5 - 0.1 * 0.5 / 0.9) * x0
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_recfg_doesnt_shift_the_expectation():
    c, u = 1 + normal(4, (1000, 3)), 2 + normal(5, (1000, 3))
    table = recfg_table(jnp.array([0.5]), c[None], u[None])
    guided = recfg(c, u, 6.0, ratio=table(s=0.4, t=0.5))
    np.testing.assert_allclose(jnp.mean(guided, axis=0), jnp.mean(c, axis=0), rtol=1e-9)
    assert jnp.max(jnp.abs(jnp.mean(cfg(c, u, 6.0) - c, axis=0))) > 1


@pytest.mark.usefixtures("x64")
def test_the_codes_estimator_is_a_regression_through_the_origin():
    c, u = normal(6, (1, 50, 2)), normal(7, (1, 50, 2))
    table = recfg_table(jnp.array([0.5]), c, u, estimator="code")(s=0.4, t=0.5)
    fits = [np.linalg.lstsq(u[0, :, [k]].T, c[0, :, k], rcond=None)[0][0] for k in range(2)]
    np.testing.assert_allclose(table, [fits], rtol=1e-9)


def test_the_table_answers_with_the_nearest_time():
    c, u = jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1), jnp.ones((3, 1, 1))
    table = recfg_table(jnp.array([0.9, 0.5, 0.1]), c, u)
    np.testing.assert_array_equal(table(s=0.0, t=0.6), [[2.0]])
    np.testing.assert_array_equal(table(s=jnp.zeros(2), t=jnp.array([0.95, 0.2])), [[1.0], [3.0]])
    # Nothing to divide by: plain guidance.
    np.testing.assert_array_equal(recfg_table(jnp.array([0.5]), c[:1], 0 * u[:1])(0.4, 0.5), [[1]])


def test_recfg_takes_its_table_through_the_sampler():
    denoise = lambda x, t, cond: jnp.tanh(x + cond[:, None])
    noise = normal(8).astype(jnp.float32)
    times = uniform_times(4, start=0.95)

    def run(ratio):
        return sample(
            jax.random.key(0), gj.denoiser(denoise, gj.processes.rectified_flow()), noise,
            times=times, cond=jnp.array([1.0, 2.0]), uncond=jnp.zeros(2),
            guidance=guidance(recfg, 2.0, ratio=ratio),
        )  # fmt: skip

    ones = jnp.ones((4, 1, 5))
    np.testing.assert_allclose(run(recfg_table(times[:-1], ones, ones)), run(1.0), rtol=1e-6)
    half = run(recfg_table(times[:-1], ones, 2 * ones))
    np.testing.assert_allclose(half, run(0.5), rtol=1e-6)
    assert jnp.max(jnp.abs(half - run(1.0))) > 1e-2


def test_a_table_needs_pairs():
    with pytest.raises(ValueError, match="of one shape"):
        recfg_table(jnp.array([0.5]), jnp.ones((1, 4, 2)), jnp.ones((1, 3, 2)))
    with pytest.raises(ValueError, match="unknown estimator 'mean'"):
        recfg_table(jnp.array([0.5]), jnp.ones((1, 4, 2)), jnp.ones((1, 4, 2)), estimator="mean")


@pytest.mark.parametrize("space", [None, "eps", "v"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "velocity"])
def test_the_gradient_is_of_x0_whatever_the_predictions_are(prediction, space):
    process, t = rectified_flow(), 0.5
    x, c, u, gradient = jax.random.normal(jax.random.key(0), (4, 2, 3))
    want = reg(c, u, 2.0, gradient, t, process)
    as_said = lambda x0: gj.processes.from_x0(x0, x, t, process, prediction)
    predictions = {"cond": as_said(c), "uncond": as_said(u), "gradient": gradient}
    found = guidance(reg, 2.0, space=space).combine(
        predictions, x=x, t=t, process=process, prediction=prediction
    )
    np.testing.assert_allclose(
        gj.processes.to_x0(found, x, t, process, prediction), want, rtol=1e-4, atol=1e-5
    )
