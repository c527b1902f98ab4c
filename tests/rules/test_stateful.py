import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft

import guidejax as gj
from guidejax._guidance import chain, guidance
from guidejax._sampling import sample
from guidejax._times import uniform_times
from guidejax.processes import rectified_flow
from guidejax.rules import adaptive, cached_difference, cfg, higs
from guidejax.weights import Step


def normal(seed, shape=(2, 4, 5, 3)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def pair(degrees):
    """c and u at an angle, one sample each."""
    angle = jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    c = jnp.broadcast_to(jnp.array([1.0, 0.0]), (angle.size, 2))
    return c, jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def test_adaptive_gate_shuts_for_good_sample_by_sample():
    state = adaptive.init(jnp.zeros((3, 2)))
    # cos 25° = 0.906, cos 30° = 0.866.
    run = [(60, 60, 25), (60, 25, 60), (30, 60, 60)]
    guided_on, flags = [], []
    for degrees in run:
        c, u = pair(degrees)
        g, state = adaptive(c, u, 2.0, state, threshold=0.9)
        guided_on.append(np.any(np.asarray(g != c), axis=1).tolist())
        flags.append(state.tolist())
    assert flags == [[False, False, True], [False, True, True], [False, True, True]]
    # The step that shuts the gate is still guided, like `cfg`.
    assert guided_on == [[True, True, True], [True, True, False], [True, False, False]]


def test_adaptive_is_cfg_before_its_gate_and_takes_a_threshold_a_sample():
    c, u = pair((40, 40))
    g, state = adaptive(c, u, 3.0, adaptive.init(c), threshold=jnp.array([0.7, 0.8]))
    np.testing.assert_array_equal(g, cfg(c, u, 3.0))
    assert state.tolist() == [True, False]


@pytest.mark.slow
def test_adaptive_learns_nothing_where_alpha_is_zero():
    """At t = 1 a flow's ε are equal whatever x0: that is no agreement."""
    c, u = pair((90,))
    g = guidance(adaptive, 2.0, threshold=0.9)
    process, t, s = rectified_flow(), jnp.asarray(1.0), jnp.asarray(0.9)
    _, state = g.apply(g.init(c), {"cond": c, "uncond": u}, Step(s, t, None, process, None, c))
    assert not jnp.any(state[0][0])


def test_adaptive_compares_in_its_own_space():
    c, u = pair((40,))
    x, process, t, s = jnp.array([[5.0, 5.0]]), rectified_flow(), jnp.asarray(0.9), jnp.asarray(0.8)
    shut = {}
    for space in (None, "x0"):
        g = guidance(adaptive, 2.0, space=space, threshold=0.9)
        _, state = g.apply(g.init(c), {"cond": c, "uncond": u}, Step(s, t, None, process, None, x))
        shut[space] = bool(state[0][0][0])
    # ε = (x − 0.1 x0)/0.9 is nearly x/0.9 for both; x0 are 40° apart.
    assert shut == {None: True, "x0": False}


def test_cached_difference_is_measured_every_so_many_steps():
    state = cached_difference.init(jnp.zeros((1, 2)))
    taken = []
    for step in range(7):
        c, u = jnp.full((1, 2), 10.0), jnp.full((1, 2), 10.0 - step)
        guided, state = cached_difference(c, u, 1.0, state, every=3)
        taken.append(float(guided[0, 0]) - 10)
    assert taken == [0, 0, 0, 3, 3, 3, 6]


@pytest.mark.usefixtures("x64")
def test_cached_difference_reuses_it_without_the_branch():
    state = cached_difference.init(normal(0))
    with_branch, without = [], []
    for step in range(4):
        c, u = normal(step), normal(step + 10)
        a, next_state = cached_difference(c, u, 2.0, state, every=2)
        b, other = cached_difference(c, None if step % 2 else u, 2.0, state, every=2)
        with_branch.append(a)
        without.append(b)
        chex.assert_trees_all_equal(next_state, other)
        state = next_state
    np.testing.assert_array_equal(jnp.stack(with_branch), jnp.stack(without))
    with pytest.raises(ValueError, match="every ≥ 1, got 0"):
        cached_difference(c, u, 1.0, state, every=0)


@pytest.mark.usefixtures("x64")
def test_cached_difference_every_step_is_cfg():
    state = cached_difference.init(normal(0))
    for step in range(3):
        c, u = normal(step), normal(step + 10)
        guided, state = cached_difference(c, u, 2.0, state, every=1)
        np.testing.assert_array_equal(guided, cfg(c, u, 2.0))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("parallel", [0.0, 1.0])
def test_higs_against_scipy_over_a_run(parallel):
    times = [1.0, 0.95, 0.7, 0.4]
    average, state = np.zeros((2, 4, 5, 3)), higs.init(normal(0))
    u, v = np.arange(4) / 4, np.arange(5) / 5
    mask = 1 / (1 + np.exp(-50 * (np.hypot(u[:, None], v) - 0.05)))[None, :, :, None]
    for step, t in enumerate(times):
        g = normal(step)
        got, state = higs(g, t, state, strength=1.75, parallel=parallel)
        g = np.asarray(g)
        change = g - average
        dots = lambda a, b: np.sum(a * b, axis=(1, 2, 3), keepdims=True)
        if parallel == 0:
            change = change - dots(change, g) / dots(g, g) * g
        spectrum = fft.dctn(change, axes=(1, 2), norm="ortho") * mask
        weight = 1.75 * np.sqrt((t - 0.4) / 0.55) if step and 0.4 < t <= 0.95 else 0
        expected = g + weight * fft.idctn(spectrum, axes=(1, 2), norm="ortho")
        np.testing.assert_allclose(got, expected, atol=1e-12)
        average = 0.75 * g + 0.25 * average
        np.testing.assert_allclose(state.average, average, atol=1e-12)
    assert weight == 0


@pytest.mark.parametrize("rule", [adaptive, cached_difference])
def test_a_run_starts_from_a_fresh_state(rule):
    """Two runs of a sampler in a row, with its state in the scan, are the same run."""
    denoise = lambda x, t, cond: jnp.tanh(x + cond[:, None])
    noise = normal(1, (2, 3)).astype(jnp.float32)

    def run():
        return sample(
            jax.random.key(0),
            gj.denoiser(denoise, gj.processes.rectified_flow()),
            noise,
            times=uniform_times(6),
            cond=jnp.array([1.0, 2.0]),
            uncond=jnp.array([0.0, 0.0]),
            guidance=guidance(chain(rule), 2.0),
        )

    np.testing.assert_array_equal(run(), run())
    plain = sample(
        jax.random.key(0),
        gj.denoiser(denoise, gj.processes.rectified_flow()),
        noise,
        times=uniform_times(6),
        cond=jnp.array([1.0, 2.0]),
        uncond=jnp.array([0.0, 0.0]),
        guidance=guidance(cfg, 2.0),
    )
    assert jnp.max(jnp.abs(plain - run())) > 1e-3
