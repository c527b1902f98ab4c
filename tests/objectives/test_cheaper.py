"""Estimators of fewer evaluations: the same loss and gradient in expectation as the paper's."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import special, stats

import guidejax as gj
from guidejax import objectives
from guidejax.objectives.base import expected_power
from tests.helpers import RUNS_LONG
from tests.learning.common import EXACT, KEY, MODEL, NET, PROCESS, examples

N = 24_000
PHI = jax.tree.map(lambda a: a + 0.05 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), NET.init(KEY))
CHEAPER = {
    "ends": {"ends": 3},
    "antithetic": {"antithetic": True},
    "expected": {"noise": "expected"},
    "two particles": {"particles": 2, "ends": 4, "noise": "expected"},
    "all": {"ends": 2, "antithetic": True, "noise": "expected"},
    "all, sampled": {"ends": 2, "antithetic": True},
    "uniform": {"t_density": "uniform"},
    "with a reference": {"reference": 40, "ends": 3, "noise": "expected"},
    "most": {
        "particles": 2,
        "ends": 4,
        "noise": "expected",
        "t_density": "uniform",
        "reference": 40,
    },
    "without churn": {"ends": 2, "antithetic": True, "noise": "expected", "churn": 0.0},
}


def consistency(beta=1.75, particles=4, **options):
    return objectives.self_consistency(beta, particles, s_min=0.02, t_max=0.95, **options)


@functools.partial(jax.jit, static_argnums=(1, 2), compiler_options=RUNS_LONG)
def _losses_and_slopes(objective, kept, reference):
    batch, keys = examples(N), jax.random.split(jax.random.key(7), N)

    def one(key, row):
        row = jax.tree.map(lambda a: a[None], row)
        if reference:
            # Of the same distribution as the example, another each time.
            cond = jnp.arange(reference) % 2
            known = MODEL.sample(jax.random.fold_in(key, 2), cond), cond
            loss_of = dataclasses.replace(objective, reference=known)
        else:
            loss_of = objective
        if kept:
            found = objective.evaluate(key[None], ("cond", "uncond"), EXACT, row)
            row, key = row._replace(evaluations=found), jax.random.fold_in(key, 1)
        guide = lambda phi: gj.guidance(gj.cfg, omega=NET.weight(phi))
        loss = lambda phi: loss_of(key[None], guide(phi), EXACT, row)[0]
        value, slope = jax.value_and_grad(loss)(PHI)
        return jnp.concatenate([value[None], *(a.ravel() for a in jax.tree.leaves(slope))])

    return jax.lax.map(lambda a: one(*a), (keys, batch), batch_size=1000)


@functools.cache
def values(kept=False, reference=0, **options):
    """(N, 1 + number of φ): the loss of each example and its gradient."""
    return np.asarray(_losses_and_slopes(consistency(**options), kept, reference), float)


def agree(a, b):
    """Means within Monte Carlo error, in every number and in all of them together."""
    error = np.hypot(a.std(axis=0), b.std(axis=0)) / np.sqrt(N)
    moved = error > 0
    z = (a.mean(axis=0) - b.mean(axis=0))[moved] / error[moved]
    assert np.abs(z).max() < 4.5
    assert np.mean(z**2) < 2.5


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAPER)
def test_same_loss_and_gradient_in_expectation(name):
    options = CHEAPER[name]
    paper = values(churn=options.get("churn", 1.0))
    cheaper = values(**options)
    agree(cheaper, paper)
    if options.get("t_density") == "uniform":
        return  # Noisier far from the optimum, where most of the gradient is at large t.
    # None of the others is noisier.
    assert cheaper.var(axis=0).sum() < 1.02 * paper.var(axis=0).sum() * (
        2 if "particles" in options else 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 1.75])
def test_kept_evaluations_have_the_same_expectation(beta):
    agree(values(kept=True, beta=beta, ends=2, noise="expected"), values(beta=beta))


@pytest.mark.slow
def test_fewer_evaluations_do_more():
    """The variance of the gradient an evaluation, at least four times below the paper's."""
    cost = lambda particles, **options: (
        2 * particles * (values(particles=particles, **options)[:, 1:].var(axis=0).sum())
    )
    assert cost(2, ends=4, noise="expected") < cost(4) / 4


@pytest.mark.slow
def test_ends_are_of_the_density_that_the_paper_draws():
    objective = consistency(ends=5)
    keys = jax.random.split(KEY, 200_000)
    s, t = (np.asarray(a) for a in objective.times(keys))
    ends = np.asarray(objective.ends_of(jax.random.split(jax.random.key(1), len(t)), t))
    assert ends.shape == (len(t), 5)
    assert np.all((ends >= 0.02) & (ends <= t[:, None] - 0.1 + 1e-6))
    bins = np.linspace(0.12, 0.95, 8)
    for low, high in itertools.pairwise(bins):
        chosen = (t >= low) & (t < high)
        quantiles = np.linspace(0.05, 0.95, 9)
        np.testing.assert_allclose(
            np.quantile(ends[chosen], quantiles), np.quantile(s[chosen], quantiles), atol=0.012
        )
    # One in each stratum: in order, where they are drawn.
    assert np.all(np.diff(ends, axis=1)[t > 0.2] != 0)


@pytest.mark.slow
def test_uniform_times_are_weighted_to_the_same_density():
    keys = jax.random.split(KEY, 200_000)
    even, nested = consistency(t_density="uniform"), consistency()
    s, t = (np.asarray(a, float) for a in even.times(keys))
    assert stats.kstest((t - 0.12) / 0.83, "uniform").pvalue > 1e-3
    weight = np.asarray(even.weight(jnp.asarray(t)), float)
    assert weight.min() >= 0
    np.testing.assert_allclose(weight.mean(), 1, atol=0.01)
    s2, t2 = (np.asarray(a, float) for a in nested.times(keys))
    for value in (lambda s, t: t, lambda s, t: s, lambda s, t: s * t**2, lambda s, t: t > 0.9):
        np.testing.assert_allclose(
            np.mean(weight * value(s, t)), np.mean(value(s2, t2)), rtol=0.015
        )


@pytest.mark.slow
def test_a_reference_of_nobody_else_is_no_reference():
    """Its own x0 twice, one of another class, one that is far away."""
    batch, keys = examples(1), jax.random.split(KEY, 1)
    known = jnp.stack([batch.x0[0], batch.x0[0] + 0.1, batch.x0[0] + 90]), jnp.array([0, 1, 0])
    options = {"ends": 2, "noise": "expected"}
    guide = gj.guidance(gj.cfg, omega=0.5)
    loss = lambda **more: jax.jit(
        lambda: consistency(**options, **more)(keys, guide, EXACT, batch)
    )()
    np.testing.assert_allclose(loss(reference=known), loss(), rtol=1e-6)


@pytest.mark.slow
def test_the_posterior_of_a_reference_in_bfloat16():
    """In many dimensions inner products are large, and their differences are what counts."""
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.normal(size=(40, 3072)) * 0.04 + rng.normal(size=3072), jnp.bfloat16)
    cond = jnp.zeros(40, int)
    objective = consistency(ends=8, noise="expected", reference=(points, cond))
    denoise = gj.denoiser(lambda x, t, c: x, gj.processes.rectified_flow())
    keys, t = jax.random.split(KEY, 40), jnp.full(40, 0.5)

    kept = objective._at(t, keys, ("cond",), denoise, objectives.Batch(points, cond, {}), {})

    def chosen(dtype):
        known, said = jax.tree.map(lambda a: a.astype(dtype), (points, kept._replace(t=t)))
        of = dataclasses.replace(objective, reference=(known, cond))
        return of._others(keys, objectives.Batch(known, cond, {}), said, denoise.process)

    narrow, wide = (np.asarray(chosen(a), float) for a in (jnp.bfloat16, jnp.float32))
    own = np.asarray(jnp.repeat(points, 8 * objective.particles, axis=0), float)
    assert 0.2 < np.mean(np.all(wide == own, axis=1)) < 0.8
    assert np.mean(np.all(narrow == wide, axis=1)) > 0.98


def test_a_reference_is_of_the_batch_s_kind():
    batch = examples(4)
    objective = consistency(noise="expected", reference=REFERENCE)
    objective.check_batch(batch, "batch 0")
    one_hot = batch._replace(cond=jax.nn.one_hot(batch.cond, 2))
    with pytest.raises(ValueError, match="batch 0 has the shapes"):
        objective.check_batch(one_hot, "batch 0")


@pytest.mark.slow
def test_one_pair_of_times():
    objective = objectives.self_consistency(s_min=0.4, min_gap=0.1, t_max=0.5, ends=3)
    ends = objective.ends_of(jax.random.split(KEY, 2), jnp.full(2, 0.5))
    np.testing.assert_allclose(ends, 0.4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("beta", [0.5, 1.0, 1.75, 2.0])
def test_expected_power_is_the_noncentral_moment(dim, beta):
    square = np.array([0.0, 1e-4, 0.1, 1.0, 40.0])[:, None]
    variance = np.array([1e-6, 0.01, 0.5, 3.0])
    first = (2 * variance) ** (beta / 2) * special.gamma((dim + beta) / 2) / special.gamma(dim / 2)
    expected = first * special.hyp1f1(-beta / 2, dim / 2, -square / (2 * variance))
    found = expected_power(*(jnp.asarray(a, jnp.float32) for a in (square, variance)), dim, beta)
    known = np.isfinite(expected) & (expected > 0)  # SciPy's own overflows.
    np.testing.assert_allclose(np.asarray(found)[known], expected[known], rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 200_000])
def test_expected_power_where_nothing_varies(dim):
    value = lambda square, variance: expected_power(square, variance, dim, 1.0)
    both = jax.vmap(jax.value_and_grad(value, argnums=(0, 1)))
    zero = jnp.zeros(3)
    found, slopes = both(jnp.array([0.0, 4.0, 1e-30]), zero)
    np.testing.assert_allclose(found, [0.0, 2.0, 1e-15], rtol=1e-5)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(slopes))
    assert slopes[0][0] == 0
    found, slopes = both(zero, jnp.array([0.0, 1e-12, 9.0]))
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves((found, slopes)))


def still(x, t, cond):
    return jnp.zeros_like(x)


@pytest.mark.slow
@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_finite_where_all_is_the_same(churn):
    """cond = uncond = x0 = 0, with particles at one point where there is no churn."""
    objective = objectives.self_consistency(1.0, 4, antithetic=True, ends=2, noise="expected",
                                            churn=churn)  # fmt: skip
    batch = objectives.Batch(jnp.zeros((3, 2)), jnp.zeros(3, int), {"uncond": jnp.ones(3, int)})
    loss = lambda omega: jnp.sum(
        objective(
            jax.random.split(KEY, 3), gj.guidance(gj.cfg, omega=omega),
            gj.denoiser(still, PROCESS), batch,
        )
    )  # fmt: skip
    value, slope = jax.jit(jax.value_and_grad(loss))(0.5)
    assert np.isfinite(value)
    assert slope == 0


REFERENCE = MODEL.sample(KEY, jnp.arange(9) % 2), jnp.arange(9) % 2


def made(name):
    options = dict(CHEAPER[name])
    if "reference" in options:
        options["reference"] = REFERENCE
    return consistency(**options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "all, sampled", "two particles", "most"])
def test_each_loss_is_of_its_own_example(name):
    """A part of the batch, in another order, under jit and under vmap."""
    objective = made(name)
    batch, keys = examples(8), jax.random.split(KEY, 8)
    guide = gj.guidance(gj.cfg, omega=0.5)
    loss = jax.jit(lambda keys, batch: objective(keys, guide, EXACT, batch))
    whole = np.asarray(loss(keys, batch))
    part = jnp.array([5, 0])
    some = loss(keys[part], jax.tree.map(lambda a: a[part], batch))
    np.testing.assert_allclose(some, whole[part], rtol=2e-6)
    one = lambda key, row: loss(key[None], jax.tree.map(lambda a: a[None], row))[0]
    np.testing.assert_allclose(jax.vmap(one)(keys, batch), whole, rtol=2e-6)
    if name == "most":  # Compiled operation by operation: for one that has all options.
        np.testing.assert_allclose(objective(keys, guide, EXACT, batch), whole, rtol=2e-6)


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("name", ["all", "most"])
def test_under_shard_map(mesh, name):
    objective = made(name)
    count = 2 * mesh.size
    batch, keys = examples(count), jax.random.split(KEY, count)
    loss = lambda keys, batch: objective(keys, gj.guidance(gj.cfg, omega=0.5), EXACT, batch)
    split = PartitionSpec(mesh.axis_names)
    there = jax.device_put((keys, batch), NamedSharding(mesh, split))
    run = jax.shard_map(loss, mesh=mesh, in_specs=(split, split), out_specs=split)
    np.testing.assert_allclose(jax.jit(run)(*there), jax.jit(loss)(keys, batch), rtol=1e-5)


@pytest.mark.slow
def test_a_state_of_several_parts_and_a_reward():
    split = lambda x: {"a": x[:, :1], "b": x[:, 1:]}
    batch = objectives.Batch(split(jax.random.normal(KEY, (3, 3))), jnp.zeros(3, int),
                             {"uncond": jnp.ones(3, int)})  # fmt: skip
    halves = lambda x, t, cond: jax.tree.map(lambda a: a * (1 + cond[:, None]), x)
    objective = consistency(
        particles=2, ends=3, noise="expected", reward_weight=0.5,
        reward=lambda x0, cond: jnp.sum(x0["a"], axis=1),
    )  # fmt: skip
    loss = jax.jit(objective)(jax.random.split(KEY, 3), gj.guidance(gj.cfg, omega=0.5),
                              gj.denoiser(halves, PROCESS), batch)  # fmt: skip
    assert loss.shape == (3,)
    assert np.all(np.isfinite(loss))


@pytest.mark.parametrize(
    "options",
    [{"ends": 0}, {"antithetic": True, "particles": 2}, {"antithetic": True, "particles": 5},
     {"noise": "none"}, {"t_density": "even"}, {"reference": REFERENCE},
     {"reference": (jnp.zeros((3, 2)), jnp.zeros(2)), "noise": "expected"},
     {"t_density": "uniform", "s_min": 0.4, "t_max": 0.5}],
)  # fmt: skip
def test_refused(options):
    with pytest.raises(ValueError, match=r"expected|antithetic"):
        objectives.self_consistency(**options)


def test_antithetic_pairs_without_the_second_term():
    assert objectives.l2(2, antithetic=True).antithetic


# Rollouts.


def roll(count=1500, size=24, **options):
    """(count, 2): the loss of batches of two classes, and its slope in ω."""
    objective = gj.rollout(particles=size // 2, steps=5, pooled=0.8, remat="none", **options)

    def one(key):
        draw, run = jax.random.split(key)
        cond = jnp.repeat(jnp.arange(2), size // 2)
        batch = objectives.Batch(
            MODEL.sample(draw, cond), cond, {"uncond": jnp.full(size, MODEL.null)}
        )
        keys = jax.random.split(run, size)
        loss = lambda omega: jnp.mean(
            objective(keys, gj.guidance(gj.cfg, omega=omega), EXACT, batch)
        )
        return jnp.stack(jax.value_and_grad(loss)(0.7))

    keys = jax.random.split(KEY, count)
    return np.asarray(jax.jit(lambda: jax.lax.map(one, keys, batch_size=250))(), float)


@pytest.mark.slow
def test_a_few_samples_stand_for_the_slope_of_all():
    whole, few = roll(), roll(differentiate=3)
    np.testing.assert_allclose(few[:, 0], whole[:, 0], rtol=1e-4, atol=1e-5)
    gap = few[:, 1] - whole[:, 1]
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))
    assert few[:, 1].std() < 2.1 * whole[:, 1].std()  # of (12/3)^½ at most


@pytest.mark.slow
def test_a_reference_takes_noise_away():
    cond = jnp.arange(2000) % 2
    whole = roll()
    found = roll(reference=(MODEL.sample(jax.random.key(1), cond), cond))
    assert abs(found[:, 1].mean() - whole[:, 1].mean()) < 0.1 * abs(whole[:, 1].mean())
    assert found.std(axis=0)[1] < 0.7 * whole.std(axis=0)[1]


@pytest.mark.parametrize("options", [{"differentiate": 0}, {"differentiate": 9},
                                     {"pooled": 0.5, "reference": (jnp.ones((1, 2)), jnp.ones(1))},
                                     {"reference": jnp.zeros((4, 2)), "pooled": 0.5},
                                     {"reference": (jnp.zeros((4, 2)), None), "pooled": 0.5},
                                     {"times": [1.0, 0.5, 0.2]}])  # fmt: skip
def test_rollout_refuses(options):
    with pytest.raises(ValueError, match="rollout expects"):
        gj.rollout(particles=8, **options)
