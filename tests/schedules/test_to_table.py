import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj

PROCESS = gj.processes.cosine()
TIMES = gj.uniform_times(6, 1.0, 0.1)
KEY = jax.random.key(0)


def _learned(**kwargs):
    """A network with something learned: its last layer starts at zero."""
    net = gj.OmegaNet(hidden=8, **kwargs)
    phi = net.init(KEY)
    return net.weight(jax.tree.map(lambda v: v + 0.3 * jax.random.normal(KEY, v.shape), phi))


@jax.jit
def _sample(omega, cond):
    network = lambda x, t, c: jnp.tanh(x + jnp.reshape(c, (4, -1))[:, :1] * t[:, None])
    return gj.sample(
        KEY, gj.denoiser(network, PROCESS), jnp.ones((4, 3)),
        cond=cond, uncond=jnp.zeros_like(cond), times=TIMES, guidance=gj.guidance(gj.cfg, omega),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["times", "classes", "embeddings"])
def test_samples_are_those_of_the_learned_omega(kind):
    labels = jnp.array([2, 0, 1, 2])
    embeddings = jax.random.normal(KEY, (4, 5))
    weight, conditions, cond = {
        "times": (_learned(), None, labels),
        "classes": (_learned(num_classes=3), jnp.arange(3), labels),
        "embeddings": (_learned(cond_dim=5), embeddings, embeddings),
    }[kind]
    table = gj.schedules.to_table(weight, TIMES, conditions, process=PROCESS)
    np.testing.assert_allclose(_sample(table, cond), _sample(weight, cond), rtol=1e-5)
    assert np.ptp(np.asarray(table.params["values"])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".npz", ".json"])
def test_files(tmp_path, ending):
    path = tmp_path / f"omega{ending}"
    weight = _learned(num_classes=3)
    gj.schedules.save_table(path, weight, TIMES, jnp.arange(3), process=PROCESS)
    loaded = gj.schedules.load_table(path)
    labels = jnp.array([2, 0, 1, 2])
    np.testing.assert_allclose(_sample(loaded, labels), _sample(weight, labels), rtol=1e-5)
    # What another framework sees, with NumPy or json alone.
    entries = np.load(path) if ending == ".npz" else json.loads(path.read_text())
    assert set(entries) == {"omega", "scale", "t", "s"}
    np.testing.assert_allclose(np.asarray(entries["scale"]), np.asarray(entries["omega"]) + 1)
    np.testing.assert_allclose(entries["t"], TIMES[:-1])
    np.testing.assert_allclose(entries["s"], TIMES[1:])
    assert np.shape(entries["omega"]) == (6, 3)


def test_zeros_cost_no_pass():
    table = gj.schedules.to_table(gj.interval(2.0, 0.3, 0.8), TIMES)
    np.testing.assert_array_equal(
        gj.guidance(gj.cfg, table).active(TIMES, PROCESS), (TIMES[:-1] <= 0.8) & (TIMES[:-1] >= 0.3)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: gj.schedules.to_table(1.0, TIMES[::-1]), "falling times"),
        (lambda path: gj.schedules.to_table(jnp.ones(4), TIMES), "give `conditions`"),
        (
            lambda path: gj.schedules.to_table(
                _learned(num_classes=3), TIMES, jnp.array([2, 1]), process=PROCESS
            ),
            "class ids 0 to C − 1",
        ),
        (lambda path: gj.schedules.save_table(path / "omega.csv", 1.0, TIMES), r"\.npz or \.json"),
        (lambda path: gj.schedules.load_table(path / "omega.csv"), r"\.npz or \.json"),
    ],
)
def test_wrong_input(tmp_path, make, match):
    with pytest.raises(ValueError, match=match):
        make(tmp_path)


def test_a_file_without_omega(tmp_path):
    (tmp_path / "w.json").write_text('{"scale": [1.0]}')
    with pytest.raises(ValueError, match="no entry 'omega'; it has scale"):
        gj.schedules.load_table(tmp_path / "w.json")
