"""Closed forms against simulations, cells that are resumed, and a page that is its results."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments import results
from experiments.angle import cells as angle
from experiments.angle import figures, page, theory
from experiments.angle.cells import Cells
from experiments.angle.config import PLANS, Plan
from experiments.angle.mixtures import PROCESS, RADIUS, SETTINGS
from experiments.angle.rules import VARIANTS

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "angle" / "results" / "full.json"
TINY = Plan(
    seeds=(0, 1), tuning_seeds=(100, 101), samples=64, steps=48, sampler_steps=5,
    omegas=(0.0, 1.0, 5.0), region_omegas=(1.0, 4.0), times=(0.4, 0.8), convergence=(16, 32),
    label="tiny",
)  # fmt: skip
E1 = np.array([1.0, 0.0])


@pytest.fixture(scope="module")
def kept():
    """The cells of the page."""
    return Cells(PLANS["full"], pathlib.Path("nowhere"), print, json.loads(RESULTS.read_text()))


# The page


def test_the_page_is_what_the_results_make(kept):
    said = "python -m experiments.angle --preset full --publish"
    assert set(kept.known) == set(kept.functions), said
    assert (ROOT / "docs" / "angle.md").read_text() == page.text(kept), said


def test_every_picture_of_the_page_is_there():
    named = set(re.findall(r"\]\((angle/\w+\.png)\)", (ROOT / "docs" / "angle.md").read_text()))
    assert named == {f"angle/{path.name}" for path in (ROOT / "docs" / "angle").iterdir()}
    assert sum((ROOT / "docs" / name).stat().st_size for name in named) < 1e6


def test_the_closed_forms_of_the_page_are_those_of_the_code(kept):
    plan, closed = kept.plan, kept["closed"]
    for i in (1, len(plan.omegas) - 1):
        first, second = theory.pair_moments(plan.omegas[i], RADIUS)
        np.testing.assert_allclose([closed["first"][i], closed["second"][i]], [first, second], 1e-6)
    omega, t = plan.region_omegas[0], plan.times[-1]
    place = (len(plan.times) - 1) * len(plan.region_omegas)
    found = [theory.width(omega, t, theory.pair(RADIUS, 2), 0, E1)]
    found.append(theory.region_share(omega, t, RADIUS, 2))
    np.testing.assert_allclose([closed["width"][place], closed["share"]["2"][place]], found, 1e-6)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_is_tuned_and_what_is_reported_share_no_noise(plan):
    assert not set(plan.seeds) & set(plan.tuning_seeds)
    keys = {}
    for part in range(6):
        for seed in (*plan.seeds, *plan.tuning_seeds):
            drawn = tuple(np.asarray(jax.random.key_data(angle.key(part, seed))).tolist())
            assert keys.setdefault(drawn, (part, seed)) == (part, seed)


# Closed forms


@pytest.mark.slow
def test_the_gain_is_the_integral_along_the_path():
    """To second order in the step, for classes on the surface and inside."""
    for name in SETTINGS:
        found = angle.norm(TINY, name, 0)
        assert max(found["off"]) < 0.03
        np.testing.assert_allclose(found["gain"], found["integral"], atol=0.01)
        if name != "inner":
            assert min(found["least"][1:]) > 0


@pytest.mark.slow
def test_the_solver_comes_to_the_equation_of_one_variable():
    error = np.array(angle.convergence(TINY)["error"])
    np.testing.assert_allclose(error[:, 0] / error[:, 1], 4, rtol=0.15)
    assert error.max() < 0.05


def test_moments_without_guidance_are_those_of_the_class():
    np.testing.assert_allclose(theory.pair_moments(0.0, RADIUS), (RADIUS, RADIUS**2 + 1), 1e-8)


@pytest.mark.slow
def test_the_width_is_where_the_library_s_scores_stop_opposing_each_other():
    found = angle.width(TINY)
    grid = [(t, omega) for t in TINY.times for omega in TINY.region_omegas]
    for (t, omega), low, high in zip(grid, found["low"], found["high"], strict=True):
        assert low <= theory.width(omega, t, theory.pair(RADIUS, 2), 0, E1) <= high
        assert high - low < 0.01


@pytest.mark.parametrize("dimension", [2, 4])
def test_the_share_in_the_region_is_the_integral(dimension):
    t, omega, n = 0.8, 8.0, 20000
    means = theory.pair(RADIUS, dimension)
    z = np.random.default_rng(0).normal(size=(n, dimension)) * np.hypot(1 - t, t)
    x = (1 - t) * means[0] + z
    gap = means[0] - theory.mean_of(x, t, means)
    share = np.mean(np.sum(z**2, axis=1) <= omega * (1 - t) * np.sum(z * gap, axis=1))
    exact = theory.region_share(omega, t, RADIUS, dimension)
    assert abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / n)


# The rules


@pytest.mark.slow
def test_the_program_is_adg_with_its_constants():
    c, u = np.random.default_rng(0).normal(size=(2, 6, 12))
    for omega in (0.0, 0.4, 5.0):
        code, theta = theory.official(c, u, omega)
        ours = gj.adg(jnp.asarray(c), jnp.asarray(u), omega + 1e-3, max_angle=3.14 / 3)
        np.testing.assert_allclose(code, ours, rtol=1e-4, atol=1e-5)
        assert np.all(theta > 0)
    same = np.array([[1.0, 0.0]])
    assert np.isnan(theory.official(same, same, 1.0)[0]).all()
    np.testing.assert_array_equal(gj.adg(jnp.asarray(same), jnp.asarray(same), 1.0), same)


@pytest.mark.parametrize("rule", VARIANTS)
def test_every_variant_is_the_conditional_model_at_zero(rule):
    c, u = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4, 4, 4)), jnp.float32)
    found = (
        VARIANTS[rule]
        .guide(jnp.zeros(3))
        .combine({"cond": c, "uncond": u}, x=c, t=0.5, process=PROCESS, prediction="x0")
    )
    np.testing.assert_allclose(found, c, atol=1e-6)


@pytest.mark.slow
def test_a_step_of_adg_is_as_long_as_the_formula_says():
    found = {name: np.array(values) for name, values in angle.geometry(TINY, 0).items()}
    assert found["off"].max() < 1e-4
    assert found["smallest"].min() > 1 - 1e-5
    assert 1.1 < found["largest"].max() < np.sqrt(2) + 1e-5
    assert found["capped"][2, 0] == 1  # the last ω in the first step
    np.testing.assert_allclose(found["turned"][0], 1, atol=1e-3)  # no turn at ω = 0


@pytest.mark.slow
def test_a_sweep_shows_that_cfg_grows_norms_and_adg_does_not():
    plan = dataclasses.replace(TINY, sampler_steps=12, omegas=(0.0, 8.0))
    found = {rule: angle.sweep(plan, plan.omegas, rule, 0) for rule in ("cfg", "adg")}
    assert found["cfg"]["norm"][1] > 1.1 * found["cfg"]["norm"][0]
    assert found["adg"]["norm"][1] < found["adg"]["norm"][0]
    for field, values in found["cfg"].items():
        np.testing.assert_allclose(values[0], found["adg"][field][0], atol=1e-4, err_msg=field)


# The run


def test_a_run_is_resumed_cell_by_cell(tmp_path):
    done = []

    def counted(cells):
        for name in cells.functions:
            cells.functions[name] = lambda name=name: done.append(name) or {"of": name}
        return cells

    cells = counted(Cells(TINY, tmp_path, print))
    cells.run()
    assert done == list(cells.functions)
    (tmp_path / "tiny" / "sweep" / "cfg" / "1.json").unlink()
    again = counted(Cells(TINY, tmp_path, print))
    again.run()
    assert done[len(cells.functions) :] == ["sweep/cfg/1"]
    assert again["geometry/1"] == {"of": "geometry/1"}
    page.keep(again, tmp_path)
    assert json.loads((tmp_path / "tiny.json").read_text()) == again.known


def test_cells_of_a_plan_of_other_sizes_are_made_again(tmp_path):
    cells = Cells(TINY, tmp_path, print)
    cells.functions = {"a": lambda: 1}
    cells.about["a"] = angle.identity(TINY)
    cells.run()
    for changed, same in (({"samples": 32}, False), ({"seeds": (0, 1, 2)}, True)):
        plan = dataclasses.replace(TINY, **changed)
        again = Cells(plan, tmp_path, print)
        again.about["a"] = angle.identity(plan)
        assert again.done("a") == same


def test_the_page_of_claims_computes_nothing_that_is_missing(tmp_path, monkeypatch):
    more = dataclasses.replace(PLANS["full"], seeds=(*PLANS["full"].seeds, 10))
    monkeypatch.setattr(results, "ANGLE", {"full": more})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"norm/.*/10 among them: python -m experiments.angle"):
        results._angle()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_pictures_are_drawn_from_the_results(kept, tmp_path):
    figures.draw(kept, tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "angle").iterdir()}
