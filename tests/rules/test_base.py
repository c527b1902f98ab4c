"""What calling, binding, renaming and declaring a rule means."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.rules import (
    RULES,
    add_perturbation,
    adg,
    cfg,
    compose,
    make_rule,
    mimic,
    recfg,
    reg,
    rescale,
    stack,
)

LINEAR = [rule for rule in RULES.values() if rule.fn.__module__.endswith("linear")]


@pytest.mark.slow
@pytest.mark.parametrize("rule", LINEAR, ids=lambda rule: rule.name)
def test_a_call_computes_whatever_the_rank(rule):
    """Numbers are predictions of one element; and `vmap` over a batch hands them to the rule."""
    taken = np.random.default_rng(0).normal(size=(len(rule.takes), 3)).astype(np.float32)
    given = [jnp.asarray(row)[:, None] for row in taken]
    if rule.takes[-1] == "omega":
        given[-1] = taken[-1]
    want = rule(*given)[:, 0]
    np.testing.assert_allclose(jax.vmap(rule)(*jnp.asarray(taken)), want, rtol=1e-6)
    one = rule(*taken[:, 1].tolist())
    np.testing.assert_allclose(one, want[1], rtol=1e-6)


def test_others_without_a_reduction_take_numbers_too():
    assert cfg(2.0, 1.0, 3.0) == 5
    assert recfg(2.0, 4.0, 3.0, ratio=0.5) == 2
    assert reg(3.0, 1.0, 4.0, 1.0, 0.5, gj.processes.rectified_flow()) == 7
    assert cfg(2, 1, 0.5) == 2.5  # of integers, a number


@pytest.mark.parametrize(
    ("rule", "args", "kwargs"),
    [
        (rescale, (jnp.ones((1, 2)),) * 3, {}),
        (rescale, (0.7, 5, 6, 7), {}),
        (cfg, (1.0, 2.0, 3.0), {"cond": 1.0}),
        (cfg, (1.0, 2.0), {}),
        (adg, (1.0, 2.0, 3.0), {"angle": 1.0}),
        (compose(and_=("hat",)), (1.0, 2.0, 3.0), {}),
        (compose(and_=("hat",)), (1.0, 2.0, 3.0, 4.0, 5.0), {}),
        (stack("skip"), (1.0, 2.0, 3.0, 4.0), {"hat_omega": 2.0}),
    ],
)
def test_arguments_that_do_not_fit(rule, args, kwargs):
    with pytest.raises(TypeError, match=rule.name):
        rule(*args, **kwargs)


def test_bind():
    assert adg.bind(max_angle=1.0).numbers == {"max_angle": 1.0, "axis": None, "norm_axis": None}
    assert adg.bind().rule is adg
    with pytest.raises(ValueError, match="angle"):
        adg.bind(angle=1.0)


def test_a_number_without_a_default_must_be_bound():
    @lambda fn: make_rule(fn, space="any")
    def pull(cond, uncond, omega, *, strength, share=1.0):
        return cond + omega * strength * share * (cond - uncond)

    assert pull(2.0, 1.0, 1.0, strength=3.0) == 5
    assert pull.bind(strength=3.0).numbers == {"strength": 3.0, "share": 1.0}
    assert gj.guidance(pull, 1.0, strength=3.0).branches == ("cond", "uncond")
    for bind in (pull.bind, lambda: gj.chain(pull), lambda: gj.guidance(pull, 1.0)):
        with pytest.raises(ValueError, match="strength"):
            bind()
    with pytest.raises(TypeError, match="strength"):
        pull(2.0, 1.0, 1.0)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="cfg"):

        @gj.rules.rule(space="any")
        def cfg(cond, uncond, omega):
            return cond

    assert RULES["cfg"] is gj.cfg
    assert make_rule(lambda cond: cond, space="any", name="cfg").name == "cfg"
    assert RULES["cfg"] is gj.cfg


@pytest.mark.parametrize(
    "fn",
    [
        lambda cond, omega, eta=1.0: cond,
        lambda cond, *others: cond,
        lambda cond, **others: cond,
        lambda cond, *, omega: cond,
        lambda cond, /, omega: cond,
        lambda first, second: first,
        lambda cond, state: cond,
    ],
)
def test_signatures_off_the_convention(fn):
    with pytest.raises(ValueError, match="mine"):
        make_rule(fn, space="any", name="mine")


def test_renamed_twice_is_the_same_function():
    g, c, k = 5.0, 2.0, 1.0
    skip = add_perturbation.on(perturbed="skip")
    assert skip is add_perturbation.on(perturbed="skip")
    assert skip.on(skip="other")(g, c, other=k) == skip(g, c, k) == add_perturbation(g, c, k) == 8
    assert set(skip.needs) == {"skip"}
    with pytest.raises(TypeError, match="perturbed"):
        skip(g, c, perturbed=k)


def test_a_rule_shows_its_signature():
    assert list(inspect.signature(mimic).parameters) == [*mimic.takes, *mimic.numbers]


@pytest.mark.parametrize(
    ("rule", "shapes", "kwargs", "message"),
    [
        (cfg, ((8, 1), (8,)), {}, r"uncond has shape \(8,\), and cond \(8, 1\)"),
        (cfg, ((1, 3), (8, 3)), {}, r"uncond has shape \(8, 3\), and cond \(1, 3\)"),
        (gj.apg, ((1, 3), (1, 3)), {"eta": np.ones(8)}, "8 numbers as eta for a batch of 1"),
    ],
)
def test_what_would_make_more_of_it_is_refused(rule, shapes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        rule(*map(jnp.ones, shapes), 2.0, **kwargs)


def test_one_prediction_for_all_is_one():
    assert cfg(jnp.ones((4, 3)), jnp.zeros((1, 3)), 2.0).shape == (4, 3)
    assert cfg(jnp.ones((4, 3)), 0.0, 2.0).shape == (4, 3)


NUMBERS_OF_NORMS = [
    (gj.apg, "max_norm"), (gj.rules.mambo_g, "damping"), (gj.rules.power_law, "power"),
    (gj.rules.beta_cfg, "gamma"), (gj.rules.pmc, "cap"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "name"), NUMBERS_OF_NORMS, ids=[name for _, name in NUMBERS_OF_NORMS]
)
def test_a_number_a_sample_has_any_trailing_axes(rule, name):
    cond, uncond = jax.random.normal(jax.random.key(0), (2, 4, 3, 3, 4))  # As many channels.
    numbers = jnp.linspace(1.0, 1.3, 4)
    want = rule(cond, uncond, 1.0, **{name: numbers})
    got = rule(cond, uncond, 1.0, **{name: numbers[:, None, None, None]})
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (lambda: gj.rules.dynamic_threshold.bind(percentile=0.995), "99.5, not 0.995"),
        (lambda: gj.rules.dynamic_threshold.bind(percentile=995.0), "from 0 to 100"),
        (lambda: mimic.bind(percentile=1.0), "from 0 to 100"),
        (lambda: gj.rules.ep_cfg.bind(lo=0.45, hi=0.55), "from 0 to 100"),
        (lambda: gj.rules.ep_cfg.bind(lo=60.0, hi=50.0), "lo ≤ hi"),
        (lambda: gj.rules.threshold.bind(lo=1.0, hi=-1.0), "lo ≤ hi"),
        (
            lambda: gj.rules.inpaint.bind(known=0.5, mask=np.full((1, 2), 255, np.uint8)),
            "expected 0 to 1",
        ),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_when_they_are_bound(bound, message):
    with pytest.raises(ValueError, match=message):
        bound()


def test_numbers_that_are_not_known_are_not_looked_at():
    g = jnp.array([[-4.0, 1.0, 2.0]])
    clipped = jax.jit(lambda p: gj.rules.dynamic_threshold(g, percentile=p))(50.0)
    np.testing.assert_allclose(clipped, [[-1.0, 0.5, 1.0]])
    schedule = gj.rules.threshold.bind(hi=gj.schedules.linear_ramp(1.0))
    assert schedule.numbers["lo"] == -1


def test_numbers_are_looked_at_when_they_are_bound_and_not_at_every_step():
    looked = []

    def double(cond, *, factor=2.0):
        return factor * cond

    rule = make_rule(double, space="any", check=lambda factor: looked.append(factor))
    guide = gj.guidance(rule, factor=3.0)
    bound = len(looked)
    assert bound
    for _ in range(3):
        np.testing.assert_array_equal(guide.combine({"cond": jnp.ones((2, 3))}), 3)
    assert len(looked) == bound
    rule(jnp.ones((2, 3)), factor=4.0)
    assert looked[bound:] == [4.0]
