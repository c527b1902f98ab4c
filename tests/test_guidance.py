import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.processes import from_x0, to_x0
from guidejax.rules import RULES, make_rule
from guidejax.weights import Step

pytestmark = pytest.mark.optimized

SPACES = ("x0", "eps", "v", "velocity", "score")
PROCESS = gj.processes.rectified_flow()
T, S = np.array([0.8, 0.4]), np.array([0.6, 0.1])
TIMES = gj.uniform_times(4)


def _branches(shape=(2, 3, 2), dtype=None):
    keys = jax.random.split(jax.random.key(0), 3)
    x, cond, uncond = (
        jax.random.normal(key, shape, dtype or jnp.result_type(float)) for key in keys
    )
    return x, {"cond": cond, "uncond": uncond}


def _apply(guidance, x, branches, cond=None, process=PROCESS, t=T, s=S):
    """One step of a guidance by hand."""
    step = Step(jnp.asarray(s), jnp.asarray(t), cond, process, x=x)
    return guidance.apply(guidance.init(x), branches, step)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "process",
    [
        gj.processes.rectified_flow(),
        gj.processes.cosine(),
        gj.processes.linear_vp(),
        gj.processes.edm(),
    ],
)
@pytest.mark.parametrize("space", SPACES)
def test_cfg_is_the_same_in_every_space(x64, space, process):
    x, branches = _branches()
    want = branches["cond"] + 3 * (branches["cond"] - branches["uncond"])
    got = _apply(gj.guidance(gj.cfg, omega=3.0, space=space), x, branches, process=process)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_a_nonlinear_rule_works_in_the_space_it_is_told(x64, space):
    x, branches = _branches()
    there = {name: from_x0(v, x, T, PROCESS, space) for name, v in branches.items()}
    want = to_x0(gj.adg(there["cond"], there["uncond"], 2.0), x, T, PROCESS, space)
    got = _apply(gj.guidance(gj.adg, omega=2.0, space=space), x, branches)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    native = _apply(gj.guidance(gj.adg, omega=2.0), x, branches)
    assert np.allclose(got, native) == (space == "x0")


@pytest.mark.slow
@pytest.mark.parametrize("space", [None, *SPACES])
@pytest.mark.parametrize("rule", [gj.cfg, gj.adg])
def test_omega_zero_is_the_conditional_model_bit_for_bit(rule, space):
    x, branches = _branches()
    for omega in (0.0, jnp.array([0.0, 2.0])):
        got = _apply(gj.guidance(rule, omega=omega, space=space), x, branches)
        np.testing.assert_array_equal(got[0], branches["cond"][0])
    assert not np.allclose(got[1], branches["cond"][1])


@pytest.mark.slow
@pytest.mark.parametrize("space", ["eps", "score"])
def test_where_alpha_is_zero_a_noise_rule_falls_back_on_the_conditional(space):
    x, branches = _branches()
    guidance = gj.guidance(gj.adg, omega=2.0, space=space)
    got = _apply(guidance, x, branches, t=jnp.ones(2))
    np.testing.assert_array_equal(got, branches["cond"])


@pytest.mark.slow
def test_omega_of_each_sample():
    x, branches = _branches()
    got = _apply(gj.guidance(gj.adg, omega=jnp.array([0.3, 0.6])), x, branches)
    for i, omega in enumerate((0.3, 0.6)):
        want = _apply(gj.guidance(gj.adg, omega=omega), x, branches)
        np.testing.assert_allclose(got[i], want[i], rtol=1e-6)


def test_a_weight_of_the_condition():
    x, branches = _branches()
    guidance = gj.guidance(gj.cfg, omega=lambda s, t, cond: cond * t)
    got = _apply(guidance, x, branches, cond=jnp.array([1.0, 2.0]))
    omega = jnp.array([0.8, 0.8])[:, None, None]
    want = branches["cond"] + omega * (branches["cond"] - branches["uncond"])
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_numbers_may_be_weights():
    x, branches = _branches()
    cap = gj.interval(1.0, lo=0.5, hi=1.0)  # of the two samples' times only 0.8 is inside
    got = _apply(gj.guidance(gj.adg, omega=2.0, max_angle=cap), x, branches)
    np.testing.assert_allclose(got[0], gj.adg(*branches.values(), 2.0, max_angle=1.0)[0], rtol=1e-6)
    np.testing.assert_array_equal(got[1], branches["cond"][1])


def test_any_function_is_a_rule():
    x, branches = _branches()
    got = _apply(gj.guidance(lambda cond, uncond, omega: uncond, omega=1.0), x, branches)
    np.testing.assert_array_equal(got, branches["uncond"])


def test_chain_refines():
    @lambda fn: make_rule(fn, space="x0")
    def shrink(guided, cond, *, by=0.5):
        return by * guided + (1 - by) * cond

    x, branches = _branches()
    c, u = branches.values()
    chained = gj.guidance(gj.chain(gj.cfg, shrink.bind(by=0.25)), omega=2.0)
    assert chained.branches == ("cond", "uncond")
    np.testing.assert_allclose(_apply(chained, x, branches), c + 0.25 * 2 * (c - u), rtol=1e-5)
    # Numbers given to `guidance` are the first rule's.
    capped = gj.guidance(gj.chain(gj.adg, shrink.bind(by=1.0)), omega=2.0, max_angle=0.1)
    want = gj.adg(c, u, 2.0, max_angle=0.1)
    np.testing.assert_allclose(_apply(capped, x, branches), want, rtol=1e-5)


def test_chained_numbers_may_be_schedules():
    """As `chain(adg, rescale(0.7))`, with a weight wherever a number stands."""
    x, branches = _branches()
    c, u = branches.values()
    omega = np.array([1.5, 0.5])
    schedule = lambda s, t, cond: cond * t  # 0.8 · 0.5 and 0.4 · 1.5
    chained = gj.chain(
        gj.adg.bind(max_angle=lambda s, t, cond: t - s + 0.1), gj.rescale.bind(phi=schedule)
    )
    got = _apply(gj.guidance(chained, omega=omega), x, branches, cond=jnp.array([0.5, 1.5]))
    turned = gj.adg(c, u, omega, max_angle=T - S + 0.1)
    c_v, g_v = (from_x0(value, x, T, PROCESS, "v") for value in (c, turned))
    want = to_x0(gj.rescale(c_v, g_v, phi=T * np.array([0.5, 1.5])), x, T, PROCESS, "v")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_any_number_of_any_rule_may_be_a_schedule(rule):
    """The declaration decides which numbers are traced; each takes a function of (s, t, c)."""
    numbers = {
        name: value
        for name, value in rule.defaults.items()
        if name not in rule.static and isinstance(value, float)
    }
    numbers |= {name: 1.0 for name in rule.numbers if name not in rule.defaults}
    bound = rule.bind(**{n: lambda s, t, cond, v=v: v + 0 * t for n, v in numbers.items()})
    chained = gj.chain(gj.cfg, bound) if rule.refines else gj.chain(bound)
    times = jnp.asarray(TIMES)
    rows = gj.guidance(chained, omega=lambda s, t, cond: t).rows(times, None, PROCESS)
    assert set(rows[1][-1]) >= set(numbers)
    x = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)

    def step(x):
        g = gj.guidance(chained, omega=lambda s, t, cond: t)
        return g.apply(g.init(x), dict.fromkeys(g.branches, x), Step(S, T, None, PROCESS, None, x))[
            0
        ]

    assert jax.eval_shape(step, x).shape == x.shape


def test_one_rule_twice_on_branches_of_two_names():
    x, branches = _branches()
    c, u = branches.values()
    skip, blur = 0.5 * u, u - 1
    again = gj.rules.add_perturbation.on(perturbed="skip")
    assert again is gj.rules.add_perturbation.on(perturbed="skip")
    assert (again.name, again.branches) == ("add_perturbation", ("cond", "skip"))
    chained = gj.chain(
        gj.cfg, gj.rules.add_perturbation.bind(perturbed_omega=0.5), again.bind(perturbed_omega=2.0)
    )
    guidance = gj.guidance(chained, omega=1.0)
    assert guidance.branches == ("cond", "uncond", "perturbed", "skip")
    got = _apply(guidance, x, {**branches, "perturbed": blur, "skip": skip})
    want = c + (c - u) + 0.5 * (c - blur) + 2.0 * (c - skip)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    # By hand, by position and by name.
    np.testing.assert_array_equal(again(c, c, skip), again(guided=c, cond=c, skip=skip))


def test_a_rule_with_state_and_a_space_under_other_names():
    x, branches = _branches()
    renamed = gj.rules.apg_momentum.on(uncond="null")
    assert renamed.init is gj.rules.apg_momentum.init
    guided = _apply(gj.guidance(renamed, omega=2.0, eta=0.3), x, {
        "cond": branches["cond"], "null": branches["uncond"]
    })  # fmt: skip
    want = _apply(gj.guidance(gj.rules.apg_momentum, omega=2.0, eta=0.3), x, branches)
    np.testing.assert_array_equal(guided, want)


def test_state_is_carried_by_leaf_and_rule():
    def count(cond, uncond, omega, state):
        return cond + state * omega, state + 1

    stateful = make_rule(count, space="x0", init=lambda x: jnp.zeros(x.shape[0]).reshape(-1, 1))
    guidance = gj.guidance(stateful, omega=1.0)
    x = {"a": jnp.ones((2, 1)), "b": jnp.ones((2, 3))}
    branches = {"cond": jax.tree.map(jnp.zeros_like, x), "uncond": x}
    state, at = guidance.init(x), Step(S, T, None, PROCESS, None, x)
    for step in range(3):
        x0, state = guidance.apply(state, branches, at)
        np.testing.assert_array_equal(x0["b"], np.full((2, 3), step))
    # A step that makes no unconditional pass leaves the state alone.
    _, after = guidance.apply(state, {"cond": branches["cond"]}, at)
    assert float(after[0][0][0, 0]) == 3


def test_mask():
    x, branches = _branches()
    mask = jnp.array([1.0, 0.0])
    got = _apply(gj.guidance(gj.cfg, omega=2.0, mask=mask), x, branches)
    want = _apply(gj.guidance(gj.cfg, omega=2.0), x, branches)
    np.testing.assert_allclose(got[..., 0], want[..., 0], rtol=1e-6)
    np.testing.assert_array_equal(got[..., 1], branches["cond"][..., 1])


def test_a_mask_leaves_learned_variance_channels_alone():
    """DiT: the output is (ε, variance) on twice the channels, and guidance is for ε."""
    x, branches = _branches((2, 3, 4))
    mask = jnp.array([1.0, 1.0, 0.0, 0.0])
    got = _apply(gj.guidance(gj.cfg, omega=2.0, mask=mask, space="eps"), x, branches)
    half = lambda v: v[..., :2]
    want = _apply(
        gj.guidance(gj.cfg, omega=2.0, space="eps"),
        half(x),
        {name: half(v) for name, v in branches.items()},
    )
    np.testing.assert_allclose(half(got), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[..., 2:], branches["cond"][..., 2:])


def test_a_mask_over_space_and_a_soft_one():
    x, branches = _branches()
    c, u = branches.values()
    mask = jnp.array([0.0, 0.25, 1.0])[:, None]  # (3, 1) of (batch, 3, 2)
    got = _apply(gj.guidance(gj.cfg, omega=2.0, mask=mask), x, branches)
    np.testing.assert_allclose(got, c + mask * 2 * (c - u), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[:, 0], c[:, 0])


def test_pytree_of_states_with_a_mask_each():
    x, branches = _branches()
    pair = lambda v: {"image": v, "text": v[:, :, 0]}
    mask = {"image": jnp.ones(()), "text": jnp.zeros(())}
    guidance = gj.guidance(gj.cfg, omega=2.0, mask=mask)
    got = _apply(guidance, pair(x), {name: pair(v) for name, v in branches.items()})
    want = _apply(gj.guidance(gj.cfg, omega=2.0), x, branches)
    np.testing.assert_allclose(got["image"], want, rtol=1e-6)
    np.testing.assert_array_equal(got["text"], branches["cond"][:, :, 0])


@pytest.mark.parametrize("space", [None, *SPACES])
@pytest.mark.parametrize("rule", [gj.cfg, gj.adg])
def test_bfloat16(rule, space):
    x, branches = _branches(dtype=jnp.bfloat16)
    guidance = gj.guidance(rule, omega=1.0, space=space)
    got = _apply(guidance, x, branches)
    assert got.dtype == jnp.bfloat16
    wide = {name: v.astype(jnp.float32) for name, v in branches.items()}
    want = _apply(guidance, x.astype(jnp.float32), wide)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-7, atol=1e-5)


def test_a_guidance_is_a_pytree_of_its_numbers():
    traces = []
    x, branches = _branches()

    @jax.jit
    def run(guidance):
        traces.append(0)
        return _apply(guidance, x, branches)

    for omega in (1.0, 2.0):
        for cap in (0.1, 0.2):
            run(gj.guidance(gj.adg, omega=omega, max_angle=cap))
    assert len(traces) == 1
    run(gj.guidance(gj.adg, omega=omega, max_angle=cap, space="eps"))
    assert len(traces) == 2


# Which steps need the unconditional pass.


def test_active_steps():
    active = lambda omega, rule=gj.cfg: gj.guidance(rule, omega=omega).active(TIMES, PROCESS)
    assert active(0.0).tolist() == [False] * 4
    assert active(1.0).tolist() == [True] * 4
    assert active(jnp.array([0.0, 1.0])).tolist() == [True] * 4
    assert active(gj.interval(1.0, 0.5, 0.75)).tolist() == [False, True, True, False]
    assert active(gj.interval(0.0, 0.5, 0.75)).tolist() == [False] * 4
    # A bare function may ignore ω, so that nothing is known of where it is not needed.
    assert active(0.0, lambda cond, uncond, omega: uncond).tolist() == [True] * 4
    # With no branch but the conditional there is no pass to save.
    assert active(1.0, lambda cond, omega: cond).tolist() == [False] * 4


def test_active_is_known_although_omega_is_traced():
    @jax.jit
    def run(omega, lo):
        known = gj.guidance(omega=gj.interval(omega, 0.5, 0.75)).active(TIMES, PROCESS)
        assert isinstance(known, np.ndarray)
        assert known.tolist() == [False, True, True, False]
        unknown = gj.guidance(omega=gj.interval(omega, lo, 0.75)).active(TIMES, PROCESS)
        assert isinstance(unknown, jax.core.Tracer)
        return unknown

    assert run(1.0, 0.6).tolist() == [False, True, False, False]


def test_a_later_rule_with_a_branch_of_its_own_keeps_the_pass():
    def nudge(guided, weak, *, scale=1.0):
        return guided + scale * (guided - weak)

    chained = gj.guidance(gj.chain(gj.cfg, make_rule(nudge, space="x0")), omega=0.0)
    assert chained.branches == ("cond", "uncond", "weak")
    assert chained.active(TIMES, PROCESS).all()


def test_each_branch_matters_where_its_weight_does():
    first, last = gj.interval(2.0, 0.75, 1.0), gj.interval(1.0, 0.0, 0.25)
    one = lambda g, name: g.needed((name,), TIMES[1:], TIMES[:-1], PROCESS, TIMES)
    steps = lambda g: {name: one(g, name).tolist() for name in g.branches[1:]}
    on, off = [True] * 4, [False] * 4
    early, late = [True, True, False, False], [False, False, False, True]

    assert steps(gj.guidance(gj.rules.stacked, first, perturbed_omega=last)) == {
        "uncond": early, "perturbed": late
    }  # fmt: skip
    assert steps(gj.guidance(gj.rules.stack("skip"), 1.0, skip_omega=0.0)) == {
        "uncond": on,
        "skip": off,
    }
    assert steps(gj.guidance(gj.rules.nested, 0.0, partial_omega=last)) == {
        "partial": late, "uncond": late
    }  # fmt: skip
    assert steps(gj.guidance(gj.rules.timed_negative, 1.0, share=first)) == {
        "negative": early, "uncond": on
    }  # fmt: skip
    assert steps(gj.guidance(gj.rules.mixed_autoguidance, first, mix=0.0)) == {
        "uncond": early, "weak": off
    }  # fmt: skip
    skip = gj.rules.add_perturbation.on(perturbed="skip")
    chained = gj.guidance(
        gj.chain(
            gj.adg,
            gj.rules.add_perturbation.bind(perturbed_omega=last),
            skip.bind(perturbed_omega=0.0),
        ),
        first,
    )
    assert steps(chained) == {"uncond": early, "perturbed": late, "skip": off}
    assert chained.active(TIMES, PROCESS).tolist() == [True, True, False, True]
    for rule in (gj.rules.perp_neg, gj.rules.compose_not):
        assert steps(gj.guidance(rule, first, negative_weight=last)) == {
            "negative": late, "uncond": [True, True, False, True]
        }  # fmt: skip
    both = gj.rules.compose(and_=("hat",), not_=("beard",))
    assert steps(gj.guidance(both, 0.0, hat_weight=0.0, beard_weight=last)) == {
        "hat": off, "beard": late, "uncond": late
    }  # fmt: skip
    # A rule of which nothing is known needs all it names.
    assert steps(gj.guidance(gj.rules.beta_cfg, 0.0)) == {"uncond": on}
    assert (
        gj.guidance(gj.rules.nested, 0.0, partial_omega=0.0).active(TIMES, PROCESS).tolist() == off
    )


@pytest.mark.parametrize(
    ("rule", "numbers", "spared"),
    [
        (gj.rules.stacked, {"perturbed_omega": 0.0}, "perturbed"),
        (gj.rules.stack("skip"), {"skip_omega": 0.0}, "skip"),
        (gj.rules.timed_negative, {"share": 0.0}, "negative"),
        (gj.rules.mixed_autoguidance, {"mix": 0.0}, "weak"),
        (gj.rules.nested, {"partial_omega": 0.0}, "uncond"),
        (gj.rules.compose_and, {"other_weight": 0.0}, "other"),
        (gj.rules.compose_not, {"negative_weight": 0.0}, "negative"),
        (gj.rules.perp_neg, {"negative_weight": 0.0}, "negative"),
        (gj.rules.compose(not_=("beard",)), {"beard_weight": 0.0}, "beard"),
    ],
)
def test_a_branch_of_weight_zero_may_be_left_out(rule, numbers, spared):
    x, drawn = _branches()
    guidance = gj.guidance(rule, 2.0, **numbers)
    branches = {n: i * drawn["uncond"] for i, n in enumerate(guidance.branches)}
    branches["cond"] = drawn["cond"]
    want = _apply(guidance, x, branches)
    assert not np.allclose(want, drawn["cond"])
    np.testing.assert_array_equal(_apply(guidance, x, {**branches, spared: 5 * x}), want)
    del branches[spared]
    np.testing.assert_array_equal(_apply(guidance, x, branches), want)


def test_a_run_pays_for_each_branch_where_its_weight_is_not_zero():
    calls = collections.Counter()

    def network(name, shift):
        def denoise(x, t, cond):
            jax.debug.callback(lambda: calls.update([name]))
            return jnp.tanh(x + shift)

        return gj.denoiser(denoise, PROCESS)

    null = jnp.zeros(2)
    others = {"uncond": (network("uncond", 0.5), null), "perturbed": (network("k", -0.5), null)}
    late = gj.rules.add_perturbation.bind(perturbed_omega=gj.interval(1.0, lo=0.0, hi=0.5))
    run = functools.partial(
        gj.sample, jax.random.key(0), network("cond", 0.0), jnp.ones((2, 3)), cond=null,
        conditions=others, times=gj.uniform_times(8),
        guidance=gj.guidance(gj.chain(gj.cfg, late), omega=gj.interval(2.0, lo=0.25, hi=0.75)),
    )  # fmt: skip
    x = jax.block_until_ready(run())
    jax.effects_barrier()
    assert calls == {"cond": 8, "uncond": 5, "k": 4}
    np.testing.assert_allclose(x, run(skip="never"), rtol=1e-5)
    jax.effects_barrier()
    assert calls == {"cond": 16, "uncond": 13, "k": 12}


# ADG where its formula has nothing to say.


def _adg64(c, u, omega, cap):
    theta = np.arccos(c @ u / np.linalg.norm(c) / np.linalg.norm(u))
    turn = min(omega * theta, cap)
    e = c - (c @ u) / (u @ u) * u
    return np.cos(turn) * c + np.sin(turn) / np.sin(theta) * e


@pytest.mark.slow
def test_adg_is_the_paper_s_formula(x64):
    rng = np.random.default_rng(0)
    for omega, cap in ((0.5, 3.0), (4.0, np.pi / 3)):
        c, u = rng.normal(size=(2, 5, 6))
        got = gj.adg(jnp.asarray(c), jnp.asarray(u), omega, max_angle=cap)
        want = [_adg64(*pair, omega, cap) for pair in zip(c, u, strict=True)]
        np.testing.assert_allclose(got, want, rtol=1e-10)
        assert np.all(np.linalg.norm(got, axis=1) <= 2**0.5 * np.linalg.norm(c, axis=1))


A, B = [1.0, 2.0, -1.0], [0.5, -1.0, 2.0]
DEGENERATE = {
    "equal": (A, A),
    "parallel": (A, [2.0, 4.0, -2.0]),
    "opposite": (A, [-1.0, -2.0, 1.0]),
    "cond_zero": ([0.0] * 3, B),
    "uncond_zero": (A, [0.0] * 3),
    "both_zero": ([0.0] * 3, [0.0] * 3),
    "tiny": ([1e-30] * 3, [1e-30, 0.0, 0.0]),
    "close": (A, [1.0, 2.0, -1.0 + 1e-6]),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("omega", [0.0, 0.5, 8.0])
@pytest.mark.parametrize("case", DEGENERATE)
def test_adg_is_finite_in_value_and_gradient(case, omega, dtype):
    c, u = (jnp.asarray([v], dtype) for v in DEGENERATE[case])
    total = lambda c, u, omega, cap: gj.adg(c, u, omega, max_angle=cap).astype(jnp.float32).sum()
    got = gj.adg(c, u, omega)
    grads = jax.grad(total, argnums=(0, 1, 2, 3))(c, u, omega, 1.0)
    for leaf in (got, *grads):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32))), leaf
    plain, got = np.asarray(c, np.float32), np.asarray(got, np.float32)
    if omega == 0 or case in ("uncond_zero", "cond_zero", "both_zero"):
        np.testing.assert_array_equal(got, plain)
    if case == "equal":
        np.testing.assert_allclose(got, plain, rtol=2e-6)


# Wrong input.


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: gj.guidance(gj.cfg, omega=1.0, space="latent"), "unknown space 'latent'"),
        (lambda: gj.guidance(gj.cfg, omega=1.0, angle=1.0), "no number named angle"),
        (lambda: gj.guidance(gj.cfg, omega=float("nan")), "NaN"),
        (lambda: gj.guidance(gj.adg, omega=1.0, max_angle=float("nan")), "max_angle is NaN"),
        (lambda: gj.guidance(gj.cfg, omega=jnp.array([1.0, jnp.nan])), "NaN"),
        (lambda: gj.guidance(3.0), "float"),
        (lambda: gj.chain(), "at least one"),
        (
            lambda: gj.rules.add_perturbation.on(weak="skip"),
            "no branch weak to rename; it has perturbed",
        ),
        (lambda: gj.cfg.on(cond="positive"), "no branch cond"),
        (lambda: gj.rescale.on(uncond="u"), "it has none"),
        (lambda: gj.rules.stacked.on(perturbed="uncond"), "'uncond' can't name this branch"),
        (lambda: gj.rules.stacked.on(perturbed="omega"), "'omega' can't name"),
        (lambda: gj.rules.stacked.on(perturbed="two words"), "'two words' can't name"),
        (lambda: gj.chain(gj.cfg, gj.adg), "adg combines branches"),
    ],
)
def test_wrong_input(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_scale_that_is_the_rule_s_own():
    made = gj.guidance(gj.rules.epsilon_scaling, scale=1.005)
    assert float(made.numbers[0]["scale"](0.4, 0.5)) == pytest.approx(1.005)
    with pytest.raises(ValueError, match="from_scale"):
        gj.guidance(gj.cfg, scale=7.5)
    with pytest.raises(ValueError, match="omega="):
        gj.guidance(gj.interval(2.0, lo=0.2, hi=0.8))


def test_masks_of_numbers():
    cond, uncond = jnp.ones((2, 3)), jnp.zeros((2, 3))
    guide = gj.guidance(gj.cfg, 1.0, mask=[1, 1, 0])
    got = guide.combine({"cond": cond, "uncond": uncond})
    np.testing.assert_array_equal(got, [[2, 2, 1]] * 2)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        gj.guidance(gj.cfg, 1.0, mask=np.array([255, 0, 255], np.uint8))
