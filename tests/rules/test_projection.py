import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax._arrays import project
from guidejax._guidance import chain, guidance
from guidejax._sampling import sample
from guidejax.processes import rectified_flow
from guidejax.rules import apg, apg_momentum, cfg, cfg_zero, perp_neg, tcfg, zero_init
from guidejax.schedules import interval

OMEGA = np.array([0.0, 0.7, 6.0])
COLUMN = OMEGA[:, None, None, None]

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def three():
    return np.random.default_rng(0).normal(size=(3, 3, 4, 4, 3))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def inner(a, b):
    return np.sum(np.asarray(a) * np.asarray(b), axis=(1, 2, 3), keepdims=True)


def numpy_apg_update(delta, c, eta, max_norm):
    delta = delta * np.minimum(1, max_norm / np.sqrt(inner(delta, delta)))
    unit = c / np.sqrt(inner(c, c))
    along = inner(delta, unit) * unit
    return delta - along + eta * along


@pytest.mark.slow
@pytest.mark.parametrize("max_norm", [2.0, np.inf])
@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_apg_forms(three, eta, max_norm):
    c, u, _ = three
    update = numpy_apg_update(c - u, c, eta, max_norm)
    starts = {"paper": (c, COLUMN), "diffusers": (u, COLUMN + 1), "comfy": (c, COLUMN + 1)}
    for form, (start, scale) in starts.items():
        guided = apg(jnp.asarray(c), jnp.asarray(u), OMEGA, eta=eta, max_norm=max_norm, form=form)
        close(guided[1:], (start + scale * update)[1:])
        np.testing.assert_array_equal(guided[0], c[0])  # off at ω = 0


def test_apg_that_keeps_everything_is_cfg(three):
    c, u, _ = map(jnp.asarray, three)
    close(apg(c, u, OMEGA, eta=1.0), cfg(c, u, OMEGA))
    close(apg(c, u, OMEGA, eta=1.0, form="diffusers"), cfg(c, u, OMEGA))
    # ComfyUI's is a unit of guidance above.
    close(apg(c, u, OMEGA, eta=1.0, form="comfy")[1:], cfg(c, u, OMEGA + 1)[1:])


def test_apg_update_is_orthogonal_and_capped(three):
    c, u, _ = map(jnp.asarray, three)
    assert np.max(np.abs(inner(apg(c, u, 3.0) - c, c))) < 1e-12
    update = apg(c, u, 3.0, eta=1.0, max_norm=0.5) - c
    close(np.sqrt(inner(update, update)), np.full((3, 1, 1, 1), 3 * 0.5))
    np.testing.assert_array_equal(apg(c, u, 3.0, max_norm=1e6), apg(c, u, 3.0, max_norm=None))


def test_apg_without_a_cap_has_a_gradient_in_it():
    c, u = jnp.ones((1, 3)), jnp.asarray([[0.0, 1.0, 2.0]])
    loss = lambda c, r: jnp.sum(apg(c, u, 2.0, max_norm=r) ** 2)
    slope = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for cap in (jnp.inf, 1.0):
        assert all(np.all(np.isfinite(g)) for g in slope(c, jnp.asarray(cap)))


def test_unknown_form():
    with pytest.raises(ValueError, match="unknown form 'other'"):
        apg(jnp.ones((1, 2)), jnp.ones((1, 2)), 1.0, form="other")


def test_momentum_is_the_running_sum():
    rng = np.random.default_rng(1)
    pairs = rng.normal(size=(4, 2, 3, 4, 4, 3))
    running, state = 0.0, apg_momentum.init(jnp.asarray(pairs[0, 0]))
    for c, u in pairs:
        running = (c - u) - 0.75 * running
        expected = c + COLUMN * numpy_apg_update(running, c, 0.1, 2.5)
        guided, state = apg_momentum(
            jnp.asarray(c), jnp.asarray(u), OMEGA, state, momentum=-0.75, eta=0.1, max_norm=2.5
        )
        close(guided, expected)
        close(state, running)  # before the cap


def test_no_momentum_is_apg(three):
    c, u, other = map(jnp.asarray, three)
    guided, _ = apg_momentum(c, u, OMEGA, other, momentum=0.0, max_norm=2.0)
    close(guided, apg(c, u, OMEGA, max_norm=2.0))


def test_momentum_starts_afresh_in_each_run():
    times = jnp.asarray([1.0, 0.6, 0.3])
    denoise = lambda x, t, cond: jnp.tanh(x + cond[:, None])
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5)))
    arguments = {"times": times, "cond": jnp.asarray([1.0, -1.0]), "uncond": jnp.zeros(2)}
    run = lambda rule, **numbers: sample(
        jax.random.key(0),
        gj.denoiser(denoise, rectified_flow()),
        noise,
        guidance=guidance(rule, 4.0, **numbers),
        **arguments,
    )
    first = run(apg_momentum, momentum=-0.5)
    np.testing.assert_array_equal(first, run(apg_momentum, momentum=-0.5))
    assert not np.allclose(first, run(apg))
    close(run(apg_momentum, momentum=0.0), run(apg))


def test_tcfg_is_the_singular_value_decomposition(three):
    c, u, _ = three
    guided = tcfg(jnp.asarray(c), jnp.asarray(u), OMEGA)
    for i, omega in enumerate(OMEGA):
        first = np.linalg.svd(np.stack([u[i].ravel(), c[i].ravel()]))[2][0]
        damped = (u[i].ravel() @ first) * first
        expected = damped + (omega + 1) * (c[i].ravel() - damped)
        np.testing.assert_allclose(guided[i].ravel(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_tcfg_near_its_degenerate_cases(scale):
    """Nearly equal, opposite, and of very unlike norms: the SVD again, at any scale."""
    rng = np.random.default_rng(3)
    u, other = rng.normal(size=(2, 48)) * scale
    for c in (u + 1e-6 * other, -u + 1e-3 * other, 1e-4 * other, 1e4 * other):
        first = np.linalg.svd(np.stack([u, c]))[2][0]
        expected = 3 * c - 2 * (u @ first) * first
        guided = tcfg(jnp.asarray(c)[None], jnp.asarray(u)[None], 2.0)[0]
        assert np.linalg.norm(guided - expected) < 1e-9 * np.linalg.norm(expected)


def test_tcfg_without_a_first_singular_vector_is_cfg():
    c, u = jnp.asarray([[0.0, 2.0]]), jnp.asarray([[2.0, 0.0]])
    np.testing.assert_array_equal(tcfg(c, u, 1.5), cfg(c, u, 1.5))
    np.testing.assert_array_equal(tcfg(0 * c, 0 * u, 1.5), 0 * c)


def test_cfg_zero_is_the_papers(three):
    c, u, _ = three
    s = inner(c, u) / inner(u, u)
    guided = cfg_zero(jnp.asarray(c), jnp.asarray(u), OMEGA)
    close(guided, s * u + (COLUMN + 1) * (c - s * u))
    # What guides is orthogonal to u: no other scale leaves less of c.
    assert np.max(np.abs(inner(cfg_zero(jnp.asarray(c), jnp.asarray(u), 1.0) - c, u))) < 1e-12


def test_zero_init_stands_still_first():
    times = [0.9, 0.7, 0.4]
    noise = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])
    denoise = lambda x, t, cond: jnp.broadcast_to(cond[:, None], x.shape)
    cond = jnp.asarray([1.0, 2.0])

    def run(first, times, omega=2.0):
        share = interval(1.0, lo=0, hi=first - 1, unit="step") if first else 0.0
        g = guidance(chain(cfg_zero, zero_init.bind(share=share)), omega=omega)
        return sample(
            jax.random.key(0), gj.denoiser(denoise, rectified_flow()), noise,
            times=jnp.asarray(times), cond=cond, uncond=0 * cond, guidance=g,
        )  # fmt: skip

    for omega in (0.0, 2.0):  # with the unconditional pass and without
        np.testing.assert_allclose(run(2, times, omega), noise, rtol=1e-14)
    # One step at rest, then as if begun at 0.7 from the same x.
    close(run(1, times), run(0, times[1:]))
    assert not np.allclose(run(0, times), run(1, times))


def test_zero_init_in_part():
    guided = zero_init(jnp.full((2, 3), 4.0), share=jnp.asarray([0.25, 1.0]))
    np.testing.assert_array_equal(guided, [[3.0] * 3, [0.0] * 3])


def test_perp_neg_removes_what_is_orthogonal_to_delta(three):
    c, u, m = three
    beta = 1.5
    guided = np.asarray(perp_neg(*map(jnp.asarray, (c, m, u)), OMEGA, negative_weight=beta))
    delta, away = c - u, m - u
    perpendicular = away - inner(away, delta) / inner(delta, delta) * delta
    close(guided, u + (COLUMN + 1) * (delta - beta * perpendicular))
    removed = (guided - u) / (COLUMN + 1) - delta
    assert np.max(np.abs(inner(removed, delta))) < 1e-12


def test_perp_neg_can_not_undo_the_positive_prompt(three):
    """A negative prompt along δ does nothing at all."""
    c, u, _ = map(jnp.asarray, three)
    close(perp_neg(c, u + 3 * (c - u), u, OMEGA), cfg(c, u, OMEGA))
    close(perp_neg(c, 2 * c, u, OMEGA, negative_weight=0.0), cfg(c, u, OMEGA))


@pytest.mark.slow
def test_perp_neg_takes_each_sample_by_itself(three):
    c, u, m = map(jnp.asarray, three)
    whole = perp_neg(c, m, u, 2.0)
    close(whole[:1], perp_neg(c[:1], m[:1], u[:1], 2.0))


@pytest.mark.slow
def test_project():
    a, onto = jnp.asarray([[3.0, 1.0], [1.0, 1.0]]), jnp.asarray([[2.0, 0.0], [0.0, 0.0]])
    assert project(a, onto).tolist() == [[3.0, 0.0], [0.0, 0.0]]
