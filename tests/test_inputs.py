"""Wrong calls, as people write them: an error, or the right value, before the network is traced."""

import collections
import functools
import gc
import itertools
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import guidejax as gj
from guidejax import _inputs, objectives
from guidejax.models import vae
from guidejax.rules import make_rule

RF, EDM = gj.processes.rectified_flow(), gj.processes.edm()
KEY, TIMES = jax.random.key(0), gj.uniform_times(4)
NOISE, LABELS = jnp.ones((4, 2)), jnp.arange(4)
CFG = gj.guidance(gj.cfg, omega=1.0)
WEAK = gj.guidance(gj.autoguidance, omega=1.0)


def _never(x, t, cond):
    raise AssertionError("the network was traced before the input was checked")


def _network(x, t, cond):
    return x * 0.5 + jnp.reshape(cond, (-1, 1)) / 10


NEVER, DENOISE = gj.denoiser(_never, RF), gj.denoiser(_network, RF)


def _sample(denoise=NEVER, key=KEY, noise=NOISE, **options):
    options = {"times": TIMES, "cond": LABELS, "uncond": 9, "guidance": CFG, **options}
    return gj.sample(key, denoise, noise, **options)


def _fit(**options):
    batch = {"x0": np.ones((4, 2), np.float32), "cond": np.arange(4)}
    options = {
        "key": KEY, "guide": lambda phi: gj.guidance(gj.cfg, omega=phi), "phi": jnp.array(1.0),
        "denoise": NEVER, "batches": itertools.repeat(batch), "objective": gj.self_consistency(),
        "optimizer": optax.adam(1e-2), "steps": 1, "uncond": 9, **options,
    }  # fmt: skip
    first = [options.pop(name) for name in ("key", "guide", "phi", "denoise", "batches")]
    return gj.fit(*first, **options)


def _field(**options):
    options = {"denoise": NEVER, "guidance": CFG, "cond": LABELS, "uncond": 9, **options}
    return gj.guided(options.pop("denoise"), options.pop("guidance"), **options).x0(NOISE, 0.5)


WRONG = {
    "guidance=7.5": (lambda: _sample(guidance=7.5), "from_scale"),
    "guidance=gj.cfg": (lambda: _sample(guidance=gj.cfg), "guidance"),
    "guidance=a weight": (lambda: _sample(guidance=gj.interval(1.0, 0.1, 0.2)), "guidance"),
    "guided(7.5)": (lambda: _field(guidance=7.5), "from_scale"),
    "guided(gj.cfg)": (lambda: _field(guidance=gj.cfg), "guidance"),
    "solver='ddim'": (lambda: _sample(solver="ddim"), "ddim"),
    "solver uncalled": (lambda: _sample(solver=gj.ddim), "ddim"),
    "key=0": (lambda: _sample(key=0), "key"),
    "fit key=0": (lambda: _fit(key=0), "key"),
    "noise of key=0": (lambda: gj.processes.initial_noise(0, RF, (2, 2)), "key"),
    "process uncalled": (lambda: gj.denoiser(_never, gj.processes.edm), "edm"),
    "on an uncalled process": (lambda: NEVER.on(gj.processes.edm), "edm"),
    "shifted, uncalled": (lambda: gj.processes.shifted(gj.processes.edm, 3.0), "edm"),
    "karras_times, uncalled": (lambda: gj.karras_times(gj.processes.edm, 5), "edm"),
    "an index without a table": (
        lambda: gj.denoiser(_never, gj.processes.shifted(EDM, 2.0), time="index"),
        "index",
    ),
    "log-SNR where it isn't finite": (
        lambda: _sample(gj.denoiser(_never, RF, time="log_snr")), "log_snr = -inf at t = 1",
    ),
    "sigma where it isn't finite": (
        lambda: _sample(gj.denoiser(_never, RF, time="sigma")), "sigma = inf at t = 1",
    ),
    "sigma of the first of a pair": (
        lambda: _sample(gj.denoiser(_never, RF, time="sigma").then(NEVER, at=0.5)), "sigma = inf",
    ),
    "log-SNR at the end of an inversion": (
        lambda: _sample(
            gj.denoiser(_never, RF, time="log_snr"), solver=gj.heun(),
            times=gj.uniform_times(4, stop=0.1)[::-1],
        ),
        "log_snr = -inf at t = 1",
    ),
    "noise of an uncalled process": (
        lambda: gj.processes.initial_noise(KEY, gj.processes.edm, (2, 2)),
        "edm",
    ),
    "objective uncalled": (lambda: _fit(objective=gj.self_consistency), "self_consistency"),
    "rollout uncalled": (lambda: _fit(objective=gj.rollout), "rollout"),
    "objective='l2'": (lambda: _fit(objective="l2"), "objective"),
    "fit of a guidance": (lambda: _fit(guide=CFG), "phi -> Guidance"),
    "fit of integers": (lambda: _fit(phi=jnp.array(1)), "int32"),
    "omega='7.5'": (lambda: gj.guidance(gj.cfg, omega="7.5"), "7.5"),
    "eta='0.5'": (lambda: gj.guidance(gj.apg, eta="0.5"), "0.5"),
    "omega=None": (lambda: gj.guidance(gj.cfg, omega=None), "None"),
    "scale=7.5": (lambda: gj.guidance(gj.cfg, scale=7.5), "from_scale"),
    "guidance_scale=7.5": (lambda: gj.guidance(gj.cfg, guidance_scale=7.5), "from_scale"),
    "labels as a list": (lambda: _sample(cond=[0, 1, 2, 3]), "cond"),
    "null labels as a list": (lambda: _sample(uncond=[9, 9, 9, 9]), "uncond"),
    "guided labels as a list": (lambda: _field(cond=[0, 1, 2, 3]), "cond holds 0 without"),
    "integer noise": (lambda: _sample(noise=jnp.ones((4, 2), int)), "noise"),
    "integer x": (lambda: NEVER(jnp.ones((4, 2), int), 0.5, LABELS), "x is int32"),
    "weak labels": (lambda: _sample(guidance=WEAK, conditions={"weak": LABELS}), "weak"),
    "other weak labels": (lambda: _sample(guidance=WEAK, conditions={"weak": LABELS + 1}), "weak"),
    "a bare weak network": (lambda: _sample(guidance=WEAK, conditions={"weak": _never}), "denoise"),
    "conditions=[...]": (lambda: _sample(guidance=WEAK, conditions=[NEVER]), "conditions"),
    "a bare network": (lambda: _sample(denoise=_never), "gj.denoiser"),
    "interval(2, 200, 800)": (lambda: gj.interval(2.0, 200, 800), "interval"),
    "interval(2, 0, 800)": (lambda: gj.interval(2.0, 0, 800), "interval"),
    "interval(2, -1, 0.5)": (lambda: gj.interval(2.0, -1, 0.5), "interval"),
    "EDM at 1e-6": (
        lambda: _sample(gj.denoiser(_never, EDM), times=np.array([1.0, 0.5, 1e-6])),
        "underflows",
    ),
    "a label per class that isn't": (
        lambda: gj.schedules.save_table("omega.json", NET.weight(NET.init(KEY)), TIMES, process=RF),
        "cond",
    ),
    "a function per class that isn't": (
        lambda: gj.schedules.save_table("omega.json", lambda s, t, cond: cond["a"] + t, TIMES),
        "conditions",
    ),
    "a negative prompt that the rule doesn't have": (
        lambda: _sample(conditions={"negative": LABELS + 4}),
        "no branch negative; it combines cond, uncond",
    ),
    "the same of a field": (
        lambda: _field(conditions={"negative": LABELS + 4}), "no branch negative",
    ),
    "omega of a rule that refines": (
        lambda: gj.guidance(gj.rescale, omega=6.5, phi=0.7),
        r"gj.chain\(gj.cfg, gj.rules.rescale\)",
    ),
    "numbers without an omega": (lambda: gj.guidance(gj.adg, max_angle=1.0), "no omega"),
    "a network without an omega": (
        lambda: gj.fit_omega(
            KEY, gj.OmegaNet(outputs=("eta",)), NEVER, [], rule=gj.apg, uncond=9, steps=1,
            objective=gj.self_consistency(), optimizer=optax.adam(1e-2),
        ),
        "no omega",
    ),
    "as many numbers as channels": (
        lambda: _combine(omega=jnp.arange(2.0)), r"omega has shape \(2,\) at a step",
    ),
    "the same by hand": (lambda: gj.cfg(ONE, ONE, jnp.arange(2.0)), "2 numbers as omega"),
    "the same of a field, of one sample": (
        lambda: gj.guided(
            DENOISE, gj.guidance(gj.cfg, jnp.arange(2.0)), cond=LABELS[:1], uncond=9
        ).x0(ONE, 0.5),
        r"omega has shape \(2,\) at a step",
    ),
    "a label that a learned omega doesn't know": (
        lambda: _combine(
            omega=NET.weight(NET.init(KEY)), condition=jnp.array([99]), t=0.5, s=0.4, process=RF
        ),
        "99",
    ),
    "a time of too few digits": (
        lambda: _combine(t=jnp.bfloat16(0.8), times=gj.uniform_times(10)), "t is bfloat16",
    ),
    "the same, of a field": (
        lambda: gj.guided(DENOISE, CFG, cond=LABELS, uncond=9, times=TIMES).x0(
            NOISE, jnp.bfloat16(0.8)
        ),
        "t is bfloat16",
    ),
    "an index for a time": (lambda: NEVER(NOISE, 500, LABELS), r"must lie in \[0, 1\]"),
    "a null label that 8 bits don't hold": (
        lambda: _sample(cond=LABELS.astype(jnp.uint8), uncond=1000), "uncond holds 1000",
    ),
    "a scale within a window": (
        lambda: gj.from_scale(gj.interval(7.5, 0.2, 0.8)), r"interval\(gj.from_scale",
    ),
    "a number for a range": (lambda: gj.OmegaNet(outputs={"eta": 0.1}), "expected a range"),
    "ends for a range": (lambda: gj.OmegaNet(outputs={"omega": (0.0, 5.0)}), "expected a range"),
    "a reference that nothing is compared with": (
        lambda: gj.rollout(reference=(NOISE, None)), "pooled > 0",
    ),
    "a batch of three": (
        lambda: _fit(batches=[(np.ones((4, 2), np.float32), np.arange(4), np.arange(4))]),
        "batch 0 is a tuple of 3; expected a pair",
    ),
    "no held-out batches": (lambda: _fit(held_out=iter([])), "held_out has no batches"),
    "held-out batches without end": (
        lambda: _fit(held_out=_Endless()), "held_out has no end",
    ),
    "evaluations at other times": (
        lambda: _fit(
            denoise=RF, objective=gj.self_consistency(particles=2, s_min=0.2),
            batches=gj.learning.evaluate(
                KEY, DENOISE, [{"x0": np.ones((64, 2), np.float32), "cond": np.arange(64)}],
                objective=gj.self_consistency(particles=2), uncond=99,
            ),
        ),
        "its evaluations are at t",
    ),
    "a picture of 8 bits for a VAE": (
        lambda: vae.encode({}, jnp.zeros((1, 8, 8, 3), jnp.uint8), vae.Config()),
        "images of uint8",
    ),
    "groups of several conditions": (
        lambda: _fit(objective=gj.rollout(particles=2)), "rows 0 to 1 are of several conditions",
    ),
}  # fmt: skip
ONE = jnp.ones((1, 2))


class _Endless:
    """What `gj.data.load` gives without `epochs`."""

    steps = None

    def __iter__(self):
        return itertools.repeat({"x0": np.ones((4, 2), np.float32), "cond": np.arange(4)})


def _combine(omega=1.0, **options):
    return gj.guidance(gj.cfg, omega).combine({"cond": ONE, "uncond": 0 * ONE}, **options)


NET = gj.OmegaNet(num_classes=3, hidden=4, depth=1)


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name):
    call, names = WRONG[name]
    with pytest.raises(ValueError, match=names):
        call()


# What works.


def test_a_tuple_of_omegas_is_one_a_sample():
    c, u = NOISE + LABELS[:, None], -NOISE
    each, listed = (1.0, 2.0, 0.0, 3.0), np.array([1.0, 2.0, 0.0, 3.0])
    np.testing.assert_array_equal(gj.cfg(c, u, each), gj.cfg(c, u, listed))
    combined = gj.guidance(gj.cfg, each).combine({"cond": c, "uncond": u})
    np.testing.assert_array_equal(combined, gj.cfg(c, u, listed))
    sampled = [_sample(DENOISE, guidance=gj.guidance(gj.cfg, omega)) for omega in (each, listed)]
    np.testing.assert_array_equal(*sampled)


def test_an_array_times_a_weight_is_a_weight():
    weight = np.array([1.0, 2.0]) * gj.weights.constant(3.0)
    np.testing.assert_array_equal(weight(0.0, 0.5), [3.0, 6.0])


def test_conditions_that_nobody_guides_by_do_no_harm():
    alone = _sample(DENOISE, guidance=None, uncond=None)
    given = _sample(DENOISE, guidance=None, conditions={"negative": LABELS})
    np.testing.assert_array_equal(given, alone)
    np.testing.assert_array_equal(
        _sample(DENOISE, conditions={"uncond": 9}, uncond=None), _sample(DENOISE)
    )


def test_groups_are_free_where_the_batch_is_compared_as_a_whole():
    phi = _fit(denoise=DENOISE, objective=gj.rollout(particles=2, pooled=1.0, steps=2))
    assert np.isfinite(phi)
    same = np.array([0, 0, 3, 3])
    batch = objectives.Batch(NOISE, {"label": same, "text": np.ones((4, 3))}, {})
    gj.rollout(particles=2).check_batch(batch, "batch 0")


def test_a_null_condition_of_fewer_parts_is_one_for_all():
    text = jnp.arange(8.0).reshape(4, 2)
    denoise = gj.denoiser(lambda x, t, c: 0.5 * x + c["text"], RF)
    more = {"text": text, "tokens": LABELS}
    one = _sample(denoise, cond=more, uncond={"text": jnp.ones((1, 2))})
    each = _sample(denoise, cond={"text": text}, uncond={"text": jnp.ones((4, 2))})
    np.testing.assert_array_equal(one, each)


def test_unit_noise_on_edm_is_told():
    denoise = gj.denoiser(_network, EDM)
    with pytest.warns(UserWarning, match="initial_noise"):
        _sample(denoise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _sample(denoise, noise=gj.processes.initial_noise(KEY, EDM, (4, 2)))
        _sample(denoise, times=gj.uniform_times(4, start=0.3))  # From where σ is small.


def test_noise_of_another_scale_is_told(monkeypatch):
    """Of a sampler in σ, whose x is √(1 + σ²) times ours; looked at once for a kind of run."""
    monkeypatch.setattr(_inputs, "_MEASURED", set())
    denoise = gj.denoiser(_network, gj.processes.scaled_linear(), "eps", time="index")
    with pytest.warns(UserWarning, match="noise has a root mean square of .*initial_noise"):
        _sample(denoise, noise=14.6 * NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _sample(denoise, noise=14.6 * NOISE)
        _inputs._MEASURED.clear()
        _sample(denoise, noise=3.0 * NOISE)


def test_a_network_of_a_table_or_of_edm_is_told_more_than_t():
    for process, told in ((gj.processes.scaled_linear(), "index"), (EDM, "sigma")):
        with pytest.warns(UserWarning, match=f"give time='{told}'"):
            gj.denoiser(_network, process, "eps")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gj.denoiser(_network, process, "eps", time=told)
            gj.denoiser(_network, process, "eps", time="t")


def test_an_inversion_may_end_where_nothing_is_asked():
    """At pure noise ε̂ says nothing of x0; DDIM and the midpoint ask at the start and within."""
    denoise = gj.denoiser(_network, RF, "eps")
    times = gj.uniform_times(4, stop=0.02)[::-1]
    for solver in (gj.ddim(), gj.solvers.midpoint()):
        assert np.all(np.isfinite(_sample(denoise, times=times, solver=solver)))
    with pytest.raises(ValueError, match="says nothing of x0"):
        _sample(denoise, times=times, solver=gj.heun())


def test_a_shifted_process_is_not_what_a_network_was_trained_on():
    shifted = gj.processes.shifted(RF, 3.0)
    with pytest.warns(UserWarning, match=r"\.on\(gj.processes.shifted"):
        gj.denoiser(_network, shifted)
    with pytest.warns(UserWarning, match=r"a function of the shifted .* time='t' says"):
        gj.denoiser(_network, shifted, time=lambda t: 1000 * t)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gj.denoiser(_network, RF).on(shifted)
        gj.denoiser(_network, shifted, time="t")
        gj.denoiser(_network, shifted, time=lambda t: t)


def test_log_snr_is_told_where_it_is_finite():
    """From below t = 1, on the network's own process, and where the end isn't asked."""
    check = lambda denoise, times: _inputs.check(times, NOISE, LABELS, CFG, denoise, gj.ddim())
    denoise = gj.denoiser(_never, RF, time="log_snr")
    check(denoise, gj.uniform_times(4, start=0.999))
    check(denoise, gj.uniform_times(4, stop=0.1)[::-1])
    check(gj.denoiser(_never, gj.processes.scaled_linear(), time="sigma").on(RF), TIMES)


def test_a_branch_s_own_network_is_asked_for_what_it_knows():
    given = (TIMES, NOISE, DENOISE, gj.ddim())
    always, later = np.ones(4, bool), np.array([False, True, True, True])
    check = lambda network, flags: _inputs.check_branches(
        {"weak": (network, LABELS)}, {"weak": flags}, *given
    )
    for network, match in (
        (gj.denoiser(_never, RF, "eps"), "branch 'weak'.*'eps' says nothing of x0"),
        (gj.denoiser(_never, RF, time="sigma"), "branch 'weak'.*sigma = inf"),
    ):
        with pytest.raises(ValueError, match=match):
            check(network, always)
        check(network, later)
    check(NEVER, always)
    check(None, always)


def test_an_interval_with_an_open_end():
    weight = gj.interval(2.0, 0.5, np.inf)
    assert weight.table(TIMES).tolist() == [2.0, 2.0, 2.0, 0.0]
    assert gj.interval(2.0, 200, 800, unit="sigma")(0.0, 0.5, process=EDM) == 0


@pytest.mark.slow
@pytest.mark.parametrize("branches", ["sequential", "batched"])
def test_a_negative_prompt_of_another_length(branches):
    """Tokens (batch, n, d): each pass has its own n; those that don't fit aren't joined."""

    def network(x, t, cond):
        return 0.5 * x + jnp.tanh(cond.sum(axis=1))

    prompt = jax.random.normal(KEY, (4, 5, 2))
    negative = jax.random.normal(jax.random.key(1), (4, 3, 2))
    got = _sample(
        gj.denoiser(network, RF), cond=prompt, uncond=None, conditions={"negative": negative},
        guidance=gj.guidance(gj.negative_prompt, omega=0.7), branches=branches,
    )  # fmt: skip
    x = NOISE
    for t, s in itertools.pairwise(TIMES.tolist()):
        c, n = network(x, t, prompt), network(x, t, negative)
        x0 = c + 0.7 * (c - n)
        x = s / t * x + (1 - s / t) * x0
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)


def test_no_guidance_with_times_known_only_at_run_time():
    """It needs no null condition, and makes the conditional pass alone."""
    run = jax.jit(lambda times: _sample(DENOISE, times=times, guidance=None, uncond=None))
    want = _sample(DENOISE, guidance=None, uncond=None)
    np.testing.assert_allclose(run(jnp.asarray(TIMES)), want, rtol=1e-6)


def test_eps_from_pure_noise_with_times_known_only_at_run_time():
    """α = 0, where ε̂ says nothing of x0: finite, and x0 is taken as 0, the mean of centred data."""
    denoise = gj.denoiser(lambda x, t, cond: 0.3 * x, RF, "eps")
    got = jax.jit(lambda times: _sample(denoise, times=times))(jnp.asarray(TIMES))
    x = 0.75 * NOISE  # from t = 1 with x0 = 0
    for t, s in itertools.pairwise([0.75, 0.5, 0.25, 0.0]):
        x = s / t * x + (1 - s / t) * (x - t * 0.3 * x) / (1 - t)
    np.testing.assert_allclose(got, x, rtol=1e-5)


def test_edm_near_zero_at_run_time_is_finite():
    """t = 1e-6 has σ = 0 in float32: a step into it lands on x̂0, whichever the solver."""
    want = np.full(NOISE.shape, 0.7)
    denoise = gj.denoiser(lambda x, t, cond: jnp.full_like(x, 0.7), EDM)
    times = jnp.array([1.0, 0.5, 1e-6])
    for solver in (gj.ddim(), gj.heun(), gj.dpmpp_2m()):
        got = jax.jit(lambda t, s=solver: _sample(denoise, times=t, solver=s))(times)
        np.testing.assert_allclose(got, want, rtol=1e-5)


class _Dropout(nnx.Module):
    def __init__(self, rngs):
        self.dropout, self.linear = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x, t, cond):
        return self.dropout(self.linear(x))


class _Norm(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.linear = nnx.BatchNorm(2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x, t, cond):
        return self.norm(self.linear(x))


@pytest.mark.slow
@pytest.mark.parametrize("make", [_Dropout, _Norm])
def test_an_nnx_module_in_training_mode(make):
    module = make(nnx.Rngs(0))
    denoise = gj.denoiser(module, RF)
    calls = (
        lambda: _sample(denoise),
        lambda: denoise(NOISE, 0.5, LABELS),
        lambda: jax.jit(lambda x: gj.denoiser(make(nnx.Rngs(0)), RF)(x, 0.5, LABELS))(NOISE),
    )
    for call in calls:
        with pytest.raises(ValueError, match="eval"):
            call()
    module.eval()
    assert np.all(np.isfinite(_sample(gj.denoiser(module, RF))))


@pytest.fixture
def unseen():
    """As in a process in which no function was seen."""
    _inputs._SEEN.clear()


def _reading_a_global():
    global GLOBAL
    GLOBAL = jnp.ones(2)
    yield lambda x, t, cond: x * GLOBAL
    GLOBAL = GLOBAL + 1


def _reading_a_closure():
    params = {"w": jnp.ones(2)}
    yield lambda x, t, cond: x * params["w"]
    params = {"w": jnp.zeros(2)}


class _Model:
    def __init__(self):
        self.w, self.steps = jnp.ones(2), jnp.array(0)

    def __call__(self, x, t, cond):
        return x * self.w

    def call(self, x, t, cond):
        return x * self.w


def _reading_itself():
    model = _Model()
    yield model
    model.w = jnp.zeros(2)


def _reading_its_owner():
    model = _Model()
    yield model.call
    model.w = jnp.zeros(2)


@pytest.mark.parametrize(
    ("reading", "name"),
    [
        (_reading_a_global, "GLOBAL"), (_reading_a_closure, "params"),
        (_reading_itself, r"self\.w"), (_reading_its_owner, r"self\.w"),
    ],
)  # fmt: skip
def test_what_a_network_reads_and_is_no_argument_is_told_once(unseen, reading, name):
    steps = reading()
    network = next(steps)
    look = lambda: _inputs._warn_of_new_functions(gj.denoiser(network, RF), CFG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            look()
    next(steps, None)
    with pytest.warns(UserWarning, match=rf"reads {name} beside its arguments.*`params`"):
        look()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look()


def test_what_a_method_does_not_read_may_change(unseen):
    model = _Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            model.steps = model.steps + 1
            _inputs._warn_of_new_functions(gj.denoiser(model.call, RF), CFG)


def test_what_was_seen_is_not_kept_alive(unseen):
    def look():
        params = jnp.ones(2)
        network = lambda x, t, cond: x * params
        _inputs._warn_of_new_functions(gj.denoiser(network, RF), CFG)
        return weakref.ref(network), weakref.ref(params)

    gone = look()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_two_functions_by_turns_are_no_new_ones(unseen):
    networks = [_new_network(i)["denoise"] for i in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            for denoise in networks:
                _inputs._warn_of_new_functions(denoise, CFG)


def test_a_function_a_class_is_no_new_one_at_each_call(unseen):
    """All of one place in the source, and the same at each call."""
    classes = [_new_weight(i)["guidance"].omega for i in range(8)]
    guide = gj.guidance(gj.cfg, functools.reduce(lambda a, b: a + b, classes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            _inputs._warn_of_new_functions(DENOISE, guide)
    guides = [_new_weight(i)["guidance"] for i in range(6)]
    with pytest.warns(UserWarning, match="new function at each call"):
        collections.deque(map(functools.partial(_inputs._warn_of_new_functions, DENOISE), guides))


def _new_network(i):
    return {"denoise": gj.denoiser(lambda x, t, cond: i * x, RF)}


def _new_weight(i):
    return {"denoise": DENOISE, "guidance": gj.guidance(gj.cfg, lambda s, t, cond: i * t)}


def _new_rule(i):
    rule = make_rule(lambda cond, uncond, omega: i * cond, space="x0", exact_at_zero=False)
    return {"denoise": DENOISE, "guidance": gj.guidance(rule, 1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("make", [_new_network, _new_weight, _new_rule])
def test_a_function_made_anew_at_each_call_is_told_where(unseen, make):
    """Once, with the line that makes it; a function that stays the same is never told so."""
    times = np.array([0.9, 0.5])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for i in range(5):
            _sample(**make(i), times=times)
    assert len(told) == 1
    assert told[0].filename == __file__
    code = make.__code__
    assert f"{code.co_filename}:{code.co_firstlineno + 1}" in str(told[0].message)
    same = make(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            _sample(**same, times=times)


def test_the_ends_of_an_interval_hold_against_roundings():
    """The same time in three computations, in float32 and float64: inside at either end."""
    lo = gj.interval(3.0, lo=0.2, hi=0.8)
    same = (0.2, 1 - 0.8, np.float32(1) - np.float32(0.8), np.float32(0.2), 0.1 + 0.1)
    for time in same:
        for t in (time, 1 - time):
            assert float(lo(s=0.0, t=t)) == 3.0
            assert bool(lo.active(0.0, t))
    for t in (0.2 - 1e-4, 0.8 + 1e-4):
        assert float(lo(s=0.0, t=t)) == 0.0
        assert not bool(lo.active(0.0, t))
    # In somebody's loop over float32 times, counted down.
    t, inside = np.float32(1), []
    for _ in range(10):
        inside.append(float(lo(s=t - np.float32(0.1), t=t)) > 0)
        t = np.float32(t - np.float32(0.1))
    assert inside == [False, False, *[True] * 7, False]


@pytest.mark.parametrize(
    ("start", "stop", "steps"), [(0.0, 0.29, 100), (0.1, 0.7, 10), (0.3, 0.55, 20), (0.0, 0.25, 50)]
)
def test_cutoff_counts_the_products_as_they_are_meant(start, stop, steps):
    """⌊start · N⌋ ≤ i < ⌊stop · N⌋ in exact arithmetic, which a rounded product can miss."""
    from fractions import Fraction

    first, last = (int(Fraction(str(share)) * steps) for share in (start, stop))
    table = gj.schedules.cutoff(2.0, start, stop).table(gj.uniform_times(steps))
    want = [2.0 if first <= i < last else 0.0 for i in range(steps)]
    np.testing.assert_array_equal(table, want)
    assert int(0.29 * 100) == 28  # what truncates the rounded product is a step early


@pytest.mark.slow
def test_fdg_projected_is_what_its_docstring_says():
    """η = 1 is `fdg`, each band adding to c; it is affine in η."""
    cond, uncond = jax.random.normal(KEY, (2, 3, 8, 8, 2))
    rules = gj.rules
    numbers = {"low": 0.4, "levels": 2}
    run = jax.jit(lambda eta: rules.fdg_projected(cond, uncond, 2.0, parallel=eta, **numbers))
    plain = rules.fdg(cond, uncond, 2.0, **numbers)
    np.testing.assert_allclose(run(1.0), plain, rtol=1e-4, atol=1e-5)
    # Affine in η, between the two ends.
    np.testing.assert_allclose(run(0.3), 0.3 * run(1.0) + 0.7 * run(0.0), rtol=1e-4, atol=1e-5)
