"""The guided field is right by closed forms, and right for somebody else's solver."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax import analytic, processes

PROCESSES = {
    "rectified_flow": processes.rectified_flow,
    "cosine": processes.cosine,
    "linear_vp": processes.linear_vp,
    "edm": functools.partial(processes.edm, 5.0, 3.0),
    "scaled_linear": processes.scaled_linear,
}
KINDS = ("x0", "eps", "v", "velocity", "score", "drift")
FLOW = processes.rectified_flow()
# Spreads of the class and of the unconditional model, and their means.
STD, WIDE = 0.5, 1.5
OMEGA = 1.7
T = 0.6004  # between the entries of a table: at one its slope jumps


def exact(process, mean=0.0, away=0.0):
    """The denoiser of N(mean, STD²) for the label 0 and N(away, WIDE²) for the null label 1."""
    one = analytic.gaussian(jnp.full(2, mean), STD)
    other = analytic.gaussian(jnp.full(2, away), WIDE)
    return analytic.denoiser(analytic.with_unconditional([one], other), process)


def field_of(process, guidance, *, mean=0.0, away=0.0, batch=3, **options):
    zeros = jnp.zeros(batch, jnp.int32)
    return gj.guided(exact(process, mean, away), guidance, cond=zeros, uncond=1, **options)


def states(batch=3, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, 2), jnp.result_type(float))


def numbers(process, t):
    return float(process.alpha(t)), float(process.sigma(t))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PROCESSES)
def test_every_kind_of_prediction_against_its_closed_form(name):
    process, t, mean, away = PROCESSES[name](), T, 0.8, -0.4
    field = field_of(process, gj.guidance(gj.cfg, omega=OMEGA), mean=mean, away=away)
    x = states()
    alpha, sigma = numbers(process, t)

    def score_of(mean, std):  # of N(α·mean, α² std² + σ²)
        return -(np.asarray(x) - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    score = (1 + OMEGA) * score_of(mean, STD) - OMEGA * score_of(away, WIDE)
    x0 = (x + sigma**2 * score) / alpha  # Tweedie
    eps = -sigma * score
    h = 1e-5
    (alpha_2, sigma_2), (alpha_1, sigma_1) = numbers(process, t + h), numbers(process, t - h)
    want = {
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "velocity": eps - x0,
        "score": score,
        "drift": ((alpha_2 - alpha_1) * x0 + (sigma_2 - sigma_1) * eps) / (2 * h),
    }
    for kind in KINDS:
        got = getattr(field, kind)(x, t)
        np.testing.assert_allclose(got, want[kind], rtol=1e-6, atol=1e-7, err_msg=kind)
    np.testing.assert_array_equal(field(x, t), field.x0(x, t))


def moved(process, x, t, s, omega):
    """The exact flow of the guided probability-flow ODE from t to s, of two centred Gaussians.

    d log x = ((1 + ω) d log v_c − ω d log v_u)/2 with v = α² std² + σ².
    """

    def variance(t, std):
        alpha, sigma = numbers(process, t)
        return alpha**2 * std**2 + sigma**2

    own, wide = (variance(s, std) / variance(t, std) for std in (STD, WIDE))
    return x * own ** ((1 + omega) / 2) * wide ** (-omega / 2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("omega", [0.0, OMEGA])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_drift_is_dx_dt_along_the_exact_flow(name, omega):
    process, t, h = PROCESSES[name](), T, 1e-5
    field = field_of(process, gj.guidance(gj.cfg, omega=omega))
    x = states()
    slope = (moved(process, x, t, t + h, omega) - moved(process, x, t, t - h, omega)) / (2 * h)
    np.testing.assert_allclose(field.drift(x, t), slope, rtol=1e-6, atol=1e-7)
    # ε̂ − x̂0 is dx/dt on rectified flow alone.
    same = np.allclose(field.velocity(x, t), slope, rtol=1e-3)
    assert same == (name == "rectified_flow")


@pytest.mark.slow
def test_a_mixture_under_a_rule_that_is_not_linear():
    model = analytic.by_class(analytic.mixture([[-1.0, 0.0], [1.0, 1.0]], stds=0.4), [0, 1])
    process, labels, x, t = processes.cosine(), jnp.array([0, 1, 1]), states(), 0.5
    denoise = analytic.denoiser(model, process)
    field = gj.guided(denoise, gj.guidance(gj.adg, omega=2.0), cond=labels, uncond=model.null)
    c, u = (model.denoise(x, t, y, process) for y in (labels, jnp.full(3, model.null)))
    np.testing.assert_allclose(field.x0(x, t), gj.adg(c, u, 2.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "rule", [gj.cfg, gj.adg, gj.apg, gj.rules.cfg_zero, gj.rules.tcfg, gj.chain(gj.cfg, gj.rescale)]
)
def test_the_drift_at_the_end_of_the_flow(rule):
    """dx/dt = α̇ x̂0 at t = 0, with ε̂ = 0, whichever space the rule works in."""
    field, x = field_of(FLOW, gj.guidance(rule, omega=OMEGA), mean=0.8), states()
    drift = field.drift(x, 0.0)
    assert np.all(np.isfinite(drift))
    np.testing.assert_allclose(drift, -field.x0(x, 0.0), rtol=1e-6)


def test_without_guidance_it_is_the_conditional_model():
    x = states()
    field = gj.guided(exact(FLOW, 1.0), cond=jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(field.x0(x, 0.4), exact(FLOW, 1.0)(x, 0.4, jnp.zeros(3, int)))


def test_a_second_network_and_other_conditions():
    x, weak = states(), exact(FLOW, -1.0)
    zeros = jnp.zeros(3, jnp.int32)
    field = gj.guided(
        exact(FLOW, 1.0), gj.guidance(gj.autoguidance, omega=2.0), cond=zeros,
        conditions={"weak": weak},
    )  # fmt: skip
    c, w = exact(FLOW, 1.0)(x, 0.4, zeros), weak(x, 0.4, zeros)
    np.testing.assert_allclose(field.x0(x, 0.4), c + 2 * (c - w), rtol=1e-5, atol=1e-6)


def test_state_of_several_arrays():
    denoise = gj.denoiser(lambda x, t, c: jax.tree.map(lambda a: a * c[:, None], x), FLOW)
    field = gj.guided(denoise, gj.guidance(omega=1.0), cond=jnp.full(3, 0.5), uncond=0.25)
    x = {"image": states(), "text": states(seed=1)[:, :1]}
    drift = field.drift(x, 0.5)
    for part in x:  # x̂0 = 0.75 x; on rectified flow dx/dt = (x − x̂0)/t
        np.testing.assert_allclose(drift[part], (x[part] - 0.75 * x[part]) / 0.5, rtol=1e-5)


@pytest.mark.slow
def test_each_sample_may_have_its_own_time():
    x, t = states(), jnp.array([0.9, 0.5, 0.2])
    omega = gj.interval(2.0, lo=0.3, hi=0.7)
    field = field_of(processes.linear_vp(), gj.guidance(gj.cfg, omega=omega))
    for kind in KINDS:
        together = getattr(field, kind)(x, t)
        for i in range(3):
            alone = getattr(field, kind)(x, t[i])[i]
            np.testing.assert_allclose(together[i], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dtype_is_the_state_s(kind):
    field = field_of(FLOW, gj.guidance(gj.cfg, omega=2.0))
    x = states().astype(jnp.bfloat16)
    got = getattr(field, kind)(x, 0.5)
    assert got.dtype == jnp.bfloat16
    wide = getattr(field, kind)(x.astype(jnp.float32), 0.5)
    np.testing.assert_allclose(got.astype(jnp.float32), wide, rtol=0.05, atol=0.05)


# The time denoised to


@functools.cache
def learned():
    net = gj.OmegaNet(num_classes=1, hidden=8, depth=1)
    phi = net.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(phi)))
    keys = jax.tree.unflatten(jax.tree.structure(phi), list(keys))
    return net.weight(jax.tree.map(lambda a, k: a + 0.5 * jax.random.normal(k, a.shape), phi, keys))


@pytest.mark.slow
@pytest.mark.parametrize(
    "omega",
    [
        learned,
        lambda: gj.interval(2.0, 1, 2, unit="step"),
        lambda: gj.schedules.table([1.0, 0.0, 2.0]),
        lambda: lambda s, t, cond: 10 * (t - s),
    ],
    ids=["learned", "step", "table", "function"],
)
def test_times_give_the_step_that_goes_with_each_t(omega):
    """At the grid's times it is what `sample` computed there."""
    times = np.array([1.0, 0.7, 0.2, 0.0], np.float32)
    zeros, guide = jnp.zeros(3, jnp.int32), gj.guidance(gj.cfg, omega=omega())
    noise, denoise = states(), exact(FLOW, 1.0, -1.0)
    _, trail = gj.sample(
        jax.random.key(0), denoise, noise, cond=zeros, uncond=1, guidance=guide, times=times,
        keep="all",
    )  # fmt: skip
    field = gj.guided(denoise, guide, cond=zeros, uncond=1, times=times)
    x0 = jax.jit(lambda field, x, t: field.x0(x, t))
    before = [noise, *trail.x[:-1]]
    for i, t in enumerate(times[:-1]):
        np.testing.assert_allclose(x0(field, before[i], t), trail.x0[i], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_learned_weight_between_the_grid_s_times():
    times, zeros, x = np.array([1.0, 0.7, 0.5, 0.2, 0.0]), jnp.zeros(3, jnp.int32), states()
    guide, denoise = gj.guidance(gj.cfg, omega=learned()), exact(FLOW, 1.0, -1.0)
    for order in (times, times[::-1]):
        field = gj.guided(denoise, guide, cond=zeros, uncond=1, times=order)
        # The grid's next after 0.6, in its direction.
        s = 0.5 if order is times else 0.7
        omega = learned()(s, 0.6, zeros, process=FLOW)
        c, u = denoise(x, 0.6, zeros), denoise(x, 0.6, zeros + 1)
        want = gj.cfg(c, u, omega)
        np.testing.assert_allclose(field.x0(x, 0.6), want, rtol=1e-5, atol=1e-6)


def test_a_grid_for_each_sample():
    times = np.stack([[1.0, 0.6, 0.0], [0.9, 0.5, 0.1], [0.8, 0.7, 0.3]], axis=1)
    omega = lambda s, t, cond: t - s
    x, t = states(), jnp.array([0.6, 0.9, 0.8])
    field = field_of(FLOW, gj.guidance(gj.cfg, omega=omega), mean=1.0, times=times)
    want = field_of(FLOW, gj.guidance(gj.cfg, omega=jnp.array([0.6, 0.4, 0.1])), mean=1.0)
    np.testing.assert_allclose(field.x0(x, t), want.x0(x, t), rtol=1e-5, atol=1e-6)


# What a pass costs


def counting():
    """A denoiser that notes the condition of each pass as it is run."""
    passes = []

    def network(x, t, cond):
        jax.debug.callback(lambda c: passes.append(float(c[0])), cond)
        return x * cond[:, None]

    return gj.denoiser(network, FLOW), passes


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_no_unconditional_pass_outside_the_interval(jit):
    denoise, passes = counting()
    guide = gj.guidance(gj.cfg, omega=gj.interval(2.0, lo=0.3, hi=0.7))
    field = gj.guided(denoise, guide, cond=jnp.full(3, 0.5), uncond=0.25)
    drift = jax.jit(lambda field, x, t: field.drift(x, t)) if jit else lambda f, x, t: f.drift(x, t)
    for t, want in ((0.9, [0.5]), (0.5, [0.25, 0.5]), (0.2, [0.5])):
        passes.clear()
        drift(field, states(), t)
        jax.effects_barrier()
        assert sorted(passes) == want, t


def test_known_times_are_chosen_as_the_program_is_made():
    """Under jit too, and with a traced ω: no unconditional pass in the program, and no choice."""
    guide = lambda omega: gj.guidance(gj.cfg, omega=gj.interval(omega, lo=0.3, hi=0.7))

    def program(t):
        made = lambda x, omega: field_of(FLOW, guide(omega)).x0(x, t)
        return str(jax.make_jaxpr(made)(states(), 2.0))

    assert "cond[" not in program(0.9)
    assert "cond[" not in program(0.5)
    assert len(program(0.9)) < len(program(0.5))


def test_omega_zero_makes_no_other_pass():
    denoise, passes = counting()
    field = gj.guided(denoise, gj.guidance(omega=0.0), cond=jnp.full(3, 0.5), uncond=0.25)
    field.x0(states(), 0.5)
    jax.effects_barrier()
    assert passes == [0.5]


# Under JAX's transformations


def test_it_is_a_pytree_and_new_numbers_do_not_recompile():
    traces = []

    @jax.jit
    def drift(field, x, t):
        traces.append(0)
        return field.drift(x, t)

    x, times = states(), gj.uniform_times(4)
    for omega in (1.0, 2.0):
        for lo in (0.1, 0.2):
            omega_t = gj.interval(omega, lo=lo, hi=0.7)
            field = field_of(FLOW, gj.guidance(gj.cfg, omega=omega_t), mean=1.0, times=times)
            got = drift(field, x, 0.5)
            np.testing.assert_allclose(got, field.drift(x, 0.5), rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


@pytest.mark.slow
def test_vmap_and_grad():
    x = states()

    def x0(omega, t):
        return field_of(FLOW, gj.guidance(gj.cfg, omega=omega), mean=1.0, away=-1.0).x0(x, t)

    c, u = (exact(FLOW, 1.0, -1.0)(x, 0.5, jnp.full(3, y)) for y in (0, 1))
    omegas = jnp.array([0.0, 1.0, 3.0])
    many = jax.vmap(x0, (0, None))(omegas, 0.5)
    for omega, one in zip(omegas, many, strict=True):
        np.testing.assert_allclose(one, c + omega * (c - u), rtol=1e-5, atol=1e-6)
    times = jnp.array([0.2, 0.5, 0.8])
    for t, one in zip(times, jax.vmap(x0, (None, 0))(1.0, times), strict=True):
        np.testing.assert_allclose(one, x0(1.0, t), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda omega: jnp.sum(x0(omega, 0.5)))(2.0)
    np.testing.assert_allclose(gradient, jnp.sum(c - u), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_gradients_in_x_and_t_through_the_run_time_choice():
    guide = gj.guidance(gj.cfg, omega=gj.interval(2.0, lo=0.3, hi=0.7))
    field, x, h = field_of(processes.cosine(), guide, mean=1.0), states(), 1e-6
    total = lambda x, t: jnp.sum(field.drift(x, t) ** 2)
    in_x, in_t = jax.jit(jax.grad(total, (0, 1)))(x, 0.5)
    np.testing.assert_allclose(in_t, (total(x, 0.5 + h) - total(x, 0.5 - h)) / (2 * h), rtol=1e-5)
    away = jnp.zeros_like(x).at[1, 0].set(h)
    slope = (total(x + away, 0.5) - total(x - away, 0.5)) / (2 * h)
    np.testing.assert_allclose(in_x[1, 0], slope, rtol=1e-5)


# What it refuses

ZEROS = jnp.zeros(3, jnp.int32)


@pytest.mark.parametrize(
    ("guide", "options", "match"),
    [
        (gj.guidance(gj.rules.apg_momentum, omega=2.0), {"uncond": 1}, "apg_momentum"),
        (gj.guidance(gj.rules.adaptive, omega=2.0), {"uncond": 1}, "adaptive"),
        (gj.guidance(gj.cfg, omega=2.0), {}, "uncond"),
        (gj.guidance(gj.autoguidance, omega=2.0), {"conditions": {"weak": ZEROS}}, "weak"),
        (gj.guidance(gj.autoguidance, omega=2.0), {}, "weak"),
        (7.5, {"uncond": 1}, "from_scale"),
        (gj.guidance(gj.cfg, 2.0), {"uncond": 1, "times": [999, 500, 0]}, r"\[0, 1\]"),
        (gj.guidance(gj.cfg, 2.0), {"uncond": 1, "times": [1.0, 0.5, 0.7]}, "fall"),
        (gj.guidance(gj.cfg, 2.0), {"uncond": 1, "times": 0.5}, "steps"),
    ],
)
def test_refuses(guide, options, match):
    with pytest.raises(ValueError, match=match):
        gj.guided(exact(FLOW), guide, cond=ZEROS, **options)


def test_refuses_what_a_weight_was_not_made_for():
    guide = gj.guidance(gj.cfg, omega=2 * learned())
    with pytest.raises(ValueError, match="num_classes"):
        gj.guided(exact(FLOW), guide, cond=jnp.array([0, 1, 0]), uncond=1)
    with pytest.raises(ValueError, match="denoiser"):
        gj.guided(lambda x, t, c: x, guide, cond=ZEROS, uncond=1)
    field = gj.guided(exact(FLOW), guide, cond=ZEROS, uncond=1)
    with pytest.raises(ValueError, match="times"):
        field.x0(states(), 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        field_of(FLOW, gj.guidance(gj.cfg, omega=2.0)).x0(states(), 500)


# Somebody else's solver


def by_diffrax(field, x, t0, t1, solver, steps):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: field.drift(x, t)), solver, t0=t0, t1=t1,
        dt0=(t1 - t0) / steps, y0=x, max_steps=steps + 1,
    ).ys[0]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_diffrax_at_a_constant_omega():
    process, t0, t1 = processes.linear_vp(), 0.95, 0.05
    guide, x = gj.guidance(gj.cfg, omega=OMEGA), states()
    got = by_diffrax(field_of(process, guide), x, t0, t1, diffrax.Tsit5(), 100)
    np.testing.assert_allclose(got, moved(process, x, t0, t1, OMEGA), rtol=1e-5)
    ours = gj.sample(
        jax.random.key(0), exact(process), x, cond=ZEROS, uncond=1, guidance=guide,
        solver=gj.heun(), times=np.linspace(t0, t1, 201),
    )  # fmt: skip
    np.testing.assert_allclose(got, ours, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_diffrax_under_an_interval():
    process, x, t0, t1, lo, hi, steps = processes.cosine(), states(), 0.95, 0.05, 0.35, 0.65, 360
    guide = gj.guidance(gj.cfg, omega=gj.interval(OMEGA, lo=lo, hi=hi))
    want = x
    for begin, end, omega in ((t0, hi, 0), (hi, lo, OMEGA), (lo, t1, 0)):
        want = moved(process, want, begin, end, omega)
    theirs = by_diffrax(field_of(process, guide), x, t0, t1, diffrax.Heun(), steps)
    ours = gj.sample(
        jax.random.key(0), exact(process), x, cond=ZEROS, uncond=1, guidance=guide,
        solver=gj.heun(), times=np.linspace(t0, t1, steps + 1),
    )  # fmt: skip
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)
    # ω jumps at a step's end: an error of first order, of what guidance changes by a third.
    for got in (theirs, ours):
        np.testing.assert_allclose(got, want, rtol=1e-2)
    assert np.all(np.abs(moved(process, x, t0, t1, 0.0) / want - 1) > 0.3)


def test_numbers_of_another_batch_are_refused():
    denoise = gj.denoiser(lambda x, t, c: c[:, None] * x, gj.processes.rectified_flow())
    guide = gj.guidance(gj.apg, 2.0, eta=jnp.ones(8))
    field = gj.guided(denoise, guide, cond=jnp.ones(1), uncond=0.0)
    with pytest.raises(ValueError, match=r"apg's eta has shape \(8,\)"):
        field.x0(jnp.ones((1, 3)), 0.5)


def test_where_nothing_is_said_of_x0():
    """ε at α = 0: `sample` refuses to begin there too."""
    field = gj.guided(gj.denoiser(lambda x, t, c: x, processes.rectified_flow(), "eps"))
    x = jnp.ones((2, 3))
    for call in (field.x0, field.drift, field.score):
        with pytest.raises(ValueError, match="says nothing of x0; start lower"):
            call(x, 1.0)
        assert np.all(np.isfinite(call(x, 0.999)))
    sighted, blind = (
        gj.denoiser(lambda x, t, c: x, processes.rectified_flow(), kind) for kind in ("x0", "eps")
    )
    weak = gj.guided(
        sighted, gj.guidance(gj.rules.autoguidance, 1.0), cond=jnp.zeros(2),
        conditions={"weak": (blind, jnp.zeros(2))},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"branch 'weak'.*says nothing of x0"):
        weak.x0(x, 1.0)
    assert np.all(np.isfinite(weak.x0(x, 0.999)))
