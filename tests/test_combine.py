"""`Guidance.combine`: one line in anybody's loop does what the direct route does."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.processes import from_x0, noise_to, to_x0

KINDS = ("x0", "eps", "v", "velocity", "score")
PROCESS = gj.processes.cosine()
TIMES = np.array([0.9, 0.6, 0.3, 0.0], np.float32)
T, S = 0.6, 0.3
SHAPE = (2, 4, 4, 4)

RULES = {
    "cfg": lambda: gj.guidance(gj.cfg, omega=2.0),
    "cfg on eps": lambda: gj.guidance(gj.cfg, omega=2.0, space="eps"),
    "adg": lambda: gj.guidance(gj.adg, omega=2.0, max_angle=0.6),
    "apg": lambda: gj.guidance(gj.apg, omega=2.0, eta=0.3),
    "fdg": lambda: gj.guidance(gj.rules.fdg, omega=2.0, low=0.5),
    "rescaled": lambda: gj.guidance(gj.chain(gj.cfg, gj.rescale.bind(phi=0.6)), omega=2.0),
    "cfg_zero": lambda: gj.guidance(gj.rules.cfg_zero, omega=2.0),
    "by channel": lambda: gj.guidance(gj.cfg, jnp.array([0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 1, 4)),
    "masked": lambda: gj.guidance(gj.adg, omega=2.0, mask=jnp.arange(4) < 3),
}


def predictions(kind="x0", shape=SHAPE, t=T, names=("cond", "uncond"), dtype=None):
    """x_t and what networks say of it, each as `kind`; and all of them as x̂0."""
    keys = jax.random.split(jax.random.key(0), 1 + len(names))
    draw = lambda key: jax.random.normal(key, shape, dtype or jnp.result_type(float))
    x = draw(keys[0])
    clean = {name: draw(key) for name, key in zip(names, keys[1:], strict=True)}
    return x, {n: from_x0(p, x, t, PROCESS, kind) for n, p in clean.items()}, clean


def directly(guide, x, clean, condition=None, t=T, s=S, times=None):
    """What `sample` computes at a step: weights, rules and all, of x̂0."""
    step = gj.weights.Step(jnp.asarray(s), jnp.asarray(t), condition, PROCESS, times, x)
    return guide.apply(guide.init(x), clean, step)[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_on_every_kind_of_prediction(rule, kind):
    guide = RULES[rule]()
    x, given, clean = predictions(kind)
    got = guide.combine(given, x=x, t=T, process=PROCESS, prediction=kind)
    want = from_x0(directly(guide, x, clean), x, T, PROCESS, kind)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_rules_by_hand():
    """No part of the library's route: the papers' formulas, in their spaces."""
    x, given, clean = predictions("eps")
    c, u = clean["cond"], clean["uncond"]
    alpha, sigma = np.cos(np.pi / 2 * T), np.sin(np.pi / 2 * T)
    as_eps = lambda x0: (x - alpha * x0) / sigma
    combine = lambda guide: guide.combine(given, x=x, t=T, process=PROCESS, prediction="eps")
    cfg = given["cond"] + 2 * (given["cond"] - given["uncond"])
    np.testing.assert_allclose(combine(RULES["cfg"]()), cfg)
    np.testing.assert_allclose(combine(RULES["adg"]()), as_eps(gj.adg(c, u, 2.0, max_angle=0.6)))
    np.testing.assert_allclose(combine(RULES["apg"]()), as_eps(gj.apg(c, u, 2.0, eta=0.3)))
    # rescale is for v: std(c)/std(g) of these.
    as_v = lambda eps: (eps - sigma * x) / alpha  # x = α x0 + σ ε, v = α ε − σ x0, α² + σ² = 1
    c_v, g_v = as_v(given["cond"]), as_v(cfg)
    ratio = jnp.std(c_v, axis=(1, 2, 3)) / jnp.std(g_v, axis=(1, 2, 3))
    rescaled = alpha * (0.4 + 0.6 * ratio[:, None, None, None]) * g_v + sigma * x
    np.testing.assert_allclose(combine(RULES["rescaled"]()), rescaled, rtol=1e-6)


@pytest.mark.slow
def test_each_sample_at_its_own_time():
    t = jnp.array([0.3, 0.8])
    guide = gj.guidance(gj.adg, omega=gj.interval(2.0, lo=0.5, hi=1.0))
    x, given, _ = predictions("v", t=t)
    got = guide.combine(given, x=x, t=t, process=PROCESS, prediction="v")
    np.testing.assert_array_equal(got[0], given["cond"][0])  # outside: nothing is changed
    one = jax.tree.map(lambda a: a[1:], (x, given))
    alone = guide.combine(one[1], x=one[0], t=0.8, process=PROCESS, prediction="v")
    np.testing.assert_allclose(got[1:], alone, rtol=1e-5, atol=1e-5)
    assert not np.allclose(got[1], given["cond"][1])


# What weights need


def perturbed(net, seed=1):
    phi = net.init(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(phi)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(
        [a + 0.5 * jax.random.normal(key, a.shape) for a, key in zip(leaves, keys, strict=True)]
    )


@functools.cache
def learned(**settings):
    net = gj.OmegaNet(num_classes=3, hidden=8, depth=1, **settings)
    return net.weight(perturbed(net))


def test_a_schedule_takes_t():
    _, given, _ = predictions("eps")
    guide = gj.guidance(gj.cfg, omega=gj.interval(2.0, lo=0.5, hi=0.7))
    inside = guide.combine(given, t=T, prediction="eps")
    np.testing.assert_allclose(inside, gj.cfg(*given.values(), 2.0), rtol=1e-6)
    outside = guide.combine(given, t=0.3, prediction="eps")
    np.testing.assert_array_equal(outside, given["cond"])
    # There the unconditional prediction needn't be made; under jit too, where t is known.
    alone = {"cond": given["cond"]}
    np.testing.assert_array_equal(guide.combine(alone, t=0.3, prediction="eps"), given["cond"])
    jitted = jax.jit(lambda alone: guide.combine(alone, t=0.3, prediction="eps"))
    np.testing.assert_array_equal(jitted(alone), given["cond"])
    with pytest.raises(ValueError, match="uncond"):
        guide.combine(alone, t=T, prediction="eps")
    with pytest.raises(ValueError, match="uncond"):  # it may be needed
        jax.jit(lambda alone, t: guide.combine(alone, t=t, prediction="eps"))(alone, 0.3)


@pytest.mark.slow
def test_a_learned_weight_takes_s_t_condition_and_process():
    labels = jnp.array([2, 0])
    _, given, _ = predictions("eps")
    guide = gj.guidance(gj.cfg, omega=learned())
    known = {"t": T, "s": S, "condition": labels, "process": PROCESS}
    omega = learned()(S, T, labels, process=PROCESS)
    assert abs(omega[0] - omega[1]) > 1e-3
    want = gj.cfg(*given.values(), omega)
    got = guide.combine(given, prediction="eps", **known)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    # The grid says which s goes with t.
    by_grid = guide.combine(given, prediction="eps", times=TIMES, **{**known, "s": None})
    np.testing.assert_array_equal(by_grid, got)
    for name, said in (("t", "t"), ("s", "times"), ("condition", "cond"), ("process", "process")):
        with pytest.raises(ValueError, match=rf"\b{said}\b"):
            guide.combine(given, prediction="eps", **{**known, name: None})


def test_times_give_the_step_s_number():
    _, given, _ = predictions()
    guide = gj.guidance(gj.cfg, omega=gj.schedules.table([5.0, 1.0, 3.0]))
    for t, omega in ((0.9, 5.0), (0.6, 1.0), (0.3, 3.0), (0.45, 1.0)):
        got = guide.combine(given, t=t, times=TIMES)
        np.testing.assert_allclose(got, gj.cfg(*given.values(), omega), rtol=1e-6)
    np.testing.assert_array_equal(
        gj.guidance(gj.cfg, omega=lambda s, t, cond: s).combine(given, t=0.45, times=TIMES[::-1]),
        gj.cfg(*given.values(), np.float32(0.6)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["x0", "eps", "velocity"])
def test_what_a_weight_sees_is_x0_whatever_the_network_predicts(kind):
    """As `sample` shows it: an angle between ε̂ is another angle."""
    labels = jnp.array([2, 0])
    x, given, clean = predictions(kind)
    omega = learned(sees=("angle", "norms", "delta", "state"))
    guide = gj.guidance(gj.cfg, omega=omega)
    got = guide.combine(given, x=x, t=T, s=S, condition=labels, process=PROCESS, prediction=kind)
    seen = omega(S, T, labels, process=PROCESS, x=x, predictions=clean)
    np.testing.assert_allclose(got, gj.cfg(*given.values(), seen), rtol=1e-4, atol=1e-4)


# State


def network(x, t, cond):
    return jnp.sin(x + 3 * t[:, None] + cond[:, None])


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["apg_momentum", "cached_difference", "adaptive", "higs"])
def test_with_state_it_is_the_loop_of_sample(rule):
    """DDIM written out, the network asked for ε, against `sample`, step by step."""
    numbers = {"threshold": 0.2} if rule == "adaptive" else {}
    numbers |= {"every": 2} if rule == "cached_difference" else {}
    bound = getattr(gj.rules, rule).bind(**numbers)
    guide = gj.guidance(gj.chain(gj.cfg, bound) if bound.rule.refines else bound, omega=1.5)

    denoise = gj.denoiser(network, PROCESS, "eps")
    cond, uncond = jnp.array([0.5, 1.0]), jnp.array([0.0, 0.0])
    x = jax.random.normal(jax.random.key(0), (2, 3))
    _, trail = gj.sample(
        jax.random.key(1), denoise, x, cond=cond, uncond=uncond, guidance=guide, times=TIMES,
        keep="all",
    )  # fmt: skip
    state = guide.init(x)
    for i, (t, s) in enumerate(itertools.pairwise(TIMES)):
        told = jnp.full(2, t)
        both = {"cond": network(x, told, cond), "uncond": network(x, told, uncond)}
        both = {name: both[name] for name in guide.branches}  # `higs` has no other
        eps, state = guide.combine(
            both, x=x, t=t, s=s, process=PROCESS, prediction="eps", times=TIMES, state=state
        )
        x = noise_to(PROCESS, to_x0(eps, x, t, PROCESS, "eps"), s, eps)
        np.testing.assert_allclose(x, trail.x[i], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="state"):
        guide.combine(both, x=x, t=t, s=s, process=PROCESS, prediction="eps")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "rule",
    [
        gj.rules.apg_momentum.bind(momentum=gj.interval(-0.5, 0.2, 0.8)),
        gj.rules.apg_momentum.bind(momentum=np.float64(-0.5)),
        gj.chain(gj.cfg, gj.rules.higs.bind(decay=np.float64(0.75))),
    ],
)
def test_numbers_in_double_precision_leave_the_state_s_dtype(rule):
    """Where x64 is on and the state is in float32, a loop carries it."""
    guide = gj.guidance(rule, omega=1.5)
    noise = jnp.ones((2, 4, 4, 1), jnp.float32)
    denoise = gj.denoiser(lambda x, t, c: 0.5 * x + c[:, None, None, None], PROCESS)
    x = gj.sample(
        jax.random.key(0), denoise, noise, cond=jnp.ones(2), uncond=0.0, guidance=guide,
        times=TIMES,
    )  # fmt: skip
    assert x.dtype == jnp.float32
    assert np.all(np.isfinite(x))


def test_state_through_a_scan_in_bfloat16():
    guide = gj.guidance(gj.rules.apg_momentum, omega=1.5)
    x, given, _ = predictions("eps", dtype=jnp.bfloat16)

    def body(state, t):
        eps, state = guide.combine(given, x=x, t=t, process=PROCESS, prediction="eps", state=state)
        return state, eps

    _, eps = jax.lax.scan(body, guide.init(x), jnp.asarray(TIMES[:-1]))
    assert eps.dtype == jnp.bfloat16
    assert np.all(np.isfinite(eps.astype(jnp.float32)))


# Masks, channels, parts


def test_the_first_three_of_four_channels():
    """As DiT and SiT are published."""
    _, given, _ = predictions("eps")
    c, u = given.values()
    guide = gj.guidance(gj.cfg, omega=3.0, mask=jnp.arange(4) < 3)
    got = guide.combine(given, prediction="eps")
    np.testing.assert_allclose(got[..., :3], (c + 3 * (c - u))[..., :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[..., 3], c[..., 3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["x0", "eps"])
def test_omega_and_mask_by_part_of_the_state(kind):
    x, given, _ = predictions(kind)
    split = lambda a: {"image": a[..., :3], "text": a[..., 3]}
    given_parts = {name: split(p) for name, p in given.items()}
    options = {"x": split(x), "t": T, "process": PROCESS, "prediction": kind}
    omega = {"image": gj.interval(2.0, 0.5, 1.0), "text": 0.5}
    got = gj.guidance(gj.adg, omega).combine(given_parts, **options)
    masked = gj.guidance(gj.adg, 2.0, mask={"image": 1.0, "text": 0.0})
    left_alone = masked.combine(given_parts, **options)
    for part, number in (("image", 2.0), ("text", 0.5)):
        want = gj.guidance(gj.adg, number).combine(
            {name: p[part] for name, p in given_parts.items()}, **{**options, "x": split(x)[part]}
        )
        np.testing.assert_allclose(got[part], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(left_alone["image"], got["image"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(left_alone["text"], given_parts["cond"]["text"], atol=1e-6)
    wrong = gj.guidance(gj.adg, 2.0, mask={"image": 1.0, "sound": 0.0})
    with pytest.raises(ValueError, match="sound"):
        wrong.combine(given_parts, **options)
    with pytest.raises(ValueError, match="text"):
        gj.guidance(gj.adg, {"image": 2.0, "sound": 0.0}).combine(given_parts, **options)


# Under jit, in low precision, at the ends


def test_one_program_for_every_t_and_omega():
    traces = []
    x, _, clean = predictions("velocity")

    @jax.jit
    def run(guide, t):
        traces.append(0)
        given = {n: from_x0(p, x, t, PROCESS, "velocity") for n, p in clean.items()}
        out = guide.combine(given, x=x, t=t, process=PROCESS, prediction="velocity", times=TIMES)
        return to_x0(out, x, t, PROCESS, "velocity")

    for t in (0.9, 0.6, 0.3):
        for omega in (1.0, 2.0):
            guide = gj.guidance(gj.adg, omega=gj.interval(omega, lo=0.5, hi=0.7))
            want = gj.adg(*clean.values(), omega) if t == 0.6 else clean["cond"]
            np.testing.assert_allclose(run(guide, t), want, rtol=1e-4, atol=1e-4)
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rule", ["cfg", "adg", "rescaled"])
def test_the_dtype_is_the_predictions(rule, dtype):
    guide = RULES[rule]()
    x, given, _ = predictions("eps", dtype=dtype)
    combine = functools.partial(guide.combine, t=T, process=PROCESS, prediction="eps")
    got = combine(given, x=x)
    assert got.dtype == dtype
    wide = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
    # Worked out in float32, and rounded once.
    want = combine(wide(given), x=wide(x))
    np.testing.assert_allclose(wide(got), want, rtol=float(jnp.finfo(dtype).eps), atol=1e-6)
    # A network of another precision than the state.
    assert combine(given, x=wide(x)).dtype == dtype


@pytest.mark.parametrize("rule", ["cfg", "adg", "apg", "fdg"])
@pytest.mark.parametrize("kind", KINDS)
def test_omega_zero_is_the_conditional_prediction_bit_for_bit(rule, kind):
    function = {"fdg": gj.rules.fdg}.get(rule) or getattr(gj, rule)
    x, given, _ = predictions(kind)
    numbers = {"low": 0.0} if rule == "fdg" else {}
    guide = gj.guidance(function, omega=0.0, **numbers)
    got = guide.combine(given, x=x, t=T, process=PROCESS, prediction=kind)
    np.testing.assert_array_equal(got, given["cond"])


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_where_alpha_is_zero_a_rule_on_x0_leaves_noise_predictions_alone(kind):
    """ε̂ says nothing of x0 there."""
    x, given, _ = predictions(kind)
    got = gj.guidance(gj.adg, omega=2.0).combine(
        given, x=x, t=1.0, process=PROCESS, prediction=kind
    )
    np.testing.assert_array_equal(got, given["cond"])


# Rules that don't work on a kind of prediction as it is.
CONVERTED = [
    (rule, kind)
    for rule, make in RULES.items()
    for kind in ("eps", "velocity", "score")
    if any(link.space not in ("any", kind) for link in make().links)
]


@pytest.mark.parametrize(("rule", "kind"), CONVERTED)
def test_where_sigma_is_zero_a_rule_on_x0_leaves_them_alone(rule, kind):
    """x_t is x0 there, whatever a network says: solvers that evaluate at their end ask this."""
    x, given, _ = predictions(kind)
    got = RULES[rule]().combine(given, x=x, t=0.0, s=0.0, process=PROCESS, prediction=kind)
    np.testing.assert_allclose(got, given["cond"], rtol=1e-4, atol=1e-5)


def test_times_may_be_a_list():
    _, given, _ = predictions()
    guide = gj.guidance(gj.cfg, omega=gj.schedules.triangular(2.0))
    listed = guide.combine(given, t=T, times=[0.9, 0.6, 0.3, 0.0])
    np.testing.assert_array_equal(listed, guide.combine(given, t=T, times=TIMES))


def test_omega_has_the_gradient_of_the_formula():
    _, given, _ = predictions("eps")

    def total(omega):
        guide = gj.guidance(gj.cfg, omega=omega)
        return jnp.sum(guide.combine(given, prediction="eps"))

    want = jnp.sum(given["cond"] - given["uncond"])
    np.testing.assert_allclose(jax.grad(total)(2.0), want, rtol=1e-4)


# What it refuses


@pytest.mark.parametrize("missing", ["x", "t", "process"])
def test_a_rule_of_another_space_says_what_it_lacks(missing):
    x, given, _ = predictions("eps")
    options = {"x": x, "t": T, "process": PROCESS}
    del options[missing]
    with pytest.raises(ValueError, match=rf"adg.*\b{missing}="):
        gj.guidance(gj.adg, omega=2.0).combine(given, prediction="eps", **options)
    # On predictions of its own space it lacks nothing.
    gj.guidance(gj.adg, omega=2.0).combine(given, **options)


@pytest.mark.parametrize(
    ("omega", "options", "match"),
    [
        (2.0, {"prediction": "noise"}, "noise"),
        (2.0, {"predictions": {"cond": jnp.ones(SHAPE)}}, "uncond"),
        (2.0, {"predictions": {"uncond": jnp.ones(SHAPE)}}, "cond"),
        (2.0, {"predictions": dict.fromkeys(("cond", "weak"), jnp.ones(SHAPE))}, "weak"),
        (gj.interval(2.0, 0.5, 0.7), {}, r"\bt\b"),
        (gj.interval(2.0, 0.5, 0.7), {"t": 500}, r"\[0, 1\]"),
        (gj.interval(2.0, -1.0, 1.0, unit="log_snr"), {"t": T}, "process"),
        (gj.interval(2.0, 0, 3, unit="step"), {"t": T}, "times"),
        (lambda s, t, cond: t, {"t": T}, "times"),
        (2.0, {"process": gj.processes.cosine}, "call it"),
    ],
)
def test_refuses(omega, options, match):
    _, given, _ = predictions()
    options = {"predictions": given, **options}
    given = options.pop("predictions")
    with pytest.raises(ValueError, match=match):
        gj.guidance(gj.cfg, omega=omega).combine(given, **options)


@pytest.mark.parametrize("name", ["adaptive", "cached_difference"])
def test_a_state_that_still_wants_a_branch_says_so(name):
    guide, cond = gj.guidance(gj.rules.RULES[name], 3.0), jnp.ones((2, 3))
    state = guide.init(cond)
    with pytest.raises(ValueError, match="needs the branch 'uncond'"):
        guide.combine({"cond": cond}, state=state, x=cond, t=0.5, process=PROCESS)
    _, after = guide.combine(
        {"cond": cond, "uncond": 0.999 * cond}, state=state, x=cond, t=0.5, process=PROCESS
    )
    if name == "adaptive":  # Over for all.
        got, _ = guide.combine({"cond": cond}, state=after, x=cond, t=0.4, process=PROCESS)
        np.testing.assert_array_equal(got, cond)
    off = gj.guidance(gj.rules.RULES[name], gj.interval(3.0, lo=0.2, hi=0.4))
    got, _ = off.combine({"cond": cond}, state=state, x=cond, t=0.5, s=0.4, process=PROCESS)
    np.testing.assert_array_equal(got, cond)


@pytest.mark.parametrize("name", ["adaptive", "cached_difference"])
def test_omega_a_channel_and_a_state(name):
    cond, uncond = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    omega = jnp.array([0.0, 1.0, 2.0])
    guide = gj.guidance(gj.rules.RULES[name], omega.reshape(1, 1, 1, 3), space="x0")
    predictions = {"cond": cond, "uncond": uncond}
    got, _ = guide.combine(predictions, state=guide.init(cond), x=cond, t=0.5, process=PROCESS)
    np.testing.assert_allclose(got, cond + omega * (cond - uncond), rtol=1e-5, atol=1e-6)


def test_an_index_that_is_traced_is_refused():
    guide = gj.guidance(gj.cfg, gj.interval(2.0, lo=0.2, hi=0.8))
    pair = {"cond": jnp.ones((2, 3)), "uncond": jnp.zeros((2, 3))}
    with pytest.raises(ValueError, match="an index and no time"):
        jax.jit(lambda t: guide.combine(pair, t=t))(jnp.int32(500))
