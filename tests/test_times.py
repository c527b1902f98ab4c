import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj


@pytest.mark.slow
@pytest.mark.parametrize(
    "process",
    [
        gj.processes.rectified_flow(),
        gj.processes.cosine(),
        gj.processes.linear_vp(),
        gj.processes.edm(80.0, 7.0),
        gj.processes.edm(90.0),
    ],
)
def test_karras_times_have_the_sigmas_of_the_paper(process):
    times = gj.karras_times(process, 10)
    i = np.arange(10) / 9
    want = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigma = process.sigma(jnp.asarray(times[:-1])) / process.alpha(jnp.asarray(times[:-1]))
    np.testing.assert_allclose(sigma, want, rtol=2e-3)
    assert times[-1] == 0
    assert times.dtype == jnp.result_type(float)
    assert isinstance(jax.jit(lambda: gj.karras_times(process, 10) is not None)(), jax.Array)


def test_karras_times_of_one_step():
    assert gj.karras_times(gj.processes.edm(80.0), 1).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "kwargs",
    [{"steps": 0}, {"sigma_min": 0.0}, {"sigma_min": 3.0, "sigma_max": 2.0}, {"rho": 0.0}],
)
def test_wrong_karras_times(kwargs):
    with pytest.raises(ValueError, match="expected steps ≥ 1"):
        gj.karras_times(gj.processes.cosine(), **{"steps": 3, **kwargs})


class _Own(gj.processes.Process):
    """α = 1, σ = 20 t, whose inverse is found by bisection."""

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return 20.0 * jnp.asarray(t)


@pytest.mark.parametrize("process", [gj.processes.edm(20.0), gj.processes.scaled_linear(), _Own()])
def test_more_noise_than_the_process_has(process):
    with pytest.raises(ValueError, match="more noise over signal"):
        gj.karras_times(process, 4)
    most = float(process.sigma(1.0) / process.alpha(1.0))
    assert gj.karras_times(process, 4, sigma_max=most)[0] == pytest.approx(1)
