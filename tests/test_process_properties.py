"""Every process near both ends of time, and the conversions there of predictions of every size."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from guidejax import processes
from guidejax.processes import PREDICTIONS, bridge, from_x0, noise_to, to_x0, x0_per_unit
from tests.cases import BATCH, EACH, EXPONENTS, arrays, batches, each, per_sample

PROCESSES = {
    "rectified_flow": processes.rectified_flow(),
    "cosine": processes.cosine(),
    "linear_vp": processes.linear_vp(),
    "linear_vp steep": processes.linear_vp(1e-6, 200.0),
    "edm": processes.edm(),
    "edm 3": processes.edm(20.0, 3.0),
    "scaled_linear": processes.scaled_linear(),
    "squared_cosine": processes.squared_cosine(),
    "zero_snr": processes.zero_terminal_snr(processes.scaled_linear()),
    "discrete of 3": processes.discrete([0.9, 0.5, 0.0]),
    "shifted": processes.shifted(processes.rectified_flow(), 3.0),
    "shifted back": processes.shifted(processes.cosine(), 0.2),
    "shifted table": processes.shifted(processes.zero_terminal_snr(processes.linear()), 3.0),
}
TIMES = (1.0, 1 - 1e-7, 0.9999, 0.999, 0.75, 0.5, 1 / 3, 0.1, 1e-3, 1e-4, 1e-7, 1e-12, 1e-30, 0.0)
LOG_SNRS = (-1e30, -1e4, -200.0, -90.0, -20.0, -1.0, 0.0, 3.0, 20.0, 90.0, 200.0, 1e4, 1e30)

each_process = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "shifted back"))
     for n in PROCESSES],
)  # fmt: skip


@jax.jit
def everything(process, t, log_snr):
    functions = {name: getattr(process, name) for name in ("alpha", "sigma", "log_snr")}
    functions["inverse"] = process.inverse_log_snr
    at = {**dict.fromkeys(functions, t), "inverse": log_snr}
    values = {name: f(at[name]) for name, f in functions.items()}
    slope = lambda f: jax.vmap(jax.grad(lambda t: f(t).astype(jnp.float32)))
    return values, {name: slope(f)(at[name]) for name, f in functions.items()}


@each_process
@pytest.mark.parametrize(
    "dtype",
    ["float32", *(pytest.param(d, marks=pytest.mark.slow) for d in ("bfloat16", "float64"))],
)
def test_finite_from_one_end_to_the_other(name, dtype):
    """In value and slope; log-SNR is infinite at the ends alone."""
    process = PROCESSES[name]
    with jax.enable_x64(True):
        t, log_snr = jnp.asarray(TIMES, dtype), jnp.asarray(LOG_SNRS, dtype)
        values, slopes = everything(process, t, log_snr)
    values, slopes = (
        {n: np.asarray(v, np.float64) for n, v in found.items()} for found in (values, slopes)
    )
    for what in ("alpha", "sigma"):
        assert np.all(np.isfinite(values[what])), what
        assert np.all(values[what] >= 0), what
        assert np.all(np.isfinite(slopes[what])), what
    assert not np.any(np.isnan(values["log_snr"]))
    assert np.all(np.diff(values["log_snr"][np.isfinite(values["log_snr"])]) >= -1e-5)
    inner = np.isfinite(values["log_snr"])
    assert np.all(np.isfinite(values["log_snr"][inner]))
    assert np.all(np.isfinite(values["inverse"][np.asarray(LOG_SNRS) > -100]))
    assert not np.any(np.isnan(values["inverse"]))
    assert not np.any(np.isnan(slopes["inverse"]))
    assert np.all(values["inverse"] >= 0)


@functools.partial(jax.jit, static_argnums=0)
def converted(name, x, y, t, s):
    process = PROCESSES[name]
    found = {"noise_to": noise_to(process, x, t, y)}
    for kind in PREDICTIONS:
        found[f"to_x0 {kind}"] = to_x0(y, x, t, process, kind)
        found[f"from_x0 {kind}"] = from_x0(y, x, t, process, kind)
        found[f"x0_per_unit {kind}"] = jnp.broadcast_to(x0_per_unit(process, t, kind), t.shape)
    for churn in (0.0, 0.5, 1.0):
        a, b, c = bridge(process, s, t, churn)
        found[f"bridge {churn}"] = jnp.stack([a, b, c], axis=-1)
    return found


@each_process
@pytest.mark.parametrize(
    "dtype",
    ["float32", *(pytest.param(d, marks=pytest.mark.slow) for d in ("bfloat16", "float16"))],
)
def test_conversions_near_the_ends(name, dtype):
    """No NaN wherever σ > 0, finite at an ordinary size and time; NaN stays in its sample."""

    @settings(EACH, max_examples=40)
    @given(
        drawn=batches(EXPONENTS[dtype]), t=each(TIMES), sample=st.integers(0, BATCH - 1),
        broken=st.sampled_from(["x", "y"]),
    )  # fmt: skip
    def run(drawn, t, sample, broken):
        given = arrays(["x", "y"], drawn, (3,), dtype)
        t = jnp.maximum(jnp.asarray(t), 1e-12)
        noisy = np.asarray(PROCESSES[name].sigma(t)) > 0
        found = converted(name, given["x"], given["y"], t, 0.9 * t)
        others = np.arange(BATCH) != sample
        spoiled = {**given, broken: given[broken].at[sample, 1].set(jnp.nan)}
        after = converted(name, spoiled["x"], spoiled["y"], t, 0.9 * t)
        for what, value in found.items():
            nan = per_sample(np.isnan, [value])
            assert not np.any(nan & noisy), what
            if "x0 " in what or what == "noise_to":
                assert value.dtype == jnp.dtype(dtype), what
            one, other = (np.asarray(v, np.float64)[others] for v in (value, after[what]))
            np.testing.assert_array_equal(one, other, err_msg=what)
            if what in ("noise_to", "to_x0 v", "to_x0 velocity", "from_x0 v", "from_x0 eps"):
                assert per_sample(np.isnan, [after[what]])[sample], what

    run()
