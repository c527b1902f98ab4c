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
TINY = dataclasses.replace(PLAN, seeds=tuple(range(100, 106)), each=2, folds=3)


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
                | {
                    name: float(np.exp(deal + 0.1 * own + 0.01 * place * rng.normal()))
                    for name in ("frechet", *(f"frechet/{name}" for name in networks.FRESH))
                },
                **({"least": [4.0, 3.0, 2.0, 2.0]} if method in settled.TUNED else {}),
            }
            for place, method in enumerate(settled.METHODS)
        }
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"protocol": settled.protocol(TINY), "methods": found}))
    return cells


def test_seeds_and_networks_of_the_report_served_no_choice():
    before = {*range(60), *range(1000, 1000 + ablations.Config.seeds), 2000, 2001, 3000, 3001}
    assert FIRST_SEED + PLANS["full"].seeds < 60
    assert weights.Config.first_seed + weights.Config.seeds < 60
    assert not {*PLAN.seeds, PLAN.deal} & {*before, *settled.PLANS["quick"].seeds}
    fresh = set(networks.FRESH.values())
    assert not fresh & {*networks.SEEN.values(), *networks.REPORT.values()}


def test_a_fold_is_reported_on_and_serves_nothing_else(tmp_path):
    reported = []
    for seed in PLAN.seeds[:: PLAN.each]:
        train, chosen_on, report = settled.parts(PLAN, seed, tmp_path)
        assert len(chosen_on["cond"]) + len(report["cond"]) == 1797
        assert len(train["cond"]) == pytest.approx(1038, abs=2)
        images = [{image.tobytes() for image in part["x0"]} for part in (train, chosen_on, report)]
        assert images[0] <= images[1]
        assert len(images[1] & images[2]) < 5  # Some digits are equal pixel by pixel.
        shares = [np.bincount(part["cond"], minlength=NUM_CLASSES) / len(part["cond"])
                  for part in (train, chosen_on, report)]  # fmt: skip
        np.testing.assert_allclose(shares, 0.1, atol=0.012)
        reported += [image.tobytes() for image in report["x0"]]
        for other in range(1, PLAN.each):
            again = settled.parts(PLAN, seed + other, tmp_path)
            np.testing.assert_array_equal(again[2]["x0"], report["x0"])
    assert len(reported) == 1797


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


def test_no_method_is_learned_with_more_than_the_largest_search():
    sizes = PLAN.sizes
    passes = 2 * sizes.sampling_steps
    most = max(settled.budget(method, PLAN) for method in settled.TUNED)
    spent = sizes.rollout_steps * NUM_CLASSES * sizes.rollout_group * passes * 4
    assert spent <= most * sizes.tune_samples * passes < 1.01 * spent


@pytest.mark.parametrize("method", settled.PER_CLASS)
def test_numbers_of_each_class_begin_at_the_plain_method(method):
    each = settled.TUNED[method]
    plain = settled.TUNED[each.after]
    special = {name: number.start for name, number in plain.space.items()}
    start = each.begin(special)
    assert set(start) == set(each.space)
    x = jax.random.normal(jax.random.key(0), (20, 4))
    denoise = gj.denoiser(lambda x, t, c: jnp.tanh(x + 0.1 * c[:, None]), networks.PROCESS)
    run = lambda guide: gj.sample(
        jax.random.key(1), denoise, x, cond=jnp.arange(20) % NUM_CLASSES, uncond=NUM_CLASSES,
        guidance=guide, times=gj.uniform_times(8),
    )  # fmt: skip
    np.testing.assert_allclose(run(each.guide(**start)), run(plain.guide(**special)), rtol=1e-5)


def test_what_guides_no_step_isn_t_gated_but_off():
    guide = gj.guidance(gj.cfg, lambda s, t, c: 1 + 0 * t)
    assert settled.evaluations(settled.window(guide, 0, 8), 8) == 8
    assert settled.evaluations(settled.window(guide, 8, 8), 8) == 16


def test_cells_of_another_protocol_are_not_taken(tmp_path):
    made_up(tmp_path)
    other = dataclasses.replace(TINY, plain=7)
    name = f"{TINY.sizes.denoisers[0][0]}/100"
    assert settled.Cells(TINY, tmp_path).done(name)
    assert not settled.Cells(other, tmp_path).done(name)


def test_ratios_are_over_folds(tmp_path):
    cells = made_up(tmp_path)
    under = TINY.sizes.denoisers[0][0]
    found = settled.ratio(cells, under, "rollout", "interval")
    ours, theirs = (
        np.array([cells.find(f"{under}/{s}")[m]["figures"]["frechet"] for s in TINY.seeds])
        for m in ("rollout", "interval")
    )
    want = mean_interval(np.log(ours / theirs).reshape(3, 2).mean(axis=1))
    np.testing.assert_allclose(found, np.exp(want), rtol=1e-6)
    wider = settled.ratio(cells, under, "rollout", "interval", count=7)
    assert wider.low < found.low < found.high < wider.high
    assert len(settled.claims(cells)) == 7
    assert all(method in settled.text(cells) for method in settled.METHODS)


def test_a_part_is_not_summed_up(tmp_path):
    cells = made_up(tmp_path)
    (tmp_path / "well-trained" / "103.json").unlink()
    assert settled.text(cells).startswith("11 of its 12 cells")


def test_the_page_is_what_the_results_make(tmp_path):
    page = (DOCS / "digits.md").read_text()
    cells = settled.Cells(PLAN, tmp_path, settled.RESULTS)
    assert page == settled.page(page, cells), "python -m experiments.digits.settled --publish"
