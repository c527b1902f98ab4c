"""The rollout's comparison of a batch as a whole, whatever its conditions are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.objectives import Batch
from tests.learning.common import EXACT, KEY, NET, examples


def _pairs(x, y, beta):
    return np.sum((x[:, None] - y[None]) ** 2, axis=-1) ** (beta / 2)


def _own(x, beta, share, size):
    """Each sample's mean distance to another: of its group of `size` with that share, or not."""
    group = np.arange(len(x)) // size
    same = group[:, None] == group[None]
    others = ~same
    np.fill_diagonal(same, False)
    pairs = _pairs(x, x, beta)
    within = (pairs * same).sum(axis=1) / np.maximum(same.sum(axis=1), 1)
    return share * within + (1 - share) * (pairs * others).sum(axis=1) / others.sum(axis=1)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_every_pair_counts_as_often_as_it_would_of_independent_samples(beta):
    x, y = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)
    far = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    cond = np.array([0, 1, 2, 0]).repeat(3)
    whole = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3])

    def found(**options):
        objective = gj.rollout(particles=3, steps=2, lam=0.8, beta=beta, **options)
        return objective.compare(jnp.asarray(x), Batch(jnp.asarray(y), jnp.asarray(cond), {}))

    # Each condition alone.
    groups = [slice(i, i + 3) for i in range(0, 12, 3)]
    cross = np.concatenate([_pairs(x[g], y[g], beta).mean(axis=1) for g in groups])
    own = sum(
        np.concatenate([_pairs(a[g], a[g], beta).sum(axis=1) / 2 for g in groups]) for a in (x, y)
    )
    each = cross - 0.4 * own
    np.testing.assert_allclose(found(), each, rtol=1e-5, atol=1e-5)
    # All of a batch of groups: one of the four is of a sample's own condition.
    own = _own(x, beta, 1 / 4, 3) + _own(y, beta, 1 / 4, 3)
    together = _pairs(x, y, beta).mean(axis=1) - 0.4 * own
    np.testing.assert_allclose(found(pooled=0.3), 0.7 * each + 0.3 * together, rtol=1e-5, atol=1e-5)
    # Beside a reference one in so many as there are of it; another group of the same condition
    # takes a part of that.
    rate = np.array([1 / 3, 2 / 9, 1 / 9, 1 / 3]).repeat(3)
    other = np.array([1 / 3, 0, 0, 1 / 3]).repeat(3)
    share = (rate - other) / (1 - other)
    pairs, same = _pairs(far, far, beta), whole[:, None] == whole[None]
    count = same.sum(axis=1, keepdims=True)
    within = count / (9 * np.maximum(count - 1, 1))
    between = np.where(count > 1, 1 - count / 9, 1) / (9 - count)
    weights = np.where(same, within, between)
    own = _own(x, beta, share, 3) + (weights * pairs).sum(axis=1).mean()
    together = _pairs(x, far, beta).mean(axis=1) - 0.4 * own
    np.testing.assert_allclose(
        found(pooled=0.3, reference=(far, whole)), 0.7 * each + 0.3 * together, rtol=1e-5, atol=1e-5
    )
    # Of any conditions: pairs of two rows.
    off = 1 - np.eye(12)
    means = [(_pairs(*both, beta) * off).sum(axis=1) / 11 for both in ((x, y), (x, x), (y, y))]
    np.testing.assert_allclose(
        found(pooled=1.0), means[0] - 0.4 * (means[1] + means[2]), rtol=1e-5, atol=1e-5
    )
    far_alone = _pairs(x, far, beta).mean(axis=1) - 0.4 * (means[1] + pairs.sum() / (9 * 8))
    np.testing.assert_allclose(
        found(pooled=1.0, reference=(far, None)), far_alone, rtol=1e-5, atol=1e-5
    )


CLASSES, DIM = 6, 2
MEANS = jnp.asarray(np.random.default_rng(5).normal(size=(CLASSES, DIM)) * 3, jnp.float32)


def _draw(key, cond, scale=1.0):
    return scale * MEANS[cond] + jax.random.normal(key, (*cond.shape, DIM))


def _conditions(key, layout):
    """(36,): three groups of different classes, six groups of all, or any."""
    if layout == "any":
        return jax.random.randint(key, (36,), 0, CLASSES)
    count = {"some groups": 3, "all groups": 6}[layout]
    return jnp.repeat(jax.random.permutation(key, CLASSES)[:count], 36 // count)


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("layout", ["some groups", "all groups", "any"])
def test_no_loss_and_no_slope_where_the_distributions_agree(layout, far, beta):
    """Over batches, of the loss and of its slope in how far the classes lie apart."""
    options = {"pooled": 1.0, "particles": 2}
    if layout != "any":  # With a reference's conditions, or a share of groups by themselves.
        options["particles"] = {"some groups": 12, "all groups": 6}[layout]
        options["pooled"] = 1.0 if far else 1 - 1e-6

    def one(key):
        keys = jax.random.split(key, 4)
        cond = _conditions(keys[0], layout)
        reference = None
        if far:
            whole = jnp.arange(CLASSES).repeat(8)
            if layout == "any":
                whole = jax.random.randint(jax.random.fold_in(key, 1), (48,), 0, CLASSES)
            reference = _draw(keys[1], whole), None if layout == "any" else whole
        objective = gj.rollout(steps=2, beta=beta, reference=reference, **options)
        batch = Batch(_draw(keys[2], cond), cond, {})
        loss = lambda scale: jnp.mean(objective.compare(_draw(keys[3], cond, scale), batch))
        return jnp.stack(jax.value_and_grad(loss)(1.0))

    found = jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(mean) < 4 * error)


@pytest.mark.slow
def test_a_share_of_the_whole_is_one():
    batch, keys = examples(8), jax.random.split(KEY, 8)
    guide = gj.guidance(gj.cfg, NET.weight(NET.init(KEY)))

    def loss(pooled):
        objective = gj.rollout(steps=3, particles=2, pooled=pooled)
        return np.asarray(objective(keys, guide, EXACT, batch))

    each, half, most = map(loss, (0.0, 0.25, 0.75))
    np.testing.assert_allclose(half, each + (most - each) / 3, rtol=1e-5, atol=1e-6)
    assert np.abs(each - most).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"pooled": 0.4}, {"pooled": 0.4, "reference": True}])
def test_means_say_what_pairs_do(options):
    """At β = 2 no pairs are made: each sample's loss and slope are those of β just below."""
    x, y, far = 10 + np.random.default_rng(0).normal(size=(3, 12, 5)).astype(np.float32)
    cond = jnp.arange(12) // 4
    if "reference" in options:
        options = options | {"reference": (far[:7], np.array([0, 0, 1, 1, 1, 2, 3]))}
    batch = Batch(x0=jnp.asarray(y), cond=cond, conditions={})

    def found(beta):
        objective = gj.rollout(particles=4, steps=2, lam=0.8, beta=beta, **options)
        losses, pull = jax.vjp(lambda x: objective.compare(x, batch), jnp.asarray(x))
        return losses, *pull(jnp.linspace(-1.0, 1.0, 12))

    for means, pairs in zip(found(2.0), found(2 - 1e-6), strict=True):
        np.testing.assert_allclose(means, pairs, rtol=2e-5, atol=2e-5)


def test_rows_of_a_batch_stand_for_their_group_in_order():
    """Where a few of each group are differentiated the batch is of groups, pooled or not."""
    mixed = Batch(jnp.zeros((4, 2)), np.array([0, 1, 0, 1]), {})
    options = {"particles": 2, "pooled": 1.0}
    x0, cond = jnp.zeros((6, 2)), jnp.arange(6) % 2
    for more in ({}, {"reference": (x0, None)}):
        gj.rollout(**options, **more).check_batch(mixed, "batch 0")
    for more in ({"differentiate": 1}, {"reference": (x0, cond)}):
        with pytest.raises(ValueError, match="several conditions"):
            gj.rollout(**options, **more).check_batch(mixed, "batch 0")
    with pytest.raises(ValueError, match="batch 0 has the shapes"):
        gj.rollout(**options, reference=(x0, jax.nn.one_hot(cond, 2))).check_batch(mixed, "batch 0")
