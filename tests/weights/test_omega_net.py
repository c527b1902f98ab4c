import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import guidejax as gj

PROCESS = gj.processes.rectified_flow()
KEY = jax.random.key(0)
TIMES = gj.uniform_times(5)
LABELS = jnp.array([0, 1, 2, 1])


def _moved(net):
    """Parameters away from their first values, where ω is a constant."""
    phi = net.init(KEY)
    leaves, treedef = jax.tree.flatten(phi)
    keys = jax.random.split(KEY, len(leaves))
    return treedef.unflatten(
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("init_omega", [0.1, 1.0, 6.5])
@pytest.mark.parametrize(
    "process", [gj.processes.rectified_flow(), gj.processes.linear_vp(), gj.processes.edm()]
)
def test_starts_at_the_constant(init_omega, process):
    net = gj.OmegaNet(num_classes=3, hidden=8, init_omega=init_omega)
    table = net.weight(net.init(KEY)).table(TIMES, LABELS, process=process)
    assert table.shape == (5, 4)
    np.testing.assert_allclose(table, init_omega, rtol=1e-5)


@pytest.mark.slow
def test_depends_on_both_times_and_the_class_and_stays_positive():
    net = gj.OmegaNet(num_classes=3, hidden=8)
    omega = lambda s, t: net.weight(_moved(net))(s, t, LABELS, process=PROCESS)
    base = omega(0.2, 0.5)
    assert base.shape == (4,)
    assert np.all(base > 0)
    assert base[1] == base[3]
    assert len(set(base.tolist())) == 3
    assert not np.allclose(base, omega(0.3, 0.5))
    assert not np.allclose(base, omega(0.2, 0.6))


@pytest.mark.slow
def test_of_the_times_alone():
    net = gj.OmegaNet(hidden=8)
    phi = _moved(net)
    assert net.weight(phi)(0.2, 0.5, LABELS, process=PROCESS).shape == ()
    each = net.weight(phi)(jnp.array([0.1, 0.2]), jnp.array([0.5, 0.6]), None, process=PROCESS)
    np.testing.assert_allclose(each[1], net.weight(phi)(0.2, 0.6, process=PROCESS), rtol=1e-5)


@pytest.mark.slow
def test_of_an_embedding():
    net = gj.OmegaNet(cond_dim=3, hidden=8)
    cond = jax.random.normal(KEY, (4, 3))
    omega = net.weight(_moved(net))(0.2, 0.5, cond, process=PROCESS)
    assert omega.shape == (4,)
    assert len(set(omega.tolist())) == 4


@pytest.mark.slow
@pytest.mark.parametrize("s", [0.0, 0.99])
def test_finite_where_log_snr_is_not(s):
    net = gj.OmegaNet(num_classes=3, hidden=8)
    value, grads = jax.value_and_grad(
        lambda phi: net.weight(phi)(s, 1.0, LABELS, process=PROCESS).sum()
    )(_moved(net))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((value, grads)))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_learns():
    net = gj.OmegaNet(num_classes=3, hidden=16, depth=1)
    target = jnp.array([0.5, 1.0, 3.0, 1.0])
    loss = lambda phi: jnp.mean((net.weight(phi)(0.4, 0.5, LABELS, process=PROCESS) - target) ** 2)

    @jax.jit
    def fit(phi):
        step = lambda phi, _: (jax.tree.map(lambda p, g: p - 0.02 * g, phi, jax.grad(loss)(phi)), 0)
        return jax.lax.scan(step, phi, length=400)[0]

    assert loss(fit(net.init(KEY))) < 1e-2 < loss(net.init(KEY))


@pytest.mark.slow
@pytest.mark.parametrize("init_omega", [0.01, 0.05, 2.0])  # z < 0, z = 0, z > 0 at the start
def test_omega_rises_with_its_output(init_omega):
    net = gj.OmegaNet(hidden=8, depth=1, init_omega=init_omega)
    omega = lambda phi: net.weight(phi)(0.4, 0.5, process=PROCESS)
    slope = jax.grad(omega)(net.init(KEY))["Dense_3"]["bias"]
    want = init_omega / (init_omega + 0.01 / (4 * init_omega))  # of z = ω − b/(4ω)
    np.testing.assert_allclose(slope, want, rtol=1e-4)


@pytest.mark.slow
def test_comes_back_from_nothing():
    """An output far below zero, where ω is all but 0, is no trap."""
    net = gj.OmegaNet(hidden=8, depth=1)
    phi = net.init(KEY)
    phi["Dense_3"]["bias"] = jnp.array([-3.0])
    omega = lambda phi: net.weight(phi)(0.4, 0.5, process=PROCESS)
    assert 0 < omega(phi) < 1e-3
    optimizer = optax.adam(1e-2)

    @jax.jit
    def fit(phi):
        def step(carry, _):
            phi, state = carry
            gradient = jax.grad(lambda phi: (omega(phi) - 1.0) ** 2)(phi)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(phi, updates), state), None

        return jax.lax.scan(step, (phi, optimizer.init(phi)), length=1000)[0][0]

    np.testing.assert_allclose(omega(fit(phi)), 1.0, rtol=1e-2)


@pytest.mark.slow
def test_needs_the_process():
    net = gj.OmegaNet(hidden=4)
    with pytest.raises(ValueError, match="needs `process`"):
        net.weight(net.init(KEY))(0.2, 0.5)


@pytest.mark.slow
def test_labels_over_a_mesh(mesh):
    net = gj.OmegaNet(num_classes=3, hidden=8)
    phi, labels = _moved(net), jnp.tile(LABELS, 2)
    run = jax.jit(lambda labels: net.weight(phi)(0.2, 0.5, labels, process=PROCESS))
    rows = NamedSharding(mesh, P("data"))
    want = np.asarray(run(labels))
    with jax.set_mesh(mesh):
        got = run(jax.device_put(labels, rows))
    assert got.sharding.is_equivalent_to(rows, 1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_classes": 3, "cond_dim": 2},
        {"num_classes": 0},
        {"cond_dim": 0},
        {"hidden": 0},
        {"init_omega": 0.0},
        {"init_omega": float("nan")},
    ],
)
def test_wrong_settings(kwargs):
    with pytest.raises(ValueError, match="OmegaNet"):
        gj.OmegaNet(**kwargs)


@pytest.mark.parametrize(
    ("net", "cond", "match"),
    [
        (gj.OmegaNet(num_classes=3), None, "cond=None"),
        (gj.OmegaNet(num_classes=3), jnp.array([0, 3]), "label 3 is out of range; expected 0 to 2"),
        (gj.OmegaNet(num_classes=3), jnp.array([-1, 0]), "label -1 is out of range"),
        (gj.OmegaNet(num_classes=3), jnp.zeros((2, 1), int), "shape"),
        (gj.OmegaNet(num_classes=3), jnp.zeros(2), "float"),
        (gj.OmegaNet(cond_dim=3), jnp.zeros((2, 4)), "4"),
        (gj.OmegaNet(cond_dim=3), jnp.zeros(2), "shape"),
    ],
)
def test_wrong_condition(net, cond, match):
    with pytest.raises(ValueError, match=match):
        net.check(cond)


def test_right_conditions():
    gj.OmegaNet(num_classes=3).check(LABELS)
    gj.OmegaNet(cond_dim=3).check(jnp.zeros((2, 3)))
    gj.OmegaNet().check(None)
