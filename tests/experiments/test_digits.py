"""The digits: what is chosen and what is reported share nothing, and the whole, cut down."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments import results
from experiments.digits import __main__ as digits
from experiments.digits import cells as cells_of
from experiments.digits import figures, images, methods, networks, report
from experiments.digits.config import NUM_CLASSES, PROTOCOLS, Sizes
from experiments.statistics import Interval, mean_interval

DOCS = pathlib.Path(__file__).parents[2] / "docs"
FULL = PROTOCOLS["full"]
JUDGED = [name for name, protocol in PROTOCOLS.items() if protocol.judged]
TINY = dataclasses.replace(FULL, seeds=tuple(range(100, 106)), each=2)


def made_up(folder, protocol=TINY):
    """Cells of numbers that are known: each method a factor, each deal and seed another."""
    rng, cells = np.random.default_rng(0), cells_of.Cells(protocol, folder)
    distances = ("frechet", *(f"frechet/{name}" for name in networks.REPORTS[protocol.report]))
    for name in cells.functions:
        deal, own = rng.normal(size=2)
        found = {
            method: {
                "figures": dict.fromkeys(
                    ("energy", "agreement", "diversity", "evaluations"), 1.0 + place
                )
                | {
                    name: float(np.exp(deal + 0.1 * own + 0.01 * place * rng.normal()))
                    for name in distances
                },
                **({"rests": place % 2 == 0} if method in methods.TUNED else {}),
            }
            for place, method in enumerate(cells_of.methods_of(protocol))
        }
        path = folder / "cells" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"protocol": cells.digest, "methods": found}))
    return cells


def test_seeds_and_networks_of_the_report_served_no_choice():
    # Seeds of what was run before there were protocols.
    before = {*range(60), 1000, 1001, 2000, 2001, 3000, 3001}
    used = [seed for each in PROTOCOLS.values() for seed in (*each.seeds, each.deal)]
    assert len({*used, *before}) == len(used) + len(before)
    shapes = [net for each in (networks.SEEN, *networks.REPORTS.values()) for net in each.values()]
    assert len(set(shapes)) == len(shapes) == len(networks.CLASSIFIERS)
    reports = [PROTOCOLS[name].report for name in JUDGED]
    assert len(set(reports)) == len(reports)
    assert not {PROTOCOLS[name].report for name in {*PROTOCOLS} - {*JUDGED}} & {*reports}


def test_a_protocol_is_of_methods_that_there_are():
    for protocol in PROTOCOLS.values():
        assert {*protocol.tuned} <= {*methods.TUNED}
        assert {*protocol.learned} <= {*methods.LEARNED}
        # A search begins where that of its special case ended.
        after = [methods.TUNED[name].after for name in protocol.tuned]
        for place, name in enumerate(after):
            assert name is None or name in protocol.tuned[:place]
        assert len(protocol.seeds) == protocol.folds * protocol.each


def test_a_fold_is_reported_on_and_serves_nothing_else(tmp_path):
    reported = []
    for seed in FULL.seeds[:: FULL.each]:
        train, chosen_on, reported_on = images.parts(FULL, seed, tmp_path)
        assert len(chosen_on["cond"]) + len(reported_on["cond"]) == 1797
        assert len(train["cond"]) == pytest.approx(1038, abs=2)
        each = [
            {image.tobytes() for image in part["x0"]} for part in (train, chosen_on, reported_on)
        ]
        assert each[0] <= each[1]
        assert len(each[1] & each[2]) < 5  # Some digits are equal pixel by pixel.
        shares = [np.bincount(part["cond"], minlength=NUM_CLASSES) / len(part["cond"])
                  for part in (train, chosen_on, reported_on)]  # fmt: skip
        np.testing.assert_allclose(shares, 0.1, atol=0.012)
        reported += [image.tobytes() for image in reported_on["x0"]]
        for other in range(1, FULL.each):
            again = images.parts(FULL, seed + other, tmp_path)
            np.testing.assert_array_equal(again[2]["x0"], reported_on["x0"])
    assert len(reported) == 1797


@pytest.mark.slow
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
    ours = methods.TUNED["interval per class"].guide(**pick("omega", "lo", "hi"))
    by_sample = gj.guidance(gj.cfg, gj.interval(of("omega"), lo=of("lo"), hi=of("hi")))
    np.testing.assert_allclose(run(ours), run(by_sample), rtol=1e-5, atol=1e-6)
    count = 8 + np.mean([np.sum((grid[:-1] >= 0.02 * c) & (grid[:-1] <= 0.5 + 0.05 * c))
                         for c in range(1, NUM_CLASSES)]) * 0.9  # fmt: skip
    assert methods.evaluations(ours, 8) == pytest.approx(count)
    ours = methods.TUNED["adg per class"].guide(**pick("omega", "max_angle"))
    by_sample = gj.guidance(gj.adg, of("omega"), max_angle=of("max_angle"))
    np.testing.assert_allclose(run(ours), run(by_sample), rtol=1e-5, atol=1e-6)


def test_a_gated_weight_is_kept_where_it_is_largest():
    guide = gj.guidance(gj.cfg, lambda s, t, c: 1 - (t - 0.5) ** 2)
    gated = methods.window(guide, 3, 8)
    table = gated.omega.table(jnp.asarray(gj.uniform_times(8)), process=networks.PROCESS)
    assert np.flatnonzero(np.asarray(table)).tolist() == [3, 4, 5]
    assert methods.evaluations(gated, 8) == 11


@pytest.mark.parametrize("name", JUDGED)
def test_no_method_is_learned_with_more_than_the_largest_search(name):
    protocol, sizes = PROTOCOLS[name], PROTOCOLS[name].sizes
    passes = 2 * sizes.sampling_steps
    most = max(methods.budget(method, protocol) for method in protocol.tuned)
    spent = sizes.updates * NUM_CLASSES * sizes.group * passes * 4
    assert spent <= most * sizes.tune_samples * passes < 1.01 * spent


@pytest.mark.parametrize("method", methods.PER_CLASS)
def test_numbers_of_each_class_begin_at_the_plain_method(method):
    each = methods.TUNED[method]
    plain = methods.TUNED[each.after]
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
    assert methods.evaluations(methods.window(guide, 0, 8), 8) == 8
    assert methods.evaluations(methods.window(guide, 8, 8), 8) == 16


def test_cells_of_another_protocol_are_not_taken(tmp_path):
    made_up(tmp_path)
    name = f"{TINY.sizes.denoisers[0][0]}/100"
    assert cells_of.Cells(TINY, tmp_path).done(name)
    for other in (dataclasses.replace(TINY, plain=7),
                  dataclasses.replace(TINY, sizes=Sizes(updates=999))):  # fmt: skip
        assert not cells_of.Cells(other, tmp_path).done(name)


def test_ratios_are_over_folds(tmp_path):
    cells = made_up(tmp_path)
    under = TINY.sizes.denoisers[0][0]
    found = report.ratio(cells, under, "rollout", "interval")
    ours, theirs = (
        np.array([cells.methods(under, s)[m]["figures"]["frechet"] for s in TINY.seeds])
        for m in ("rollout", "interval")
    )
    want = mean_interval(np.log(ours / theirs).reshape(3, 2).mean(axis=1))
    np.testing.assert_allclose(found, np.exp(want), rtol=1e-6)
    wider = report.ratio(cells, under, "rollout", "interval", count=7)
    assert wider.low < found.low < found.high < wider.high
    assert len(report.claims(cells)) == 7
    assert all(method in report.text(cells, "full") for method in cells_of.methods_of(TINY))


@pytest.mark.parametrize("name", JUDGED)
def test_what_is_finished_is_among_the_results(name, tmp_path, monkeypatch):
    cells = made_up(tmp_path, PROTOCOLS[name])
    monkeypatch.setattr(results, "DIGITS_RESULTS", tmp_path)
    cells.publish(tmp_path / name)
    found = results._digits(name).claims["learn"]
    assert [claim.claim for claim in found] == [each["claim"] for each in report.claims(cells)]
    assert all("%)" in claim.measured for claim in found)
    assert cells.protocol.learned[0] in found[0].claim
    figures.ratios(cells, tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").stat().st_size > 10_000


def test_a_claim_holds_where_its_numbers_do(tmp_path):
    cells = made_up(tmp_path)
    under, well = (name for name, _ in TINY.sizes.denoisers)
    for seed in TINY.seeds:
        for place, method in enumerate(cells_of.methods_of(TINY)):
            noise = 0.001 * np.sin(7 * seed + place)
            ours = method.startswith("rollout")
            cells.methods(under, seed)[method]["figures"]["frechet"] = (
                0.9 if ours else 1.0
            ) + noise
            cells.methods(well, seed)[method]["figures"]["frechet"] = (1.1 if ours else 1.0) + noise
    holds = {(e.denoiser, e.figure): [] for e in report.asked(cells)}
    for each, found in zip(report.asked(cells), report.claims(cells), strict=True):
        holds[each.denoiser, each.figure].append(found["holds"])
    assert holds[under, "frechet"] == [True] * 5
    assert holds[well, "frechet"] == [False]


def test_folds_that_share_images_make_wider_intervals():
    found = report.widened(Interval(1.0, np.exp(-0.2), np.exp(0.3)), 5)
    # Nadeau and Bengio: √(1/5 + 1/4) where √(1/5) stood.
    np.testing.assert_allclose(np.log(found), [0, -0.3, 0.45], atol=1e-9)


def test_a_protocol_that_can_t_be_summed_up_is_refused():
    with pytest.raises(ValueError, match="expects interval among its methods"):
        dataclasses.replace(FULL, tuned=("unguided", "constant"))
    with pytest.raises(ValueError, match="20 seeds are no multiple of 3"):
        dataclasses.replace(FULL, each=3)


def test_a_part_is_not_summed_up(tmp_path):
    cells = made_up(tmp_path)
    (tmp_path / "cells" / "well-trained" / "103.json").unlink()
    assert report.text(cells, "full").startswith("11 of its 12 cells")


def test_the_page_is_what_the_results_make(tmp_path):
    page = (DOCS / "digits.md").read_text()
    for name in set(PROTOCOLS) - {"quick"}:
        cells = cells_of.Cells(PROTOCOLS[name], tmp_path, digits.RESULTS / name)
        made = report.page(page, name, cells)
        assert page == made, f"python -m experiments.digits --preset {name} --publish"


@pytest.mark.slow
def test_features_made_equal_are_as_far_from_the_unguided_samples():
    x0 = jax.random.normal(jax.random.key(0), (200, 8, 8, 1))
    unguided = 1.5 + 2 * jax.random.normal(jax.random.key(1), (200, 8, 8, 1))
    wide = lambda x: 9 * x[:, :4]
    seen = methods.Seen(
        Sizes(), [gj.objectives.pixels, wide], x0, jnp.arange(200) % 10, lambda: unguided
    )
    objective = methods.OBJECTIVES["features made equal"](seen)
    for feature in objective.features:
        ours, true = (jnp.mean(feature(x), axis=0) for x in (unguided, x0))
        assert float(jnp.linalg.norm(ours - true)) == pytest.approx(1, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.LEARNED)
def test_each_form_begins_as_cfg_at_the_same_omega(name):
    rule, net, _ = methods.LEARNED[name]
    guide = gj.guidance(rule, **net.weights(net.init(jax.random.key(0))))
    assert methods.evaluations(guide, 4) == 8
    keys = jax.random.split(jax.random.key(1), 3)
    cond, uncond, x = (jax.random.normal(key, (4, 8, 8, 1)) for key in keys)
    got = guide.combine(
        {"cond": cond, "uncond": uncond}, x=x, t=0.6, s=0.5, condition=jnp.arange(4),
        process=networks.PROCESS,
    )  # fmt: skip
    np.testing.assert_allclose(got, cond + 0.5 * (cond - uncond), rtol=1e-4, atol=1e-5)


SMALL = Sizes(
    denoisers=(("under-trained", 20),), classifier_steps=20, tune_samples=40, report_samples=60,
    updates=2, group=4, sampling_steps=4, hidden=16, depth=1, batch=16,
)  # fmt: skip


@pytest.mark.slow
def test_the_whole_of_it_is_a_report_and_nothing_is_done_twice(tmp_path, monkeypatch):
    tiny = dataclasses.replace(
        PROTOCOLS["quick"], sizes=SMALL, plain=4, tuned=("unguided", "constant", "interval"),
        learned=("rollout", "self-consistency"),
    )  # fmt: skip
    monkeypatch.setitem(PROTOCOLS, "quick", tiny)
    # A perceptron and a convolution of each. Others in their place, for a dict that gets its items
    # back has them in another order, and what cells are of depends on it.
    seen, choice = (dict(list(each.items())[:2]) for each in (networks.SEEN, networks.CHOICE))
    monkeypatch.setattr(networks, "SEEN", seen)
    monkeypatch.setitem(networks.REPORTS, "choice", choice)
    config = digits.Config(out=tmp_path, jobs=1)
    digits.main(config)
    found = json.loads((tmp_path / "quick" / "metrics.json").read_text())
    assert set(found["cells"]) == {f"under-trained/{seed}" for seed in tiny.seeds}
    for cell in found["cells"].values():
        assert list(cell) == [
            *tiny.tuned, "interval (oracle)", *tiny.learned[:1], "rollout, gated", *tiny.learned[1:]
        ]  # fmt: skip
        frechet = {method: each["figures"]["frechet"] for method, each in cell.items()}
        assert frechet["interval (oracle)"] <= frechet["interval"] * (1 + 1e-4)
        assert cell["interval"]["least"][-1] <= cell["constant"]["least"][-1] * (1 + 1e-4)
        assert cell["unguided"]["figures"]["evaluations"] == 4
        assert cell["rollout"]["figures"]["evaluations"] == 8
    page = (tmp_path / "quick" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    with monkeypatch.context() as patch:  # What is finished isn't done again; the rest is.
        gone = tmp_path / "quick" / "cells" / "under-trained" / f"{tiny.seeds[1]}.json"
        gone.unlink()
        done = []
        run = cells_of.run
        patch.setattr(
            cells_of, "run", lambda *args: run(*args) if done.append(args[2]) is None else None
        )
        digits.main(config)
        assert done == [tiny.seeds[1]]
    assert json.loads((tmp_path / "quick" / "metrics.json").read_text()) == found
