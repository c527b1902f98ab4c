import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax._guidance import chain, guidance
from guidejax._sampling import sample
from guidejax.processes import rectified_flow
from guidejax.rules import (
    add_perturbation,
    autoguidance,
    cfg,
    compose,
    compose_and,
    compose_not,
    mixed_autoguidance,
    negative_prompt,
    nested,
    perturbation,
    stack,
    stacked,
    timed_negative,
)
from guidejax.schedules import interval

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def four():
    """Predictions c, u, k, m in double precision."""
    return np.random.default_rng(0).normal(size=(4, 3, 4, 4, 3))


W = np.array([0.3, 1.0, 6.0])  # the papers' scale
OMEGA = W - 1
COLUMN = W[:, None, None, None]


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)


def test_scale_form_of_one_branch(four):
    """u + w (c − u), as every paper but the first writes it."""
    c, u, *_ = map(jnp.asarray, four)
    expected = four[1] + COLUMN * (four[0] - four[1])
    for rule in (cfg, autoguidance, negative_prompt, perturbation):
        close(rule(c, u, OMEGA), expected)


def test_mixed_autoguidance_shares_the_scale_out(four):
    c, u, k, _ = four
    a = 0.3
    w_u, w_k = (1 - a) * (COLUMN - 1) + 1, a * (COLUMN - 1) + 1
    close(
        mixed_autoguidance(*map(jnp.asarray, (c, u, k)), OMEGA, mix=a),
        c + (w_u - 1) * (c - u) + (w_k - 1) * (c - k),
    )
    c, u, k = map(jnp.asarray, (c, u, k))
    close(mixed_autoguidance(c, u, k, OMEGA, mix=0.0), cfg(c, u, OMEGA))
    close(mixed_autoguidance(c, u, k, OMEGA, mix=1.0), autoguidance(c, k, OMEGA))


def test_timed_negative_is_one_or_the_other(four):
    c, u, _, m = map(jnp.asarray, four)
    share = jnp.asarray([0.0, 1.0, 1.0])
    mixed = timed_negative(c, m, u, OMEGA, share=share)
    close(mixed[0], cfg(c, u, OMEGA)[0])
    close(mixed[1:], negative_prompt(c, m, OMEGA)[1:])


def test_composition_is_a_weighted_sum_of_scores(four):
    c, u, o, m = four
    arrays = map(jnp.asarray, (c, o, u))
    expected = u + COLUMN * (c - u) + 0.5 * COLUMN * (o - u)
    close(compose_and(*arrays, OMEGA, other_weight=0.5), expected)
    arrays = map(jnp.asarray, (c, m, u))
    close(compose_not(*arrays, OMEGA), u + COLUMN * (c - m))


def test_composing_a_condition_with_its_negation_is_unconditional(four):
    c, u, *_ = map(jnp.asarray, four)
    close(compose_not(c, c, u, OMEGA), u)


def test_compose_takes_any_number(four):
    c, u, o, m = map(jnp.asarray, four)
    rule = compose(and_=["hat"], not_=["blur"])
    expected = u + COLUMN * ((c - u) + (o - u) - 2 * (m - u))
    close(rule(c, o, m, u, OMEGA, blur_weight=2.0), expected)
    close(compose(and_=["hat"])(c, o, u, OMEGA), compose_and(c, o, u, OMEGA))
    close(compose(not_=["blur"])(c, m, u, OMEGA), compose_not(c, m, u, OMEGA))
    assert rule is compose(and_=("hat",), not_=("blur",))
    assert rule.branches == ("cond", "hat", "blur", "uncond")


def test_nested_is_instruct_pix2pix(four):
    """Their Eq. (3), with c_I alone in the middle."""
    c, u, p, _ = four
    expected = u + 1.5 * (p - u) + COLUMN * (c - p)
    close(nested(*map(jnp.asarray, (c, p, u)), OMEGA), expected)
    close(nested(*map(jnp.asarray, (c, p, u)), 0.0, partial_omega=0.0), c)


def test_stacked_is_a_sum_of_excesses(four):
    c, u, k, m = map(jnp.asarray, four)
    both = stacked(c, u, k, OMEGA, perturbed_omega=2.0)
    close(both - c, (cfg(c, u, OMEGA) - c) + (perturbation(c, k, 2.0) - c))
    close(add_perturbation(cfg(c, u, OMEGA), c, k, perturbed_omega=2.0), both)
    three = stack("skip", "modality")(c, u, k, m, OMEGA, skip_omega=2.0, modality_omega=0.5)
    close(three, both + 0.5 * (c - m))


@pytest.mark.parametrize("factory", [lambda *n: compose(and_=n), stack])
@pytest.mark.parametrize("names", [(), ("cond",), ("a b",), ("hat", "hat"), ("state",)])
def test_bad_names(factory, names):
    with pytest.raises(ValueError, match="branch"):
        factory(*names)


def denoise(x, t, cond):
    return jnp.broadcast_to(cond[:, None], x.shape)


def run(g, times, **kwargs):
    """A network that predicts its condition: DDIM on a rectified flow moves x by hand."""
    return sample(
        jax.random.key(0), gj.denoiser(denoise, rectified_flow()), jnp.zeros((2, 3)),
        times=jnp.asarray(times),
        cond=jnp.asarray([1.0, 2.0]), uncond=jnp.asarray([0.5, 0.5]), guidance=g, **kwargs,
    )  # fmt: skip


def by_hand(x0s, times):
    x = np.zeros(2)
    for x0, t, s in zip(x0s, times[:-1], times[1:], strict=True):
        x = s / t * x + (1 - s / t) * np.asarray(x0)
    return np.repeat(x[:, None], 3, axis=1)


def test_compose_through_sample():
    times = [1.0, 0.5, 0.25]
    g = guidance(compose(and_=["hat"], not_=["blur"]), omega=1.0, blur_weight=0.5)
    x = run(g, times, conditions={"hat": jnp.asarray([3.0, 4.0]), "blur": jnp.asarray([0.0, 1.0])})
    # u + 2 [(c − u) + (hat − u) − (blur − u)/2]: 0.5 + 2 (0.5 + 2.5 + 0.25) and
    # 0.5 + 2 (1.5 + 3.5 − 0.25)
    np.testing.assert_allclose(x, by_hand([[7.0, 10.0]] * 2, times), rtol=1e-12)


def test_stack_through_sample_with_another_network():
    times = [1.0, 0.5, 0.25]
    weaker = lambda x, t, cond: denoise(x, t, cond) / 2
    branches = {"skip": (gj.denoiser(weaker, rectified_flow()), jnp.asarray([1.0, 2.0]))}
    x = run(guidance(stack("skip"), omega=2.0, skip_omega=4.0), times, conditions=branches)
    # c + 2 (c − u) + 4 (c − c/2) = 1 + 1 + 2, 2 + 3 + 4
    np.testing.assert_allclose(x, by_hand([[4.0, 9.0]] * 2, times), rtol=1e-12)
    assert np.array_equal(
        run(guidance(chain(cfg, add_perturbation.bind(perturbed_omega=4.0)), omega=2.0), times,
            conditions={"perturbed": branches["skip"]}),
        x,
    )  # fmt: skip


def test_timed_negative_through_sample():
    times = [1.0, 0.6, 0.3]
    second = interval(1.0, lo=1, hi=1, unit="step")
    g = guidance(timed_negative, omega=2.0, share=second)
    x = run(g, times, conditions={"negative": jnp.asarray([0.0, 0.0])})
    # First step against u, second against m: c + 2 (c − u), then c + 2 (c − 0).
    np.testing.assert_allclose(x, by_hand([[2.0, 5.0], [3.0, 6.0]], times), rtol=1e-12)
