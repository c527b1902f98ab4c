"""The transform in swirl-dynamics' protocol: `denoise_fn(x, sigma, cond)` where α = 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.interop.swirl_dynamics import time_of, transform
from tests.interop.common import KEY, NOISE

EDM, FLOW = gj.processes.edm(10.0), gj.processes.rectified_flow()
COND = {"c": jnp.arange(4.0)[:, None]}
INPUTS = {"uncond": {"c": jnp.zeros(1)}}
SIGMAS = np.geomspace(9.0, 0.1, 8).astype(np.float32)


def denoise_fn(x, sigma, cond):
    scale = 1 / (1 + jnp.asarray(sigma) ** 2)
    return scale * x + (1 - scale) * jnp.tanh(x * scale + cond["c"])


def euler(fn, cond=COND):
    """Euler in σ, a scan as theirs is."""

    def step(x, pair):
        x0 = fn(x, pair[0], cond)
        return x0 + pair[1] / pair[0] * (x - x0), None

    pairs = jnp.stack([SIGMAS[:-1], SIGMAS[1:]], axis=1)
    return jax.jit(lambda x: jax.lax.scan(step, x, pairs)[0])(SIGMAS[0] * NOISE)


GUIDES = {
    "cfg": gj.guidance(gj.cfg, omega=2.0),
    "adg": gj.guidance(gj.adg, omega=2.0),
    "interval": gj.guidance(gj.cfg, gj.interval(2.0, lo=0.55, hi=0.8)),
    "of s": gj.guidance(gj.cfg, omega=lambda s, t, cond: 10 * (t - s)),
}


@pytest.mark.parametrize("name", GUIDES)
def test_its_loop_is_sample_on_edm(name):
    made = transform(GUIDES[name], EDM, sigmas=SIGMAS)(denoise_fn, INPUTS)
    denoise = gj.denoiser(
        lambda x, sigma, cond: denoise_fn(x, sigma[:, None], cond), EDM, time="sigma"
    )
    want = gj.sample(
        KEY,
        denoise,
        SIGMAS[0] * NOISE,
        cond=COND,
        uncond={"c": jnp.zeros((1, 1))},
        guidance=GUIDES[name],
        times=time_of(EDM, SIGMAS),
        solver=gj.ddim(),
    )
    np.testing.assert_allclose(euler(made), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_rules_in_eps_see_a_state_of_the_process():
    guide = gj.guidance(gj.adg, omega=1.0, space="eps")
    sigma = jnp.float32(1.5)
    got = transform(guide, FLOW)(denoise_fn, INPUTS)(NOISE, sigma, COND)
    cond, uncond = (denoise_fn(NOISE, sigma, c) for c in (COND, {"c": jnp.zeros((4, 1))}))
    eps = gj.adg((NOISE - cond) / sigma, (NOISE - uncond) / sigma, 1.0)
    np.testing.assert_allclose(got, NOISE - sigma * eps, rtol=1e-4, atol=1e-5)


def test_omega_is_its_guidance_strength():
    x, sigma = 3 * NOISE, jnp.float32(2.0)
    got = transform(gj.guidance(gj.cfg, omega=1.5), EDM)(denoise_fn, INPUTS)(x, sigma, COND)
    cond, uncond = denoise_fn(x, sigma, COND), denoise_fn(x, sigma, {"c": jnp.zeros((4, 1))})
    np.testing.assert_allclose(got, (1 + 1.5) * cond - 1.5 * uncond, rtol=1e-5, atol=1e-5)


def test_a_branch_with_a_denoiser_of_its_own_and_a_key():
    weak = lambda x, sigma, cond: 0.5 * denoise_fn(x, sigma, cond)
    made = transform(gj.guidance(gj.autoguidance, omega=1.0), EDM, denoise_fns={"weak": weak})
    got = made(denoise_fn, {})(NOISE, jnp.float32(2.0), COND)
    np.testing.assert_allclose(got, 1.5 * denoise_fn(NOISE, 2.0, COND), rtol=1e-5, atol=1e-6)
    made = transform(GUIDES["cfg"], EDM, keys={"uncond": "null"})(
        denoise_fn, {"null": INPUTS["uncond"]}
    )
    want = transform(GUIDES["cfg"], EDM)(denoise_fn, INPUTS)(NOISE, 2.0, COND)
    np.testing.assert_array_equal(made(NOISE, 2.0, COND), want)


def test_no_pass_where_omega_is_known_to_be_0():
    calls = []

    def counted(x, sigma, cond):
        calls.append(1)
        return denoise_fn(x, sigma, cond)

    made = transform(GUIDES["interval"], EDM)(counted, INPUTS)
    made(NOISE, 0.1, COND)
    assert len(calls) == 1
    made(NOISE, float(EDM.sigma(0.7)), COND)
    assert len(calls) == 3


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="carries state"):
        transform(gj.guidance(gj.rules.apg_momentum, omega=1.0), EDM)
    with pytest.raises(ValueError, match="expected a process"):
        transform(GUIDES["cfg"], "edm")
    with pytest.raises(ValueError, match="denoise_fns has weak"):
        transform(GUIDES["cfg"], EDM, denoise_fns={"weak": denoise_fn})
    with pytest.raises(ValueError, match=r"guidance_inputs\['uncond'\]"):
        transform(GUIDES["cfg"], EDM)(denoise_fn, {})
