import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.processes import bridge, cosine, edm, linear_vp, rectified_flow
from guidejax.schedules import cfgpp, cfgpp_omega


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("process", [rectified_flow(), cosine(), linear_vp(), edm()])
@pytest.mark.parametrize("s", [0.6, 0.0])
def test_cfgpp_step_is_a_ddim_step(process, s):
    t, lam = 0.7, 0.6
    rng = np.random.default_rng(0)
    x, c, u = (jnp.asarray(rng.normal(size=(2, 6))) for _ in range(3))
    a, sigma = process.alpha(t), process.sigma(t)
    step = process.alpha(s) * (u + lam * (c - u)) + process.sigma(s) * (x - a * u) / sigma
    keep, take, _ = bridge(process, s, t, 0.0)
    ddim = keep * x + take * gj.cfg(c, u, cfgpp_omega(process, s, t, lam))
    np.testing.assert_allclose(ddim, step, rtol=1e-9, atol=1e-12)


def test_on_a_grid():
    times = jnp.array([0.9, 0.5, 0.0])
    weight = cfgpp(0.6)
    # λ/(1 − (0.1·0.5)/(0.5·0.9)) − 1 = 0.6 · 9/8 − 1, and λ − 1.
    table = weight.table(times, process=rectified_flow())
    np.testing.assert_allclose(table, [-0.325, -0.4], rtol=1e-5)
    assert gj.guidance(gj.cfg, weight).active(times, rectified_flow()).all()


def test_lambda_is_a_share():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        cfgpp(6.5)
