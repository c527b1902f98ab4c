"""Forms of the learned weight: where they start, what they are dealt, and the table of them."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments.digits import weights
from experiments.digits.networks import PROCESS


@pytest.mark.slow
@pytest.mark.parametrize("name", weights.VARIANTS)
def test_each_form_starts_as_cfg_at_the_same_omega(name):
    rule, net = weights.VARIANTS[name]
    guide = gj.guidance(rule, **net.weights(net.init(jax.random.key(0))))
    keys = jax.random.split(jax.random.key(1), 3)
    cond, uncond, x = (jax.random.normal(key, (4, 8, 8, 1)) for key in keys)
    got = guide.combine(
        {"cond": cond, "uncond": uncond}, x=x, t=0.6, s=0.5, condition=jnp.arange(4),
        process=PROCESS,
    )  # fmt: skip
    np.testing.assert_allclose(got, cond + 0.5 * (cond - uncond), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_every_image_is_dealt_once_class_by_class(tmp_path):
    parts = weights.split(7, tmp_path)
    assert [len(part["cond"]) for part in parts] == list(weights.SPLIT)
    rows = np.concatenate([part["x0"].reshape(len(part["x0"]), -1) for part in parts])
    again = np.concatenate([p["x0"].reshape(len(p["x0"]), -1) for p in weights.split(8, tmp_path)])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], again[np.lexsort(again.T)])
    shares = [np.bincount(part["cond"]) / len(part["cond"]) for part in parts]
    np.testing.assert_allclose(shares[1:], np.stack([shares[0]] * 2), atol=0.01)


def test_the_table_is_of_geometric_means_over_the_oracle():
    def seed(scale):
        figures = lambda f: {"figures": {"frechet": f, "energy": f / 100, "evaluations": 32}}
        return {
            "interval (oracle)": figures(4 * scale),
            "class": figures(2 * scale),
            "times": figures(8 * scale),
        }

    rows = weights.table([seed(1.0), seed(4.0)]).splitlines()
    cells = {row.split(" | ")[0].lstrip("| "): row.split(" | ")[1:] for row in rows[2:]}
    assert cells["class"][0] == "4.00"
    assert cells["class"][1].startswith("0.500")
    assert cells["times"][2].startswith("4.000")
    assert cells["interval (oracle)"][1] == "1"


def test_the_published_table_is_what_its_seeds_make():
    docs = pathlib.Path(__file__).parents[2] / "docs"
    seeds = [json.loads(p.read_text()) for p in sorted(docs.glob("digits/weights/seed*.json"))]
    assert len(seeds) == weights.Config.seeds
    made = weights.table(seeds)
    assert (docs / "digits" / "weights" / "weights.md").read_text() == made
    assert made.strip() in (docs / "digits.md").read_text()
