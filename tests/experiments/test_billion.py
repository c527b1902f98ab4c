"""A network of a billion parameters in shapes alone, and the same programs of a tiny one."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

import guidejax as gj
from experiments import billion
from experiments.billion import Cell
from experiments.tpu import report
from guidejax.models import dit

DOCS = pathlib.Path(__file__).parents[2] / "docs"
TINY = dit.Config(width=32, depth=1, heads=4, side=8, classes=10)


@functools.cache
def omega_s_bytes(classes):
    """Of the gradient of ω, and of the loss."""
    phi = jax.eval_shape(gj.OmegaNet(num_classes=classes).init, jax.random.key(0))
    return 4 * (sum(leaf.size for leaf in jax.tree.leaves(phi)) + 1)


# The groups of a collective, as XLA writes them


@pytest.mark.parametrize(
    ("rest", "groups"),
    [
        ("%x), replica_groups={{0,1},{2,3}}, to_apply=%add", [[0, 1], [2, 3]]),
        ("%x), replica_groups=[2,2]<=[4], to_apply=%add", [[0, 1], [2, 3]]),
        ("%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [[0, 2], [1, 3]]),
        ("%x), replica_groups=mesh['a'=2,'b'=2] {'b'}, to_apply=%add", [[0, 1], [2, 3]]),
        ("%x), replica_groups=mesh['a'=2,'b'=2] {'a'}, to_apply=%add", [[0, 2], [1, 3]]),
        ("%x), channel_id=2, source_target_pairs={{1,0},{3,2}}, metadata={}", [[1, 0], [3, 2]]),
    ],
)
def test_groups(rest, groups):
    assert billion.groups(rest) == groups


def test_groups_that_are_not_understood():
    with pytest.raises(ValueError, match="no groups"):
        billion.groups("%x), to_apply=%add")


# A billion parameters


def test_the_shape_of_a_billion_parameters_output():
    config = dit.config(billion.NAME)
    params = {
        key: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for key, shape in dit.shapes(config).items()
    }
    assert 1.0e9 < sum(leaf.size for leaf in params.values()) < 1.1e9
    x, t, labels = (jax.ShapeDtypeStruct(s, d) for s, d in (
        ((3, 32, 32, 4), jnp.float32), ((3,), jnp.float32), ((3,), jnp.int32),
    ))  # fmt: skip
    out = jax.eval_shape(functools.partial(dit.network, config=config), params, x, t, labels)
    assert (out.shape, out.dtype) == ((3, 32, 32, 4), jnp.bfloat16)


# The programs, of a tiny network


@functools.cache
def found(what, model):
    return billion.measure(Cell(what, "cpu", 8, model, batch=2), TINY)


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("what", billion.PROGRAMS)
@pytest.mark.parametrize("model", [1, 2])
def test_a_device_holds_its_part(what, model):
    cell = found(what, model)
    assert (cell["split"] > 0) == (model > 1)
    rest = cell["parameters"] - cell["split"]
    assert cell["held"] == 2 * (rest + cell["split"] // model)
    assert cell["arguments"] >= cell["held"]
    assert cell["gathered"] == []


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("model", [1, 2])
def test_along_the_data_axis_goes_omega_s_gradient_alone(model):
    assert not found("pass", model)["collectives"]["data"]
    assert not found("sampler", model)["collectives"]["data"]
    (kind,) = found("step", model)["collectives"]["data"].items()
    assert kind == ("all-reduce", {"count": 1, "bytes": omega_s_bytes(TINY.classes)})
    for what in billion.PROGRAMS:
        kinds = set(found(what, model)["collectives"]["model"])
        # Tokens stay whole between the pairs of projections: no gathers.
        assert kinds <= ({"all-reduce", "collective-permute"} if model > 1 else set())
        assert bool(kinds) == (model > 1)


@pytest.mark.slow
@pytest.mark.devices
def test_a_gathered_parameter_is_found():
    """Split over the data axis, as no program here has it, it is put together for the product."""
    mesh = billion.mesh_of(Cell("pass", "cpu", 8, 2))
    at = lambda *spec: jax.sharding.NamedSharding(mesh, jax.P(*spec))
    weight = jax.ShapeDtypeStruct((64, 48), jnp.float32, sharding=at("data"))
    x = jax.ShapeDtypeStruct((4096, 64), jnp.float32, sharding=at("data"))
    compiled = jax.jit(lambda w, x: x @ w, out_shardings=at("data")).lower(weight, x).compile()
    read = billion.read(compiled, Cell("pass", "cpu", 8, 2), {"w": weight})
    assert len(read["gathered"]) == 1
    assert read["collectives"]["data"]["all-gather"]["count"] == 1


# What is published


@pytest.fixture(scope="module")
def published():
    return json.loads((DOCS / "scaling" / "billion.json").read_text())


def test_every_cell_is_there_and_on_the_page(published):
    assert set(published["cells"]) == {cell.name for cell in billion.CELLS}
    assert report.billion_table(published) in (DOCS / "scaling.md").read_text()


def test_publishing_again_changes_nothing(published, tmp_path):
    (tmp_path / "scaling").mkdir()
    for name in ("results.json", "billion.json"):
        (tmp_path / "scaling" / name).write_bytes((DOCS / "scaling" / name).read_bytes())
    report.publish_billion({"network": billion.NAME, "cells": {}, "versions": {}}, tmp_path)
    for name in ("scaling.md", "scaling/billion.json"):
        assert (tmp_path / name).read_text() == (DOCS / name).read_text()


def test_what_the_page_says_of_a_billion_parameters(published):
    for name, cell in published["cells"].items():
        split = cell["split"] // cell["model"]
        assert cell["held"] == 2 * (cell["parameters"] - cell["split"] + split), name
        assert cell["gathered"] == [], name
        assert cell["largest"] < 0.25 * 2 * cell["parameters"], name
        data, model = (cell["collectives"][axis] for axis in ("data", "model"))
        once = {"all-reduce": {"count": 1, "bytes": omega_s_bytes(1000)}}
        alone = cell["devices"] == cell["model"]
        assert data == (once if cell["what"] == "step" and not alone else {}), name
        assert set(model) <= {"all-reduce", "collective-permute"}, name
        assert bool(model) == (cell["model"] > 1), name
        wanted = {"pass": 1, "sampler": 4, "step": 2 * billion.PARTICLES}[cell["what"]]
        assert report.in_passes(published, cell) == pytest.approx(wanted, rel=0.02), name
