"""The stage-wise experiment: simulation against closed forms, cells, and its page."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments.claims import VERDICTS
from experiments.stages import page, summary, theory
from experiments.stages.cells import PARTS, Cells, exponent, table
from experiments.stages.config import MEAN, PLANS, SETTINGS, SHAPES, STD, Plan, schedules
from experiments.statistics import Interval

DOCS = pathlib.Path(__file__).parents[2] / "docs"
TINY = Plan(
    seeds=2, samples=64, steps=48, omegas=(0.0, 2.0), stds=(0.5,), single_omegas=(0.0, 1.0),
    shape_stds=(0.5,), switches=(0.5,), kicks=(0.25,), limit_steps=(24, 48), limit_samples=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return Cells(TINY, tmp_path_factory.mktemp("cells"))


@pytest.fixture(scope="module")
def published():
    return page.text(*page.published())


def test_the_page_is_what_the_results_make(published):
    found = (DOCS / "stagewise.md").read_text()
    assert found == published, "python -m experiments.stages --preset full --publish"


def test_the_results_are_those_of_their_plan():
    found = json.loads(page.RESULTS.read_text())
    known, preset = page.published()
    assert set(found["cells"]) == set(known.functions)
    assert preset in PLANS
    assert page.RESULTS.stat().st_size < 1e6


def test_every_picture_of_the_page_is_there(published):
    pictures = set(re.findall(r"\]\((stagewise/\w+\.png)\)", published))
    assert pictures == {f"stagewise/{p.name}" for p in (DOCS / "stagewise").glob("*.png")}
    assert sum((DOCS / name).stat().st_size for name in pictures) < 1e6


def test_every_claim_has_a_measure_and_a_verdict():
    known, _ = page.published()
    found = summary.claims(known)
    assert len({claim.claim for claim in found}) == len(found)
    for claim in found:
        assert claim.verdict in VERDICTS
        assert re.search(r"\d", claim.measured)


def test_no_two_kinds_of_cell_share_noise(cells):
    drawn = {
        bytes(np.asarray(jax.random.key_data(cells.key(kind, seed))))
        for kind in PARTS
        for seed in range(20)
    }
    assert len(drawn) == 20 * len(PARTS)


@pytest.mark.slow
def test_one_mode_agrees_with_its_closed_forms(cells):
    for row in summary.closed(cells):
        for what in ("contraction", "mean", "norm"):
            assert row[what]["agrees"], (row["std"], row["omega"], what)
        assert row["contraction"]["seen"].estimate == pytest.approx(
            row["contraction"]["exact"], rel=0.01
        )


@pytest.mark.slow
def test_a_cell_is_done_once(cells):
    first = cells["single/0"]
    path = cells.folders[0] / "single/0.json"
    assert json.loads(path.read_text()) == first
    path.write_text(json.dumps({"rows": ["kept"]}))
    assert Cells(TINY, cells.folders[0])["single/0"] == {"rows": ["kept"]}
    path.write_text(json.dumps(first))


@pytest.mark.slow
def test_the_sampler_goes_to_the_limit_of_the_ode(cells):
    rows = {(r["solver"], r["steps"]): r["distance"] for r in cells["limit/0"]["rows"]}
    assert rows["ddim", 48] < 0.7 * rows["ddim", 24]  # first order
    assert rows["heun", 48] < 0.4 * rows["heun", 24]  # second
    assert rows["heun", 48] < 0.01


@pytest.mark.slow
def test_drift_of_the_first_stage(cells):
    for row in cells["omegas/two/0"]["rows"]:
        mean, omega = SETTINGS["two"].mean, row["omega"]
        slope = 2 * omega * (1 + omega) * float(mean @ mean)
        assert row["gap"] == pytest.approx(slope, rel=0.2, abs=1e-3)


def test_the_mean_of_a_mode():
    # The note's numbers, which are of ω = 0.5, 1, 2, 4 here.
    for std, known in ((0.5, (1.238, 1.380, 1.500, 1.500)), (0.8, (1.398, 1.739, 2.280, 2.946))):
        found = [theory.mean_factor(std, omega) for omega in (0.5, 1.0, 2.0, 4.0)]
        np.testing.assert_allclose(found, known, atol=6e-4)
        assert theory.mean_factor(std, 0.0) == pytest.approx(1)


@pytest.mark.slow
def test_the_velocity_in_numpy_is_the_denoiser_s():
    setting, t = SETTINGS["four"], 0.6
    x = np.random.default_rng(0).normal(size=(5, 16))
    denoise = gj.analytic.denoiser(setting.model(), gj.processes.rectified_flow())
    c, u = (denoise(jnp.asarray(x), t, jnp.full(5, label)) for label in (0, 1))
    got = (x - np.asarray(gj.cfg(c, u, 2.0))) / t
    np.testing.assert_allclose(got, theory.velocity(setting, 2.0, t, x), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_schedules_are_of_one_mean():
    for name in ("table", "interval", "late strong"):
        row = table(schedules()[name](), gj.uniform_times(40))
        assert row.mean() == pytest.approx(MEAN, rel=1e-3), name


@pytest.mark.slow
def test_the_triangle_contracts_more_than_a_constant_above_a_width():
    times = gj.uniform_times(200)
    for std, more in ((0.05, False), (0.3, True)):
        triangle, const = (
            exponent(std, table(SHAPES[name](std), times, 1.0), times)
            for name in ("triangular", "constant")
        )
        assert (triangle > const) == more
    assert exponent(STD, np.ones(200), times) == pytest.approx(np.log(1 / STD), rel=1e-3)


def test_intervals_as_text():
    assert summary.said(Interval(1.5, 1.25, 1.75), 2) == "1.50 [1.25, 1.75]"
    assert summary.said(Interval(0.0, 0.0, 0.0)) == "0.000 [0.000, 0.000]"
    assert summary.said(Interval(2e-4, 1e-4, 3e-4)) == "0.0002 [0.0001, 0.0003]"
