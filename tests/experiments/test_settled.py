"""The digits' frozen protocol: what is chosen and what is reported share nothing."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments.digits import ablations, networks, settled, weights
from experiments.digits.config import FIRST_SEED, NUM_CLASSES, PLANS
from experiments.statistics import mean_interval

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PLAN = settled.PLANS["full"]
TINY = dataclasses.replace(PLAN, seeds=tuple(range(100, 106)), each=2)


def made_up(folder, seed=0):
    """Cells of numbers that are known: each method a factor, each deal and seed another."""
    rng = np.random.default_rng(seed)
    cells = settled.Cells(TINY, folder)
    for name in cells.functions:
        deal, own = rng.normal(size=2)
        found = {
            method: {
                "figures": dict.fromkeys(
                    ("energy", "agreement", "diversity", "evaluations"), 1.0 + place
                )
                | {"frechet": float(np.exp(deal + 0.1 * own + 0.01 * place * rng.normal()))}
            }
            for place, method in enumerate(settled.METHODS)
        }
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return cells


def test_nothing_of_the_report_served_a_choice():
    plan = PLAN
    before = {*range(60), *range(1000, 1000 + ablations.Config.seeds), 2000, 2001, 3000, 3001}
    assert FIRST_SEED + PLANS["full"].seeds < 60
    assert weights.Config.first_seed + weights.Config.seeds < 60
    assert not set(plan.seeds) & before
    assert not {plan.deal(seed) for seed in plan.seeds} & {*before, *plan.seeds}
    fresh = set(networks.FRESH.values())
    assert not fresh & {*networks.SEEN.values(), *networks.REPORT.values()}
    assert len({plan.deal(seed) for seed in plan.seeds}) == 5


def test_the_images_of_a_deal_are_split(tmp_path):
    train, select, report = weights.split(PLAN.deal(100), tmp_path)
    whole = [
        {image.tobytes() for image in np.asarray(part["x0"])} for part in (train, select, report)
    ]
    assert [len(part["x0"]) for part in (train, select, report)] == list(weights.SPLIT)
    # Some of the 1,797 are equal pixel by pixel; nearly all of them lie on one side.
    assert len(whole[0] & whole[2]) + len(whole[1] & whole[2]) < 10


def test_numbers_of_each_class_are_numbers_of_each_sample():
    numbers = {
        f"{name} {c}": value(c)
        for c in range(NUM_CLASSES)
        for name, value in (
            ("omega", lambda c: 0.1 * c),
            ("lo", lambda c: 0.02 * c),
            ("hi", lambda c: 0.5 + 0.05 * c),
            ("max_angle", lambda c: 0.1 + 0.1 * c),
        )
    }
    label = jnp.arange(20) % NUM_CLASSES
    of = lambda name: jnp.stack([numbers[f"{name} {c}"] for c in range(NUM_CLASSES)])[label]
    grid, keys = gj.uniform_times(8), jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (20, 4))
    denoise = gj.denoiser(
        lambda x, t, c: jnp.tanh(x + jnp.where(c == NUM_CLASSES, 0.0, 0.3 * c)[:, None]),
        networks.PROCESS,
    )
    run = lambda guide: gj.sample(
        keys[1], denoise, x, cond=label, uncond=NUM_CLASSES, guidance=guide, times=grid
    )
    pick = lambda *names: {n: v for n, v in numbers.items() if n.split()[0] in names}
    ours = settled.TUNED["interval per class"].guide(**pick("omega", "lo", "hi"))
    by_sample = gj.guidance(gj.cfg, gj.interval(of("omega"), lo=of("lo"), hi=of("hi")))
    np.testing.assert_allclose(run(ours), run(by_sample), rtol=1e-5, atol=1e-6)
    count = 8 + np.mean([np.sum((grid[:-1] >= 0.02 * c) & (grid[:-1] <= 0.5 + 0.05 * c))
                         for c in range(1, NUM_CLASSES)]) * 0.9  # fmt: skip
    assert settled.evaluations(ours, 8) == pytest.approx(count)
    ours = settled.TUNED["adg per class"].guide(**pick("omega", "max_angle"))
    by_sample = gj.guidance(gj.adg, of("omega"), max_angle=of("max_angle"))
    np.testing.assert_allclose(run(ours), run(by_sample), rtol=1e-5, atol=1e-6)


def test_a_gated_weight_is_kept_where_it_is_largest():
    guide = gj.guidance(gj.cfg, lambda s, t, c: 1 - (t - 0.5) ** 2)
    gated = settled.window(guide, 3, 8)
    table = gated.omega.table(jnp.asarray(gj.uniform_times(8)), process=networks.PROCESS)
    assert np.flatnonzero(np.asarray(table)).tolist() == [3, 4, 5]
    assert settled.evaluations(gated, 8) == 11


def test_every_search_rests_within_what_learning_spends():
    plan, sizes = PLAN, PLAN.sizes
    passes = 2 * sizes.sampling_steps
    most = max(settled.budget(method, plan) for method in settled.TUNED)
    spent = sizes.rollout_steps * NUM_CLASSES * sizes.rollout_group * passes * 4
    assert most * sizes.tune_samples * passes == pytest.approx(spent, rel=0.01)


def test_ratios_are_over_deals(tmp_path):
    cells = made_up(tmp_path)
    under = TINY.sizes.denoisers[0][0]
    found = settled.ratio(cells, under, "rollout", "interval")
    ours, theirs = (
        np.array([cells.find(f"{under}/{s}")[m]["figures"]["frechet"] for s in TINY.seeds])
        for m in ("rollout", "interval")
    )
    want = mean_interval(np.log(ours / theirs).reshape(3, 2).mean(axis=1))
    np.testing.assert_allclose(found, np.exp(want), rtol=1e-6)
    wider = settled.ratio(cells, under, "rollout", "interval", count=6)
    assert wider.low < found.low < found.high < wider.high
    assert len(settled.claims(cells)) == 6
    assert all(method in settled.text(cells) for method in settled.METHODS)


def test_a_part_is_not_summed_up(tmp_path):
    cells = made_up(tmp_path)
    (tmp_path / "well-trained" / "103.json").unlink()
    (tmp_path / "under-trained" / "103.json").unlink()
    assert settled.text(cells).startswith("10 of its 12 cells")


def test_the_page_is_what_the_results_make(tmp_path):
    page = (DOCS / "digits.md").read_text()
    cells = settled.Cells(PLAN, tmp_path, settled.RESULTS)
    assert page == settled.page(page, cells), "python -m experiments.digits.settled --publish"
