"""Exact denoisers of two Gaussian classes: where each objective is least is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guidejax as gj
from guidejax import objectives
from tests.learning.common import EXACT, KEY, PROCESS, TIMES_ONLY, examples, fit

N = 100_000


def pair(s, t):
    return {"s_min": s, "min_gap": t - s, "t_max": t}


@functools.partial(jax.jit, static_argnums=2)
def _losses(objective, omegas, n):
    batch, keys = examples(n), jax.random.split(KEY, n)
    one = lambda w: objective(keys, gj.guidance(gj.cfg, omega=w), EXACT, batch)
    return jax.lax.map(one, omegas)


def losses(objective, omegas, n=N):
    """(omegas, n) losses, all with the same particles."""
    return np.asarray(_losses(objective, jnp.asarray(omegas), n), float)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("s", "t", "churn", "expected"),
    [(0.4, 0.5, 0.0, 2.0), (0.4, 0.5, 1.0, 0.8), (0.3, 0.7, 0.0, 0.225), (0.3, 0.7, 1.0, 0.035)],
)
def test_l2_over_guides(s, t, churn, expected):
    """The l2 optimum of exact denoisers is r11 / (1 − r11) without churn, r22 / (1 − r22) with."""
    r11 = (1 - t) / (1 - s) * s / t
    closed = r11 / (1 - r11) if churn == 0 else r11**2 / (1 - r11**2)
    assert closed == pytest.approx(expected, rel=5e-3)
    # Each loss is a parabola in ω: fit it, and the error of where their sum is least.
    at_0, at_1, at_2 = losses(objectives.l2(churn=churn, **pair(s, t)), [0.0, 1.0, 2.0])
    a = (at_2 - 2 * at_1 + at_0) / 2
    b = at_1 - at_0 - a
    best = -b.mean() / (2 * a.mean())
    error = np.std(b + 2 * best * a) / (2 * a.mean() * np.sqrt(N))
    assert error < 0.02
    assert abs(best - closed) < 3.5 * error


@pytest.mark.slow
@pytest.mark.parametrize("churn", [0.0, 1.0])
@pytest.mark.parametrize(("s", "t"), [(0.4, 0.5), (0.3, 0.7)])
def test_energy_does_not(s, t, churn):
    """With λ = 1 no ω > 0 beats the exact conditional model, of which it costs to leave."""
    objective = objectives.self_consistency(1.0, 2, churn=churn, **pair(s, t))
    none, *some = losses(objective, [0.0, 0.25, 1.0, 2.0], n=N // 4)
    for other in some:
        excess = other - none
        assert excess.mean() > 4 * excess.std() / np.sqrt(len(excess))


def source(size=512):
    for seed in itertools.count():
        batch = examples(size, seed)
        yield {"x0": np.asarray(batch.x0), "cond": np.asarray(batch.cond)}


def learn(objective, steps):
    phi = fit(
        source(), steps, net=TIMES_ONLY, denoise=EXACT, uncond=2, objective=objective,
        steps_per_dispatch=50, optimizer=optax.adam(optax.cosine_decay_schedule(0.05, steps)),
    )  # fmt: skip
    return lambda s, t: np.asarray(TIMES_ONLY.weight(phi)(s, t, process=PROCESS))


@pytest.mark.slow
def test_learned_with_the_energy_distance_an_exact_model_needs_no_guidance():
    omega = learn(objectives.self_consistency(1.0, 4, min_gap=0.1), 150)
    s, t = np.asarray([(s, t) for s in np.arange(0.1, 0.9, 0.1) for t in (s + 0.1, 0.95)]).T
    assert np.all(omega(s, t) < 0.1)  # From 1.


@pytest.mark.slow
def test_learned_with_l2_it_gets_the_closed_form():
    omega = learn(objectives.l2(churn=0.0, **pair(0.4, 0.5)), 150)
    assert omega(0.4, 0.5) == pytest.approx(2.0, abs=0.1)  # From 1.
