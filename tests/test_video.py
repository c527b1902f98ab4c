"""What video models ask for: several scales of one state, four branches in one step, two networks
over the times, a pass that is used again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj

PROCESS = gj.processes.rectified_flow()
KEY = jax.random.key(0)
TIMES = gj.uniform_times(8)


@pytest.fixture
def noise():
    """A state of two modalities."""
    return {
        "video": jax.random.normal(KEY, (2, 3, 4, 4, 2)),
        "audio": jax.random.normal(jax.random.key(1), (2, 6)),
    }


def network(counts, name, gain):
    """A network that counts its passes, and predicts x̂0 of both parts."""

    def run(x, t, cond):
        jax.debug.callback(lambda: counts.update({name: counts.get(name, 0) + 1}))
        shift = lambda leaf: cond.reshape(-1, *[1] * (leaf.ndim - 1))
        return jax.tree.map(lambda leaf: gain * (0.5 * leaf + shift(leaf)), x)

    return gj.denoiser(run, PROCESS)


def draw(denoise, noise, guide, **options):
    x0 = gj.sample(
        KEY, denoise, noise, cond=jnp.array([1.0, 2.0]), uncond=0.0, guidance=guide, times=TIMES,
        branches="sequential", **options,
    )  # fmt: skip
    jax.effects_barrier()
    return x0


def test_each_modality_has_its_own_scale(noise):
    denoise = network({}, "own", 1.0)
    both = draw(denoise, noise, gj.guidance(gj.cfg, {"video": 3.0, "audio": 1.0}))
    for part, omega in (("video", 3.0), ("audio", 1.0)):
        alone = draw(denoise, noise, gj.guidance(gj.cfg, omega))
        np.testing.assert_allclose(both[part], alone[part], rtol=1e-5)


def test_four_branches_of_one_step(noise):
    """cond, uncond, a perturbed pass and one whose modalities don't see each other."""
    counts = {}
    denoise = network(counts, "own", 1.0)
    conditions = {
        "perturbed": network(counts, "perturbed", 0.9),
        "isolated": network(counts, "isolated", 0.8),
    }
    rule = gj.rules.stack("perturbed", "isolated")
    omega = {"video": 3.0, "audio": 1.0}
    guide = gj.guidance(rule, omega, perturbed_omega=0.5, isolated_omega=0.25)
    found = draw(denoise, noise, guide, conditions=conditions)
    assert counts == {"own": 16, "perturbed": 8, "isolated": 8}

    field = gj.guided(denoise, guide, cond=jnp.array([1.0, 2.0]), uncond=0.0, conditions=conditions)
    x0 = field.x0(noise, 0.5)
    for part, scale in omega.items():
        shift = jnp.array([1.0, 2.0]).reshape(-1, *[1] * (noise[part].ndim - 1))
        half = 0.5 * noise[part]
        c, u, p, i = half + shift, half, 0.9 * (half + shift), 0.8 * (half + shift)
        expected = c + scale * (c - u) + 0.5 * (c - p) + 0.25 * (c - i)
        np.testing.assert_allclose(x0[part], expected, rtol=1e-5)
        assert found[part].shape == noise[part].shape
    # A scale of 0 leaves its pass out.
    counts.clear()
    draw(denoise, noise, gj.guidance(rule, omega, isolated_omega=0.0), conditions=conditions)
    assert counts == {"own": 16, "perturbed": 8}


def test_two_networks_over_the_times_are_one_denoiser(noise):
    """As Wan's pair for high and for low noise, each with a scale of its own."""
    counts = {}
    high, low = network(counts, "high", 1.0), network(counts, "low", 0.5)
    pair = high.then(low, at=0.875)
    scales = gj.interval(3.0, lo=0.875, hi=1.0) + gj.interval(2.0, lo=0.0, hi=0.874)
    draw(pair, noise, gj.guidance(gj.cfg, scales))
    assert counts == {"high": 4, "low": 12}  # t = 1 and 0.875 above, two passes a step.
    cond = jnp.array([1.0, 2.0])
    for t, one in ((1.0, high), (0.875, high), (0.87, low)):
        jax.tree.map(np.testing.assert_array_equal, pair(noise, t, cond), one(noise, t, cond))
    mixed = pair(noise, jnp.array([0.9, 0.1]), cond)
    for part in noise:
        np.testing.assert_array_equal(mixed[part][0], high(noise, 0.9, cond)[part][0])
        np.testing.assert_array_equal(mixed[part][1], low(noise, 0.1, cond)[part][1])


def test_where_the_networks_change_is_traced(noise):
    high, low = network({}, "high", 1.0), network({}, "low", 0.5)
    traces = []

    @jax.jit
    def run(at):
        traces.append(None)
        return high.then(low, at)(noise, 0.5, jnp.array([1.0, 2.0]))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-6), run(0.4), run(0.6))
    assert len(traces) == 1


def test_the_gradient_goes_through_the_network_that_was_asked():
    make = lambda a: gj.denoiser(lambda params, x, t, c: params * x, PROCESS, params=a)
    loss = lambda a, b, t: jnp.sum(make(a).then(make(b), 0.5)(jnp.ones((2, 3)), t, None))
    assert [float(g) for g in jax.grad(loss, (0, 1))(1.0, 2.0, 0.7)] == [6, 0]
    assert [float(g) for g in jax.grad(loss, (0, 1))(1.0, 2.0, jnp.array([0.7, 0.3]))] == [3, 3]


def test_two_networks_of_different_processes_are_refused():
    high = network({}, "high", 1.0)
    other = gj.denoiser(lambda x, t, c: x, gj.processes.cosine())
    with pytest.raises(ValueError, match="of the same process"):
        high.then(other, 0.5)
    with pytest.raises(ValueError, match="of the same process"):
        high.then(lambda x, t, c: x, 0.5)
    high.then(other.on(PROCESS), 0.5)


def test_where_the_noisier_network_says_nothing_of_x0_a_run_is_refused(noise):
    """As for one network: at α = 0 ε has nothing of x0."""
    process = gj.processes.zero_terminal_snr(gj.processes.scaled_linear())
    eps, v = (gj.denoiser(lambda x, t, c: x, process, kind) for kind in ("eps", "v"))
    noise = noise["audio"]
    with pytest.raises(ValueError, match="'eps' says nothing of x0"):
        gj.sample(KEY, eps.then(v, 0.5), noise, times=TIMES)
    assert jnp.all(jnp.isfinite(gj.sample(KEY, v.then(eps, 0.5), noise, times=TIMES)))
    for at in (-0.1, 1.5, jnp.nan, jnp.ones(2)):
        with pytest.raises(ValueError, match=r"a scalar in \[0, 1\]"):
            v.then(eps, at)


def test_the_unconditional_pass_is_used_again(noise):
    counts = {}
    denoise = network(counts, "own", 1.0)
    every = gj.guidance(gj.rules.cached_difference.bind(every=4), 2.0)
    found = draw(denoise, noise, every)
    assert counts["own"] == 8 + 2  # The difference of steps 0 and 4.
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, noise)
