"""Learn to Guide on mixtures: closed forms, seeds apart, cells resumed, the page from results."""

import dataclasses
import json
import pathlib
import zlib

import jax
import numpy as np
import pytest

import guidejax as gj
from experiments.claims import VERDICTS
from experiments.mixtures import __main__ as mixtures
from experiments.mixtures import cells, figures, page, worlds
from experiments.mixtures.config import (
    MODELS,
    OBJECTIVES,
    OMEGAS,
    PAIRS,
    PRESETS,
    PROCESS,
    RATES,
    SERIES,
    STEPS,
    WIDTHS,
    Config,
    report,
    tuning,
)
from guidejax import analytic

DOCS = pathlib.Path(__file__).parents[2] / "docs"
CHOSEN = dict.fromkeys(OBJECTIVES, 0.01)
KEY = jax.random.key(7)


def exact(seed=9000):
    data = worlds.Data.drawn(seed).exact()
    return data, worlds.denoiser("exact", seed, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_tuned_and_reported_share_neither_seeds_nor_noise(name):
    tuned = tuning(PRESETS[name], dict.fromkeys(OBJECTIVES, SERIES))
    reported = report(PRESETS[name], CHOSEN)
    assert len({cell.name for cell in tuned + reported}) == len(tuned + reported)
    assert {cell.split for cell in tuned} == {"tuned"}
    assert {cell.split for cell in reported} == {"reported"}
    assert not {c.seed for c in tuned} & {c.seed for c in reported}
    assert not {c.noise() for c in tuned} & {c.noise() for c in reported}


def test_rates_are_tried_until_the_best_lies_inside():
    assert mixtures.wider(RATES, RATES[1]) == RATES
    assert mixtures.wider(RATES, RATES[-1]) == (*RATES, SERIES[SERIES.index(RATES[-1]) + 1])
    assert mixtures.wider(RATES, RATES[0])[1:] == RATES
    assert mixtures.wider(SERIES, SERIES[0]) == mixtures.wider(SERIES, SERIES[-1]) == SERIES


def test_a_best_rate_at_an_end_widens_the_search(tmp_path, monkeypatch):
    def run(cell, preset):
        found = made_up(cell, preset)
        return found | {"loss": abs(np.log(cell.rate / 0.1))} if cell.rate else found

    monkeypatch.setattr(cells, "run", run)
    results = mixtures.measure(Config("tiny", tmp_path))
    assert results["rates"] == dict.fromkeys(OBJECTIVES, 0.1)
    assert results["tried"] == dict.fromkeys(OBJECTIVES, SERIES[3:8])


@pytest.mark.slow
def test_the_exact_model_is_the_data():
    data, denoise = exact()
    x, label = jax.random.normal(KEY, (64, 2)), np.arange(64) % 4
    components = analytic.mixture(worlds.Data.drawn(9000).means, stds=worlds.Data.drawn(9000).stds)
    known = analytic.denoiser(analytic.by_class(components, worlds.LABELS), PROCESS)
    np.testing.assert_allclose(denoise(x, 0.5, label), known(x, 0.5, label), atol=1e-5)
    assert np.all(np.isfinite(data.sample(KEY, label)))


def test_a_width_is_restored_where_the_formula_says():
    for std, cond, uncond in WIDTHS:
        if uncond > cond:
            omega = worlds.restoring_omega(std, cond, uncond)
            assert worlds.guided_width(cond, uncond, omega) == pytest.approx(std)
    assert worlds.guided_width(0.3, 1.0, 2.0) == pytest.approx(
        float(analytic.within_mode_std(0.3, 2.0))
    )


@pytest.mark.slow
def test_gaussians_are_as_wide_as_the_closed_form():
    _, cond, uncond = WIDTHS[0]
    count = 2_000
    found = cells._gaussian_widths(KEY, np.float32(cond), np.float32(uncond), count)
    closed = worlds.guided_width(cond, uncond, np.array(OMEGAS))
    assert np.all(np.abs(found / closed - 1) < 4 / np.sqrt(2 * count))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["exact", "leaking"])
def test_l2_is_least_where_the_closed_form_says(model):
    data, count = worlds.Data.drawn(9000).exact(), 20_000
    denoise = worlds.denoiser(model, 9000, 1)
    for s, t, churn in PAIRS[:2]:
        loss = cells.objective("l2", s_min=s, min_gap=t - s, t_max=t, churn=float(churn))
        best, error = cells.parabola(KEY, data, denoise, loss, count)
        moments = cells._moments(jax.random.key(8), data, denoise, t, count)
        other = worlds.l2_of_score_matching(s, t, churn, *map(float, moments))
        # The other's error is about twice this one's: one x_t an example, not four.
        assert abs(best - other) < 4 * np.hypot(error, 2 * error)
        if model == "exact":
            assert abs(best - worlds.l2_omega(s, t, churn)) < 4 * error


@pytest.mark.slow
def test_with_l2_an_exact_model_learns_the_closed_form():
    net, (s, t, churn) = gj.OmegaNet(hidden=8, depth=1), PAIRS[0]
    step = {"s_min": s, "min_gap": t - s, "t_max": t, "churn": float(churn)}
    phi = cells.learn(KEY, *exact(), 0.05, cells.objective("l2", **step), 100, net)
    omega = float(net.weight(phi)(s, t, process=PROCESS))
    assert omega == pytest.approx(worlds.l2_omega(s, t, churn), abs=0.15)


def made_up(cell, preset):
    """Numbers of a cell's shape, the same at each call."""
    rng = np.random.default_rng(zlib.crc32(cell.name.encode()))
    draw = lambda *shape: rng.uniform(0.1, 1.0, shape).tolist()
    if cell.kind == "width":
        return {"width": draw(len(WIDTHS), len(OMEGAS))}
    if cell.kind == "pair":
        names = ("l2", "l2_error", "matching", "formula")
        return {n: draw(len(PAIRS)) for n in names} | {"energy": draw(len(PAIRS) // 2)}
    names = ("energy", "wrong", "width")
    if cell.kind == "sweep":
        return {n: draw(len(OMEGAS)) for n in names}
    return {n: float(rng.uniform()) for n in (*names, "loss")} | {"omega": draw(STEPS, 3)}


def test_a_run_goes_on_from_its_cells(tmp_path, monkeypatch):
    config, asked = Config("tiny", tmp_path), []

    def run(cell, preset):
        if len(asked) == 25 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        asked.append(cell.name)
        return made_up(cell, preset)

    monkeypatch.setattr(cells, "run", run)
    with pytest.raises(KeyboardInterrupt):
        mixtures.measure(config)
    assert len(list((tmp_path / "cells" / "tiny").glob("*.json"))) == 25
    results = mixtures.measure(config)
    assert len(asked) == len(set(asked)) == len(results["cells"])
    assert mixtures.measure(config) == results
    assert len(asked) == len(results["cells"])
    assert set(results["omegas"]) == set(MODELS)


def test_a_changed_preset_reuses_no_cell(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cells, "run", lambda *args: asked.append(args[0].name) or made_up(*args))
    results = mixtures.measure(Config("tiny", tmp_path))
    count = len(results["cells"])
    more = dataclasses.replace(PRESETS["tiny"], updates=21)
    monkeypatch.setitem(PRESETS, "tiny", more)
    assert mixtures.measure(Config("tiny", tmp_path)) == results
    assert len(asked) == 2 * count
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(more, reported=(0,)))
    mixtures.measure(Config("tiny", tmp_path))  # Of fewer seeds all is there.
    assert len(asked) == 2 * count
    monkeypatch.setattr(mixtures.settings, "BATCH", 128)
    mixtures.measure(Config("tiny", tmp_path))
    assert len(asked) > 2 * count


def test_every_claim_has_its_numbers_and_a_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "run", made_up)
    results = mixtures.measure(Config("tiny", tmp_path))
    for claim in page.claims(results):
        assert "±" in claim.measured or "intervals" in claim.measured
        assert claim.verdict in VERDICTS


@pytest.mark.slow
def test_a_sweep_measures_what_it_says():
    for cell in report(PRESETS["tiny"], CHOSEN):
        if cell.kind == "sweep" and cell.model == "leaking" and cell.seed == 0:
            found = cells.run(cell, PRESETS["tiny"])
            known = made_up(cell, None)
            assert {n: np.shape(v) for n, v in found.items()} == {
                n: np.shape(v) for n, v in known.items()
            }
            assert all(np.all(np.isfinite(v)) for v in found.values())


def test_the_published_page_is_what_its_results_make():
    results = json.loads((mixtures.RESULTS / "results.json").read_text())
    assert (DOCS / "mixtures.md").read_text() == page.text(results)
    for name in figures.PICTURES:
        assert f"mixtures/{name}.png" in page.text(results)
        assert (DOCS / "mixtures" / f"{name}.png").stat().st_size > 0
