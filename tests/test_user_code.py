"""Whole roads, as somebody with a model of their own would write them, against loops by hand."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import guidejax as gj
from guidejax import learning

KEY = jax.random.key(0)


# Stable Diffusion: ε, told the index of a table of 1,000; embeddings with a mask.


def unet(params, x, index, text, xp=jnp):
    """ε(x, index, text), in JAX or in NumPy."""
    weights = text["mask"][..., None] / xp.sum(text["mask"], axis=1)[:, None, None]
    pooled = xp.sum(weights * text["tokens"], axis=1) @ params["text"]
    time = xp.stack([xp.sin(index / 50), xp.cos(index / 300)], axis=-1) @ params["time"]
    hidden = xp.tanh(x @ params["in"] + (pooled + time)[:, None, None])
    return x * 0.5 + hidden @ params["out"]


@functools.cache
def unet_params():
    draw = np.random.default_rng(0).normal
    shapes = {"text": (6, 8), "time": (2, 8), "in": (4, 8), "out": (8, 4)}
    return {name: draw(size=shape).astype(np.float32) / 2 for name, shape in shapes.items()}


def embeddings(length, seed, batch=2):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(batch, length, 6)).astype(np.float32)
    mask = (np.arange(length) < rng.integers(1, length + 1, (batch, 1))).astype(np.float32)
    return {"tokens": tokens, "mask": mask}


def cfg_in_numpy(c, u, w):
    return u + w * (c - u)


def adg_in_numpy(c, u, w):
    """Algorithm 1 of 2506.11039 on clean predictions."""
    flat = lambda a: a.reshape(len(a), -1)
    inner = lambda a, b: np.sum(flat(a) * flat(b), axis=1)[:, None, None, None]
    along = inner(c, u) / inner(u, u) * u
    theta = np.arccos(inner(c, u) / np.sqrt(inner(c, c) * inner(u, u)))
    turn = np.minimum((w - 1) * theta, np.pi / 3)
    return np.cos(turn) * c + np.sin(turn) / np.sin(theta) * (c - along)


def ddim_in_numpy(x, indices, text, other, w, rule):
    """The loop of a PyTorch user, in float64; also the indices that the network was told."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    params = {name: a.astype(float) for name, a in unet_params().items()}
    for i, index in enumerate(indices):
        a = alphas_cumprod[index]
        before = alphas_cumprod[indices[i + 1]] if i + 1 < len(indices) else 1.0
        told = np.full(len(x), float(index))
        eps_c, eps_u = (unet(params, x, told, each, np) for each in (text, other))
        c, u = ((x - (1 - a) ** 0.5 * eps) / a**0.5 for eps in (eps_c, eps_u))
        x0 = rule(c, u, w)
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        x = before**0.5 * x0 + (1 - before) ** 0.5 * eps
    return x


INDICES = np.arange(999, -1, -100)


@pytest.mark.parametrize("name", ["cfg", "adg"])
def test_stable_diffusion(name):
    text, null = embeddings(5, seed=1), embeddings(5, seed=2)
    null = {part: a[:1] for part, a in null.items()}  # one null prompt for all
    noise = np.random.default_rng(3).normal(size=(2, 4, 4, 4)).astype(np.float32)

    process = gj.processes.scaled_linear()
    denoise = gj.denoiser(unet, process, prediction="eps", time="index", params=unet_params())
    x = gj.sample(
        KEY, denoise, noise, cond=text, uncond=null,
        guidance=gj.guidance(getattr(gj, name), omega=gj.from_scale(7.5)),
        times=np.append(process.times(INDICES), 0),
    )  # fmt: skip

    both = {part: np.repeat(a, 2, axis=0) for part, a in null.items()}
    rule = {"cfg": cfg_in_numpy, "adg": adg_in_numpy}[name]
    want = ddim_in_numpy(noise.astype(float), INDICES, text, both, 7.5, rule)
    plain = ddim_in_numpy(noise.astype(float), INDICES, text, text, 1, cfg_in_numpy)
    assert np.abs(want - plain).max() > 0.1
    np.testing.assert_allclose(x, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.slow
def test_a_negative_prompt_of_another_length():
    text, negative = embeddings(5, seed=1), embeddings(3, seed=2)
    noise = np.random.default_rng(3).normal(size=(2, 4, 4, 4)).astype(np.float32)
    process = gj.processes.scaled_linear()
    denoise = gj.denoiser(unet, process, prediction="eps", time="index", params=unet_params())
    run = functools.partial(
        gj.sample, KEY, denoise, noise, cond=text, times=np.append(process.times(INDICES), 0)
    )
    want = ddim_in_numpy(noise.astype(float), INDICES, text, negative, 3.0, cfg_in_numpy)
    guide = gj.guidance(gj.negative_prompt, omega=2.0)
    for branches in ("sequential", "batched"):  # of two shapes, they can't share a pass
        x = run(guidance=guide, conditions={"negative": negative}, branches=branches)
        np.testing.assert_allclose(x, want, rtol=0, atol=2e-5 * np.abs(want).max())
    x = run(guidance=gj.guidance(gj.cfg, omega=2.0), uncond=negative)
    np.testing.assert_allclose(x, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cfg", "adg"])
def test_one_line_in_somebody_else_s_loop(name):
    """The loop in terms of alphas_cumprod stays; guidance is the one line."""
    text, null = embeddings(5, seed=1), embeddings(5, seed=2)
    x = np.random.default_rng(3).normal(size=(2, 4, 4, 4)).astype(np.float32)
    rule = {"cfg": cfg_in_numpy, "adg": adg_in_numpy}[name]
    want = ddim_in_numpy(x.astype(float), INDICES, text, null, 7.5, rule)
    process = gj.processes.scaled_linear()
    guide = gj.guidance(getattr(gj, name), omega=6.5)
    alphas_cumprod = np.append(np.asarray(process.alpha(process.times(np.arange(1000)))) ** 2, 1)

    @jax.jit
    def step(x, index, a, before):
        told = jnp.full(len(x), index, jnp.float32)
        eps_c, eps_u = (unet(unet_params(), x, told, each) for each in (text, null))
        eps = guide.combine(
            {"cond": eps_c, "uncond": eps_u}, x=x, t=(index + 1) / 1000, process=process,
            prediction="eps",
        )  # fmt: skip
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        return before**0.5 * x0 + (1 - before) ** 0.5 * eps

    for index, before in itertools.pairwise([*INDICES, 1000]):
        x = step(x, index, alphas_cumprod[index], alphas_cumprod[before])
    np.testing.assert_allclose(x, want, rtol=0, atol=2e-5 * np.abs(want).max())


# EDM: D(x, σ, label), guided by a weaker network of the same kind.

CENTRES = np.array([[2.0, -1.0], [-1.0, 1.0]], np.float32)
SPREAD = 0.5
EDM = gj.processes.edm(sigma_max=10.0, rho=3.0)


def network_d(error, x, sigma, label, xp=jnp):
    """The exact denoiser of N(centre, SPREAD²), off by `error` in one direction."""
    centre = xp.asarray(CENTRES)[label]
    keep = (SPREAD**2 / (SPREAD**2 + sigma**2))[:, None]
    return centre + keep * (x - centre) + error * xp.asarray([1.0, 0.5])


def edm_networks():
    """A network and a weaker one, twice as wrong: at ω = 1 autoguidance is exact."""
    make = lambda error: gj.denoiser(network_d, EDM, time="sigma", params=error)
    return make(0.4), make(0.8)


def test_edm_with_a_weak_network_against_heun_by_hand():
    denoise, weak = edm_networks()
    labels, omega = np.array([0, 1, 1]), 1.5
    times = gj.karras_times(EDM, 8, sigma_min=0.02, sigma_max=8.0)
    noise = 8.0 * np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    run = functools.partial(
        gj.sample, KEY, denoise, noise, cond=labels, times=times, solver=gj.solvers.edm_heun(),
        guidance=gj.guidance(gj.autoguidance, omega=omega),
    )  # fmt: skip

    # Algorithm 1 of 2206.00364 without churn, in float64.
    sigmas = np.append((8 ** (1 / 7) + np.arange(8) / 7 * (0.02 ** (1 / 7) - 8 ** (1 / 7))) ** 7, 0)

    def slope(x, sigma):
        told = np.full(3, sigma)
        strong, worse = (network_d(error, x, told, labels, np) for error in (0.4, 0.8))
        return (x - (strong + omega * (strong - worse))) / sigma

    x = noise.astype(float)
    for sigma, after in itertools.pairwise(sigmas):
        d = slope(x, sigma)
        moved = x + (after - sigma) * d
        if after > 0:
            moved = x + (after - sigma) * (d + slope(moved, after)) / 2
        x = moved
    for given in (weak, (weak, labels)):
        got = run(conditions={"weak": given})
        np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-4)


def batches_of_labels(size=64):
    rng = np.random.default_rng(0)
    while True:
        label = rng.integers(0, 2, size)
        yield {
            "x0": (CENTRES[label] + SPREAD * rng.normal(size=(size, 2))).astype(np.float32),
            "cond": label.astype(np.int32),
        }


TIMES_ONLY = gj.OmegaNet(hidden=8, depth=1, init_omega=0.2)
ADAM = optax.adam(0.03)


@pytest.mark.slow
def test_autoguidance_s_omega_is_learned():
    """Where ω = 1 is exact, self-consistency finds it, from 0.2."""
    denoise, weak = edm_networks()
    phi = gj.fit_omega(
        KEY, TIMES_ONLY, denoise, batches_of_labels(), rule=gj.autoguidance,
        conditions={"weak": weak}, objective=gj.self_consistency(beta=1.0, s_min=0.05),
        optimizer=ADAM, steps=100,
    )  # fmt: skip
    omega = TIMES_ONLY.weight(phi)
    s = np.array([0.05, 0.2, 0.3])
    learned = np.asarray(omega(s, s + 0.2, process=EDM))
    np.testing.assert_allclose(learned, 1.0, atol=0.2)
    # Any number of one's own, by fit: the same ω, the same place.
    omega = gj.fit(
        KEY, autoguidance_at, jnp.float32(0.2), denoise, batches_of_labels(),
        conditions={"weak": weak}, objective=gj.self_consistency(beta=1.0, s_min=0.05),
        optimizer=ADAM, steps=100,
    )  # fmt: skip
    np.testing.assert_allclose(omega, 1.0, atol=0.1)


def autoguidance_at(omega):
    return gj.guidance(gj.autoguidance, omega=omega)


# A weight that sees the angle.

FLOW = gj.processes.rectified_flow()
SEEING = gj.OmegaNet(hidden=8, depth=1, sees=("angle",), init_omega=0.2)


def off(error, x, t, cond):
    """The exact denoiser of N(centre, SPREAD²) for labels, off by `error`; by twice, for null."""
    centre = jnp.asarray(CENTRES)[cond % 2]
    alpha, sigma = 1 - t[:, None], t[:, None]
    exact = (sigma**2 * centre + alpha * SPREAD**2 * x) / (alpha**2 * SPREAD**2 + sigma**2)
    return exact + error * jnp.where(cond >= 2, 2, 1)[:, None] * jnp.asarray([1.0, 0.5])


def off_denoiser():
    """At ω = 1, CFG of it is exact; the null label of y is y + 2."""
    return gj.denoiser(off, FLOW, params=0.4)


def batches_with_null(size=64):
    """Blocks of 8 examples of one label, as `rollout` takes them."""
    for batch in batches_of_labels(size):
        label = np.repeat(batch["cond"][::8], 8)
        x0 = CENTRES[label] + SPREAD * np.random.default_rng(label.sum()).normal(size=(size, 2))
        yield {"x0": x0.astype(np.float32), "cond": label, "uncond": label + 2}


def seeing_guide(phi):
    return gj.guidance(gj.cfg, omega=SEEING.weight(phi))


def shaken(phi):
    """φ at which every layer has a part: the last begins at zero."""
    leaves, treedef = jax.tree.flatten(phi)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return treedef.unflatten(
        [a + 0.3 * jax.random.normal(key, a.shape) for a, key in zip(leaves, keys, strict=True)]
    )


OBJECTIVES = {
    "self_consistency": gj.self_consistency(beta=1.0),
    "rollout": gj.rollout(particles=8, steps=4),
}


def loss_of(name, phi, batch, key=KEY):
    batch = gj.objectives.Batch(batch["x0"], batch["cond"], {"uncond": batch["uncond"]})
    keys = jax.random.split(key, len(batch.cond))
    return jnp.mean(OBJECTIVES[name](keys, seeing_guide(phi), off_denoiser(), batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_weight_that_sees_the_angle_learns(name):
    start = SEEING.init(KEY)
    batch = next(batches_with_null(256))
    gradient = jax.jit(jax.grad(functools.partial(loss_of, name)))(shaken(start), batch)
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.isfinite(leaf))
    # Down to the weights of the angle, the last of the four features.
    assert np.any(np.abs(gradient["Dense_0"]["kernel"][3]) > 1e-6)

    phi = gj.fit(
        KEY, seeing_guide, start, off_denoiser(), batches_with_null(),
        objective=OBJECTIVES[name], optimizer=ADAM, steps=60,
    )  # fmt: skip
    loss = jax.jit(functools.partial(loss_of, name))
    assert loss(phi, batch) < loss(start, batch) - 1e-3
    # ω = 1 is exact; from 0.2 it has come most of the way, where the angle is that of the model.
    x, t = jax.random.normal(KEY, (64, 2)), jnp.full(64, 0.6)
    label = jnp.arange(64) % 2
    seen = {"cond": off_denoiser()(x, t, label), "uncond": off_denoiser()(x, t, label + 2)}
    omega = SEEING.weight(phi)(0.4, 0.6, label, process=FLOW, x=x, predictions=seen)
    assert omega.shape == (64,)
    assert 0.6 < float(jnp.mean(omega)) < 1.4


@pytest.mark.slow
def test_it_is_evaluated_in_the_loop():
    weight, denoise = SEEING.weight(shaken(SEEING.init(KEY))), off_denoiser()
    label, times = jnp.array([0, 1, 1]), np.array([0.9, 0.6, 0.3, 0.0])
    x = jax.random.normal(KEY, (3, 2))
    got = gj.sample(
        KEY, denoise, x, cond=label, uncond=label + 2, times=times,
        guidance=gj.guidance(gj.cfg, omega=weight),
    )  # fmt: skip
    omegas = []
    for t, s in itertools.pairwise(times):
        c, u = denoise(x, t, label), denoise(x, t, label + 2)
        omegas.append(weight(s, t, process=FLOW, x=x, predictions={"cond": c, "uncond": u}))
        x0 = c + omegas[-1][:, None] * (c - u)
        x = s / t * x + ((1 - s) - s / t * (1 - t)) * x0
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)
    assert np.ptp(np.asarray(omegas), axis=1).min() > 1e-3  # each sample has its own


@jax.custom_vjp
def forward_only(x):
    return jnp.tanh(x)


def _refuse(_, cotangent):
    raise AssertionError("the network was differentiated")


forward_only.defvjp(lambda x: (forward_only(x), None), _refuse)


@pytest.mark.slow
def test_self_consistency_makes_no_backward_pass_through_the_network():
    """Whatever ω sees of x_t and of the predictions."""
    everything = gj.OmegaNet(hidden=8, depth=1, sees=("angle", "norms", "delta", "state"))
    denoise = gj.denoiser(lambda x, t, c: forward_only(x) * (1 + c)[:, None], FLOW)
    batch = gj.objectives.Batch(jnp.ones((8, 2)), jnp.arange(8) % 2, {"uncond": jnp.full(8, 2)})
    keys = jax.random.split(KEY, 8)

    def gradient(objective):
        def loss(phi):
            guide = gj.guidance(gj.apg, omega=everything.weight(phi))
            return jnp.mean(objective(keys, guide, denoise, batch))

        return jax.eval_shape(jax.grad(loss), everything.init(KEY))

    gradient(gj.self_consistency())
    with pytest.raises(AssertionError, match="differentiated"):  # the mark works
        gradient(gj.rollout(particles=4, steps=2))


# Several numbers by one network of a part of the condition, saved and loaded.


def pooled(cond):
    return cond["pooled"]


PARTIAL = gj.OmegaNet(cond_dim=3, cond=pooled, outputs=("omega", "eta"), hidden=8, depth=1)
NULL = {"pooled": np.zeros(3, np.float32), "tokens": np.zeros((1, 4), np.float32)}


def texted(x, t, cond):
    centre = cond["pooled"][:, :2] + jnp.mean(cond["tokens"], axis=1)[:, :2]
    return t[:, None] * centre + (1 - t)[:, None] * x


def apg_guide(phi):
    return gj.guidance(gj.apg, **PARTIAL.weights(phi))


def texts(size=16):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    while True:
        cond = {"pooled": draw(size, 3), "tokens": draw(size, 5, 4)}
        yield {"x0": draw(size, 2), "cond": cond}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def changed(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.slow
def test_two_numbers_of_apg_by_one_network_of_a_part_of_the_condition(tmp_path):
    denoise = gj.denoiser(texted, FLOW)
    options = {"objective": gj.self_consistency(particles=2), "optimizer": ADAM, "uncond": NULL}
    start = PARTIAL.init(KEY)
    phi = gj.fit(
        KEY, apg_guide, start, denoise, texts(), steps=4, checkpoint_dir=tmp_path / "fit", **options
    )
    assert changed(phi, start)
    same(learning.load(tmp_path / "fit", start), phi)

    again = gj.fit_omega(
        KEY, PARTIAL, denoise, texts(), rule=gj.apg, steps=4,
        checkpoint_dir=tmp_path / "omega", **options,
    )  # fmt: skip
    net, loaded = gj.load_omega(tmp_path / "omega", PARTIAL)
    assert net is PARTIAL
    same(loaded, again)
    with pytest.raises(ValueError, match="load_omega"):  # a function can't be made again
        gj.load_omega(tmp_path / "omega")

    # Both numbers move, each in its range, and each sample has its own.
    batch = next(texts(4))
    weights = PARTIAL.weights(again)
    omega, eta = (weights[n](0.4, 0.6, batch["cond"], process=FLOW) for n in ("omega", "eta"))
    for number, init in ((omega, 1.0), (eta, 0.5)):
        assert number.shape == (4,)
        assert np.ptp(number) > 0
        assert np.all(np.abs(number - init) > 1e-5)
    assert np.all((eta > 0) & (eta < 1))
    # What `sample` does with them is APG at these numbers.
    x = gj.sample(
        KEY, denoise, batch["x0"], cond=batch["cond"], uncond=NULL,
        guidance=gj.guidance(gj.apg, **weights), times=np.array([0.6, 0.4]),
    )  # fmt: skip
    t = jnp.full(4, 0.6)
    null = jax.tree.map(lambda a: np.broadcast_to(a, (4, *a.shape)), NULL)
    x0 = gj.apg(texted(batch["x0"], t, batch["cond"]), texted(batch["x0"], t, null), omega, eta=eta)
    s_over_t = 0.4 / 0.6
    want = s_over_t * batch["x0"] + (0.6 - s_over_t * 0.4) * x0
    np.testing.assert_allclose(x, want, rtol=1e-4, atol=1e-5)


# A weight of one's own.


def row_a_step(phi):
    return gj.guidance(gj.cfg, omega=gj.schedules.table(phi))


def knots(phi):
    return gj.guidance(gj.cfg, omega=gj.schedules.table(phi, times=[1.0, 0.5, 0.0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guide", "objective", "phi"),
    [
        (row_a_step, OBJECTIVES["rollout"], [0.2, 0.2, 0.2, 0.2]),
        (knots, OBJECTIVES["self_consistency"], [0.2, 0.2, 0.2]),
    ],
    ids=["row a step", "knots"],
)
def test_a_table_is_learned_saved_and_loaded(tmp_path, guide, objective, phi):
    start = jnp.array(phi)
    options = {"objective": objective, "optimizer": ADAM, "checkpoint_dir": tmp_path}
    run = functools.partial(gj.fit, KEY, guide, start, off_denoiser())
    half = run(batches_with_null(), steps=20, **options)
    found = run(batches_with_null(), steps=40, **options)  # goes on where it stopped
    straight = run(batches_with_null(), steps=40, **{**options, "checkpoint_dir": None})
    np.testing.assert_array_equal(found, straight)
    same(learning.load(tmp_path, start), found)
    # ω = 1 is exact: they rise towards it.
    assert np.all(half > 0.3)
    assert np.all(found > half + 0.1)
    np.testing.assert_allclose(found, 1.0, atol=0.2)
    with pytest.raises(ValueError, match="other numbers"):
        learning.load(tmp_path, jnp.zeros(7))


class Line(nnx.Module):
    """ω = softplus of a line in t and the label."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, t, cond):
        t = jnp.broadcast_to(t, jnp.shape(cond)).astype(jnp.float32)
        return nnx.softplus(self.dense(jnp.stack([t, cond], axis=-1))[..., 0])


GRAPH, _ = nnx.split(Line(nnx.Rngs(0)))


def line_at(phi, step):
    return nnx.merge(GRAPH, phi)(step.t, step.cond)


@dataclasses.dataclass(frozen=True)
class LineNet:
    """A network for `fit_omega`: two methods."""

    seed: int = 0

    def init(self, key):
        return nnx.split(Line(nnx.Rngs(self.seed)))[1]

    def weights(self, phi):
        return {"omega": gj.Weight(phi, line_at)}


def line_guide(phi):
    return gj.guidance(gj.cfg, omega=gj.Weight(phi, line_at))


@pytest.mark.slow
def test_an_nnx_module_of_one_s_own(tmp_path):
    options = {"objective": OBJECTIVES["self_consistency"], "optimizer": ADAM}
    start = LineNet().init(KEY)
    phi = gj.fit(
        KEY, line_guide, start, off_denoiser(), batches_with_null(), steps=10,
        checkpoint_dir=tmp_path / "fit", **options,
    )  # fmt: skip
    assert changed(phi, start)
    same(learning.load(tmp_path / "fit", start), phi)

    net = LineNet()
    phi = gj.fit_omega(
        KEY, net, off_denoiser(), batches_with_null(), steps=10, checkpoint_dir=tmp_path / "omega",
        **options,
    )  # fmt: skip
    again, loaded = gj.load_omega(tmp_path / "omega", LineNet())
    same(loaded, phi)
    label = jnp.array([0, 1, 1])
    omega = again.weights(loaded)["omega"]
    x = gj.sample(
        KEY, off_denoiser(), jnp.ones((3, 2)), cond=label, uncond=label + 2,
        guidance=gj.guidance(gj.cfg, omega=omega), times=gj.uniform_times(4),
    )  # fmt: skip
    assert np.all(np.isfinite(x))
    np.testing.assert_allclose(omega(0.2, 0.5, label), nnx.merge(GRAPH, phi)(0.5, label))
    with pytest.raises(ValueError, match="another network"):
        gj.load_omega(tmp_path / "omega", LineNet(seed=1))
    with pytest.raises(ValueError, match="load_omega"):
        gj.load_omega(tmp_path / "omega")


# Two networks of rectified flow, sampled on another process.


def velocity(centre_and_spread, x, t, cond):
    """ε̂ − x̂0 of N(centre, spread²) on rectified flow."""
    centre, spread = centre_and_spread
    alpha, sigma = 1 - t[:, None], t[:, None]
    x0 = (sigma**2 * centre + alpha * spread**2 * x) / (alpha**2 * spread**2 + sigma**2)
    return (x - alpha * x0) / sigma - x0


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "process", [gj.processes.linear_vp, gj.processes.edm, gj.processes.scaled_linear]
)
def test_two_networks_of_rectified_flow_on_another_process(process):
    process, spread, wide, omega = process(), 0.5, 1.5, 1.2
    make = lambda spread: gj.denoiser(velocity, FLOW, "velocity", params=(0.0, spread))
    denoise, weak = make(spread).on(process), make(wide).on(process)
    t0, t1 = 0.9, 0.3
    size = lambda t: (float(process.alpha(t)), float(process.sigma(t)))
    x = size(t0)[1] * jax.random.normal(KEY, (3, 2))

    variance = lambda t, std: size(t)[0] ** 2 * std**2 + size(t)[1] ** 2

    # What each says is exact there.
    for network, std in ((denoise, spread), (weak, wide)):
        want = size(t0)[0] * std**2 * x / variance(t0, std)
        np.testing.assert_allclose(network(x, t0), want, rtol=1e-6)

    # And so is what they say together: the flow of two centred Gaussians under autoguidance.
    guide = gj.guidance(gj.autoguidance, omega=omega)
    even = jnp.linspace(process.log_snr(t0), process.log_snr(t1), 201)
    times = np.asarray(process.inverse_log_snr(even))
    got = gj.sample(
        KEY, denoise, x, conditions={"weak": weak}, guidance=guide, times=times, solver=gj.heun()
    )
    own, other = (variance(t1, std) / variance(t0, std) for std in (spread, wide))
    want = x * own ** ((1 + omega) / 2) * other ** (-omega / 2)
    np.testing.assert_allclose(got, want, rtol=1e-3)
    with pytest.raises(ValueError, match=r"\.on"):  # a network of another process is refused
        gj.sample(KEY, denoise, x, conditions={"weak": make(wide)}, guidance=guide, times=times)
