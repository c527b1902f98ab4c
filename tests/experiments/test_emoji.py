"""The emoji experiment with every size cut down, on the networks of the repository."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import scipy.stats
from flax import traverse_util

import guidejax as gj
from experiments.emoji import __main__ as emoji
from experiments.emoji import (
    arena,
    captions,
    docs,
    figures,
    methods,
    report,
    storage,
    towers,
    train,
)
from experiments.emoji import cells as cells_module
from experiments.emoji.arena import Arena, evaluations, nearest, train_pictures
from experiments.emoji.cells import Cells
from experiments.emoji.config import PLANS, Config, Plan

TINY = Plan(
    early=("0",), long=(), settings=2, seeds=2, methods=("unguided", "interval"),
    both=("interval",), steps=2, batch=4, selection=48, report=20, resamples=2,
    constants=(0.0, 2.0), line=(0.0, 2.0), omegas=(0.0, 7.0), draws=2, diverse=(2, 2), anew=1,
)  # fmt: skip


# The networks, and the page


@pytest.mark.slow
def test_the_page_is_what_the_repository_holds():
    assert (docs.DOCS / "emoji.md").read_text() == docs.page()


@pytest.mark.slow
def test_towers_tell_pictures_that_they_never_saw():
    """Far above chance, one in 461 and five in 461: a tower that can't tell says nothing."""
    for name in towers.REPORT:
        found = towers.retrieval(towers.load(name), "report")
        assert min(found["caption first"], found["picture first"]) > 0.3, name
        assert min(found["caption in five"], found["picture in five"]) > 0.6, name
    told = towers.accuracy(towers.load_classifier(), "report")
    assert min(told.values()) > 0.75
    assert told["tone"] > 0.95


@pytest.mark.slow
def test_the_log_of_the_towers_is_that_of_the_weights():
    lines = (storage.WEIGHTS / "towers.jsonl").read_text().splitlines()
    logged = {line["tower"]: line for line in map(json.loads, lines)}
    assert set(logged) == {*towers.PAIRS, towers.ATTRIBUTES}
    found = towers.retrieval(towers.load("reward"), "report")
    # bfloat16 moves a rank or two.
    assert found == pytest.approx(logged["reward"]["report"], abs=0.02)


@pytest.mark.slow
def test_figures_that_a_gpu_made_are_found_again():
    cells = docs.published()
    (row, *_) = cells["report/0/unguided"]
    found = cells._diversity("0", cells.guide("0", "unguided", 0))
    assert found["diversity"] == pytest.approx(row["diversity"], rel=1e-3)


def test_all_weights_together_are_small():
    assert sum(path.stat().st_size for path in storage.WEIGHTS.iterdir()) < 24e6


def test_no_tower_of_the_report_is_one_that_may_be_seen():
    assert not towers.SEEN.keys() & towers.REPORT.keys()
    assert len(towers.PAIRS) == len({(pair.image, pair.text) for pair in towers.PAIRS.values()})


@pytest.mark.slow
def test_conditions_are_the_words_and_nothing_where_there_are_none():
    cond = towers.prompts(["red heart", ""])
    assert cond["words"].shape == (2, captions.LENGTH, 64)
    assert np.asarray(jnp.any(cond["words"] != 0, axis=-1).sum(axis=1)).tolist() == [2, 0]
    pooled = towers.pooled(cond)
    np.testing.assert_allclose(pooled[0], cond["words"][0, :2].mean(axis=0), rtol=1e-6)
    assert not pooled[1].any()
    assert captions.tokens(["red heart"])[0].tolist() == cond["tokens"][0].tolist()


@pytest.mark.slow
def test_networks_of_another_copy_of_the_emoji_are_refused(tmp_path, monkeypatch):
    storage.save(tmp_path / "net.safetensors", {"a": jnp.ones(2)}, {"width": 3})
    params, about = storage.read(tmp_path / "net.safetensors")
    assert about["width"] == 3
    assert params["a"].tolist() == [1, 1]
    monkeypatch.setattr(captions, "vocabulary", dict)
    with pytest.raises(ValueError, match="another copy"):
        storage.read(tmp_path / "net.safetensors")


# Methods


@pytest.mark.parametrize("method", methods.TUNED)
def test_a_search_begins_at_a_guidance_that_makes_sense(method):
    tuned = methods.TUNED[method]
    numbers = {name: number.start for name, number in tuned.space.items()}
    assert tuned.allowed(numbers)
    guide = tuned.guide(**numbers)
    assert evaluations(guide, 4) == 4 if method == "unguided" else 4 < evaluations(guide, 4) <= 8


def test_the_interval_per_group_gives_each_group_its_own():
    numbers = {f"omega {g}": float(g + 1) for g in range(4)}
    numbers |= {f"lo {g}": 0.2 for g in range(4)} | {f"hi {g}": 0.5 + 0.1 * g for g in range(4)}
    groups = ["People & Body", "Smileys & Emotion", "Flags", "Objects"]
    cond = towers.prompts(groups, groups=groups)
    omega = methods.TUNED["interval per group"].guide(**numbers).omega
    assert omega(0.3, 0.45, cond).tolist() == [1, 2, 3, 4]
    assert omega(0.5, 0.65, cond).tolist() == [0, 0, 3, 4]
    assert not methods.TUNED["interval per group"].allowed(numbers | {"lo 2": 0.9})


def test_learning_spends_no_more_than_tuning():
    plan = PLANS["full"]
    cells = Cells(plan, storage.WEIGHTS, [], print)
    tuning = plan.settings * plan.selection * plan.steps * 2
    for form in methods.LEARNED.values():
        each = methods.evaluations_of_an_update(form, plan.batch, plan.steps, plan.particles)
        assert tuning / 2 < cells._updates(form) * each <= tuning


def test_schedules_are_compared_at_one_mean_weight():
    times = gj.uniform_times(PLANS["full"].steps)
    tables = {
        name: np.broadcast_to(weight.table(times, process=train.PROCESS), len(times) - 1)
        for name, weight in cells_module.SCHEDULES.items()
    }
    for name, table in tables.items():
        assert np.sum(table * -np.diff(times)) == pytest.approx(cells_module.MEAN, rel=1e-4), name
    assert (tables["early strong"] > 0).tolist() == [True] * 7 + [False] * 5
    assert (tables["late strong"] > 0).tolist() == [False] * 6 + [True] * 6


def test_batches_come_again_and_hold_pairs():
    x0 = np.arange(10.0)[:, None]
    cond = {"tokens": np.arange(10)[:, None]}
    first, again = (iter(methods.Batches(x0, cond, 4, seed=3)) for _ in range(2))
    seen = []
    for _ in range(4):
        one, two = next(first), next(again)
        np.testing.assert_array_equal(one["x0"], two["x0"])
        np.testing.assert_array_equal(one["x0"], one["cond"]["tokens"])
        seen.append(one["x0"].ravel().tolist())
    assert len({*seen[0], *seen[1]}) == 8  # A round holds a picture once.


@pytest.mark.slow
def test_chosen_on_and_reported_on_are_apart():
    cells = Cells(PLANS["full"], storage.WEIGHTS, [], print)
    chosen, reported = cells.selection(), cells.reported("report")
    assert not {*chosen.captions} & {*reported.captions, *cells.reported("composed").captions}
    assert not {*chosen.names} & {*reported.names}
    halves = [cells.selection(part).captions for part in (0, 1)]
    assert not {*halves[0]} & {*halves[1]}
    assert {*halves[0]} | {*halves[1]} == {*chosen.captions}
    seeds = ((), (0,), (1,), (0, 0), (1, 0))
    keys = [jax.random.key_data(cells.key(part, *seed)) for part in range(7) for seed in seeds]
    assert len({tuple(np.asarray(key).tolist()) for key in keys}) == len(keys)


def test_the_quick_preset_never_takes_hours(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "RESULTS", tmp_path / "none")
    with pytest.raises(SystemExit, match="tune/0/constant"):
        emoji.main(Config(out=tmp_path))
    with pytest.raises(SystemExit, match="--preset wide --publish"):
        emoji.main(Config(out=tmp_path, publish=True))


def test_a_denoiser_that_is_trained_here_is_of_the_usual_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(train.Config, "out", tmp_path)
    cells = Cells(PLANS["wide"], storage.WEIGHTS, [], print)
    with pytest.raises(SystemExit, match=r"isn't at .*train --seed 3"):
        cells.denoiser("3")
    (tmp_path / "3").mkdir()
    net = train.network(24, 1)
    words = jnp.ones((1, captions.LENGTH, 64))
    params = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.ones(1), words)
    storage.save(tmp_path / "3/denoiser-3.safetensors", params, {"width": 24, "depth": 1})
    settings = tmp_path / "3/config.json"
    settings.write_text(json.dumps(train.identity(train.Config(3, steps=100))))
    with pytest.raises(SystemExit, match="other settings"):
        cells.denoiser("3")
    settings.write_text(json.dumps(train.identity(train.Config(3, every=2500))))
    assert jax.tree.map(jnp.shape, cells.denoiser("3").params) == jax.tree.map(jnp.shape, params)


# Claims


def a_report(plan, frechet, score=0.5):
    """Cells whose report is made up: distance and score by denoiser, method and seed."""
    cells = Cells(plan, storage.WEIGHTS, [], print)
    for denoiser in cells.denoisers:
        for method in cells.compared(denoiser):
            rows = []
            for seed in range(plan.seeds):
                value = frechet(denoiser, method, seed)
                row = dict.fromkeys((name for name, _, _ in report.COLUMNS), score)
                row |= {"frechet": value, "frechet resampled": [value, 1.01 * value]}
                rows.append({"report": row, "composed": row, "evaluations": 4})
            cells.known[f"{plan.label}/{denoiser}/{method}"] = rows
    return cells


CLAIMED = Plan(
    early=("0", "1", "2"), long=("long",), seeds=4, methods=("unguided", "interval"), both=(),
    omegas=(), anew=0,
)  # fmt: skip


def test_one_pair_has_no_interval_and_is_not_judged():
    plan = dataclasses.replace(CLAIMED, early=("0",), long=(), seeds=1)
    cells = a_report(plan, lambda d, method, s: 0.5 if method == "learned" else 1.0)
    found = report.claims(cells)
    assert len(found) == report.asked(cells) == 6
    assert {claim["holds"] for claim in found} == {None}
    assert report.mark(found[0]) == "not judged: one pair"
    page = report._claims_as_html(found)
    assert "reached" not in page
    assert page.count("0.500, not judged: one pair") == 3


def test_seeds_of_a_denoiser_are_no_independent_pairs():
    """Denoisers differ, seeds hardly: many pairs would make an interval far too small."""
    rng = np.random.default_rng(0)
    by = {"0": 0.80, "1": 0.88, "2": 0.96, "long": 0.9}

    def frechet(denoiser, method, seed):
        return (by[denoiser] if method == "learned" else 1.0) * (1 + 1e-4 * rng.normal())

    cells = a_report(CLAIMED, frechet)
    assert report.asked(cells) == 12
    found = {claim["claim"]: claim for claim in report.claims(cells)}
    assert len(found) == 12
    first, *_ = found.values()
    value, each = first["value"], np.log([by[name] for name in "012"])
    half = scipy.stats.t.ppf(1 - 0.025 / 12, 2) * each.std(ddof=1) / np.sqrt(3)
    assert value["level"] == pytest.approx(100 * (1 - 0.05 / 12))
    assert np.log(value["high"] / value["mean"]) == pytest.approx(half, rel=0.01)
    assert value["mean"] <= 0.95
    assert first["holds"] is False  # The interval over three denoisers reaches beyond 1.
    np.testing.assert_allclose(value["each denoiser"], [by[name] for name in "012"], rtol=1e-3)
    # Of one denoiser the interval is over its noise.
    alone = next(c for text, c in found.items() if "trained for long" in text)
    assert alone["holds"] is True
    assert alone["value"]["high"] < 0.91
    table = report.summarise(cells, CLAIMED.early)
    row = table["learned"]["frechet"]
    assert row["high"] - row["low"] > 0.3


def test_what_a_weight_that_is_not_gated_claims_is_told_once():
    cells = a_report(CLAIMED, lambda d, method, s: 0.8 if "learned" in method else 1.0)
    for row in cells.known["report/0/learned, gated"]:
        row["evaluations"] = 12
    found = [claim["claim"] for claim in report.distinct(cells)]
    assert len(found) == 9
    assert sum("gated" in claim for claim in found) == 3
    assert not any("gated" in claim for claim in found if "trained for long" in claim)


def test_the_best_tuned_is_the_best_of_all():
    cells = a_report(CLAIMED, lambda d, method, s: 1.0 + 0.01 * s)
    del cells.known["report/1/interval"]
    assert {"long" in claim["claim"] for claim in report.claims(cells)} == {True}


def test_denoisers_trained_for_long_may_have_fewer_methods():
    plan = dataclasses.replace(
        CLAIMED, methods=("unguided", "constant", "interval"),
        long_methods=("unguided", "interval"), both=("interval",), seeds=2,
    )  # fmt: skip
    cells = a_report(plan, lambda d, method, s: 0.8 if method == "constant" else 1.0)
    assert {name for name in cells.functions if "/long/" in name} == {
        "tune/long/interval", "learn/long/0", "learn/long/1",
        *(f"report/long/{m}" for m in ("unguided", "interval", "learned", "learned, gated")),
    }  # fmt: skip
    found = [claim["claim"] for claim in report.claims(cells)]
    assert len(found) == report.asked(cells) == 13
    best = {text.split(" / ")[1].split(",")[0]: "trained for long" in text for text in found[:-1]
            if "best tuned" in text}  # fmt: skip
    assert best == {"constant": False, "interval": True}


def test_a_score_is_higher_where_its_interval_is():
    plan = dataclasses.replace(CLAIMED, long=(), both=("interval",))
    cells = a_report(plan, lambda d, method, s: 1.0)
    last = report.claims(cells)[-1]
    assert "interval above 0" in last["claim"]
    assert (last["value"]["low"], last["holds"]) == (0.0, False)
    for denoiser in plan.early:
        for row in cells.known[f"report/{denoiser}/learned, for both"]:
            row["report"] = row["report"] | {"clip score": 0.6}
    assert report.claims(cells)[-1]["holds"] is True


# Results in folders


def a_result(folder, name, **found):
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return path


def test_learned_weights_are_those_of_the_result(tmp_path):
    ours, published = tmp_path / "ours", tmp_path / "published"
    net = methods.LEARNED["rollout, times alone"].net
    for folder, size in ((ours, 0.0), (published, 1.0)):
        phi = jax.tree.map(lambda a, size=size: a + size, net.init(jax.random.key(0)))
        file = folder / "learn/0/0.safetensors"
        file.parent.mkdir(parents=True)
        safetensors.flax.save_file(traverse_util.flatten_dict(phi, sep="/"), file)
    a_result(published, "learn/0/0", form="rollout, times alone")
    # A run that was stopped left weights without a result in the first folder.
    cells = Cells(PLANS["full"], storage.WEIGHTS, [ours, published], print)
    expected = methods.LEARNED["rollout, times alone"].guide(phi)
    jax.tree.map(np.testing.assert_array_equal, cells.learned("0", 0), expected)
    (published / "learn/0/0.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"delete 0\.json there"):
        cells.learned("0", 0)


def test_learned_weights_are_written_whole(tmp_path, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    cells = Cells(PLANS["full"], storage.WEIGHTS, [tmp_path], print)
    cells.known["choice/distance"] = {"form": "rollout"}
    monkeypatch.setattr(Cells, "learned_from", lambda *args: None)
    monkeypatch.setattr(Cells, "_fit", lambda *args: {"a": jnp.ones(2)})
    monkeypatch.setattr(pathlib.Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        cells._learn("0", 0)
    assert not list(tmp_path.rglob("*.*"))


def test_publishing_keeps_what_is_finished_and_draws_the_page(tmp_path, monkeypatch):
    out, kept = tmp_path / "out", tmp_path / "kept"
    found = {"numbers": {"omega": 1.0}, "distance": 1.0, "reward": 0.0, "trace": []}
    done = a_result(out / "cells", "tune/0/constant", **found, rests=True)
    a_result(out / "cells", "tune/0/adg", **found, rests=False)  # Settings are left to score.
    a_result(out / "cells", "learn/0/0", form="rollout")
    (out / "cells/learn/0/0.safetensors").write_bytes(b"weights")
    a_result(kept, "sweep/0/cfg/0", omega=0.0)
    monkeypatch.setattr(emoji, "RESULTS", kept)
    monkeypatch.setattr(Cells, "run", lambda self, patterns: None)
    drawn = []
    monkeypatch.setattr(docs, "main", lambda: drawn.append(sorted(kept.rglob("*.*"))))
    emoji.main(Config("full", out, cells=("tune/*",), jobs=1, publish=True))
    names = [str(path.relative_to(kept)) for path in drawn[0]]
    assert names == [
        "learn/0/0.json", "learn/0/0.safetensors", "sweep/0/cfg/0.json", "tune/0/constant.json"
    ]  # fmt: skip
    assert (kept / "tune/0/constant.json").read_text() == done.read_text()
    assert (kept / "learn/0/0.safetensors").read_bytes() == b"weights"


def test_curves_that_are_one_have_one_line():
    one, other = (np.full(3, 0.4), "blue", "--"), (np.arange(3.0), "red", "-")
    found = figures.merged({"constant": one, "learned": other, "interval": (one[0], "green", "-")})
    assert list(found) == ["constant = interval", "learned"]
    assert found["constant = interval"] is one


def test_what_is_not_gated_is_not_drawn_again(monkeypatch):
    plan = dataclasses.replace(PLANS["full"], steps=4)
    cells = Cells(plan, storage.WEIGHTS, [], print)
    cells.known["report/0/learned"] = rows = [{"evaluations": 8}]
    whole = {"lo": 0.0, "hi": 1.0}
    gate = dict(whole)

    def guide(self, denoiser, method, seed):
        return gj.guidance(gj.cfg, gj.interval(2.0, **(gate if "gated" in method else whole)))

    def drawn(*args):
        raise InterruptedError

    monkeypatch.setattr(Cells, "guide", guide)
    monkeypatch.setattr(Cells, "reported", drawn)
    assert cells._report("0", "learned, gated") == rows
    gate["hi"] = 0.5
    with pytest.raises(InterruptedError):
        cells._report("0", "learned, gated")


# Measures


def _stirred(params):
    return jax.tree.map(lambda a: a + 0.01 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)


@pytest.mark.slow
def test_pictures_don_t_depend_on_how_many_are_drawn_at_a_time(monkeypatch):
    net = train.network(24, 1)
    cond = towers.prompts(["bear", "red heart", "flag: Wales"] * 3)
    params = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.ones(1), cond["words"][:1])
    params = _stirred(params)
    draw = lambda key: arena.generate(
        key, train.ready(net, params), gj.guidance(gj.cfg, 2.0), cond, 2
    )
    whole = draw(jax.random.key(1))
    monkeypatch.setattr(arena, "PART", 4)
    for parts in (draw, jax.jit(draw)):
        np.testing.assert_allclose(parts(jax.random.key(1)), whole, atol=2e-4)


@pytest.mark.slow
def test_real_pictures_are_at_distance_0_and_score_best():
    place = Arena("report", ("report-conv",), rows=np.arange(60), resamples=2)
    real = place.measure(place.x0)
    noise = place.measure(jax.random.normal(jax.random.key(0), place.x0.shape))
    assert abs(real["frechet"]) < 1e-3 * noise["frechet"]
    assert real["clip score"] > noise["clip score"] + 0.2
    assert real["accuracy"] > noise["accuracy"]
    assert 0 < min(real["frechet resampled"]) < min(noise["frechet resampled"])
    train = captions.pictures("train").x0[:4]
    np.testing.assert_array_equal(place.diversities(np.repeat(train[:1], 4, 0), 2), 0)
    assert place.diversities(train, 2).min() > 0.2


def test_a_training_picture_is_its_own_nearest():
    x0 = jnp.asarray(captions.pictures("train").x0[[5, 900]])
    distance, which = nearest(x0, train_pictures())
    np.testing.assert_allclose(distance, 0, atol=1e-3)
    assert which.tolist() == [5, 900]
    assert nearest(-x0, train_pictures())[0].min() > 0.1


# The whole


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of everything with one method, form, rule and schedule, and what it noted."""
    out, noted = tmp_path_factory.mktemp("emoji"), []
    for path in storage.WEIGHTS.glob("tower-*"):
        (out / path.name).symlink_to(path)
    net = train.network(24, 1)
    words = jnp.ones((1, captions.LENGTH, 64))
    params = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.ones(1), words)
    params = _stirred(params)  # Zeros at the end would say the same of every caption.
    storage.save(out / "denoiser-0.safetensors", params, {"width": 24, "depth": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "LEARNED", {"rollout": methods.LEARNED["rollout"]})
        patch.setattr(cells_module, "SWEEP_RULES", {"adg": cells_module.SWEEP_RULES["adg"]})
        patch.setattr(
            cells_module, "SCHEDULES", {"triangular": cells_module.SCHEDULES["triangular"]}
        )
        patch.setattr(Cells, "_updates", lambda self, form: 1)

        def make():
            return Cells(TINY, out, [out / "cells"], noted.append)

        cells = make()
        cells.run()
        yield out, cells, report.write(cells, out, "full", "a note"), noted, make


def test_a_cell_that_another_process_is_at_is_left_to_it(tmp_path):
    noted = []

    def make():
        cells = Cells(TINY, tmp_path, [tmp_path], noted.append)
        cells.functions = {"a": lambda: {"of": "a"}, "b": lambda: {"of": "b", "and": cells["a"]}}
        return cells

    ready, told = (tmp_path / name for name in ("ready", "told"))
    holder = subprocess.Popen(
        [sys.executable, "-c", f"""
import fcntl, json, pathlib, time
lock = open({str(tmp_path / "a.lock")!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
pathlib.Path({str(ready)!r}).touch()
while not pathlib.Path({str(told)!r}).exists():
    time.sleep(0.01)
time.sleep(0.2)
pathlib.Path({str(tmp_path / "a.json")!r}).write_text(json.dumps({{"of": "another"}}))
"""],
    )  # fmt: skip
    while not ready.exists():
        time.sleep(0.01)
    make()._make("a", False, "a")
    assert not noted
    told.touch()
    make().run()  # "b" needs "a", and waits for it.
    assert holder.wait() == 0
    assert json.loads((tmp_path / "b.json").read_text())["and"] == {"of": "another"}
    assert [line.split(": ")[-1] for line in noted] == ["b"]
    # One whose process ended without a result is done after all.
    (tmp_path / "a.json").unlink()
    make().run()
    assert json.loads((tmp_path / "a.json").read_text()) == {"of": "a"}
    assert not list(tmp_path.glob("*.lock"))


def _named(noted):
    return [line.split(": ")[1] for line in noted if not line.startswith(" ")]


@pytest.mark.slow
def test_every_cell_is_a_file_and_none_is_done_twice(run):
    out, cells, _, noted, make = run
    assert _named(noted) == list(cells.functions)
    assert any(line.startswith("  {'value': 1.0") for line in noted)  # A search says its scores.
    assert all((out / "cells" / f"{name}.json").exists() for name in cells.functions)
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    make().run()
    assert before == {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    with pytest.raises(SystemExit, match="no cell matches nothing"):
        cells.run(("nothing",))
    for name in ("tune/0/interval, for both", "sweep/0/adg/7"):
        (out / "cells" / f"{name}.json").unlink()
    again = make()
    again.run(("tune/0/*",))
    assert _named(noted)[-1] == "tune/0/interval, for both"
    assert again.find("sweep/0/adg/7") is None
    again.run()


@pytest.mark.slow
def test_the_report_has_every_method_and_claim(run):
    out, cells, results, _, _ = run
    table = results["summary"]["early-stopped"]
    assert list(table) == [
        "unguided", "interval", "learned", "learned, gated", "learned anew",
        "interval, for both", "learned, for both",
    ]  # fmt: skip
    assert all("low" in entry["frechet"] for entry in table.values())
    assert np.isfinite([e["mean"] for row in table.values() for e in row.values() if e]).all()
    assert table["unguided"]["evaluations"]["mean"] == 2
    gated, interval = (table[m]["evaluations"]["mean"] for m in ("learned, gated", "interval"))
    assert gated <= interval
    assert [row["omega"] for row in results["sweep"]["adg"]] == [0, 7]
    assert len(results["claims"]) == 10
    assert sum("composed" in claim["claim"] for claim in results["claims"]) == 3
    # One form was learned, so what is best for both is what is best for the distance.
    assert table["learned, for both"]["frechet"] == table["learned"]["frechet"]
    assert table["unguided"]["strength"]["mean"] == 0 < table["learned"]["strength"]["mean"]
    assert cells["tune/0/interval, for both"]["trace"][0] == cells["tune/0/interval"]["trace"][0]
    assert [row["omega"] for row in results["line"]] == [0, 2]
    assert [row["omega"] for row in results["constants"]] == [0, 2]
    assert [row["gamma"] for row in results["reward"]["rollout"]] == [0]
    said = results["self-consistency"]
    assert np.shape(said["loss"]) == np.shape(said["reward"]) == (len(said["omega"]), 24)
    page = (out / "report.html").read_text()
    # The grid, methods on a plane and beside constants, the sweep, rewards, schedules, ω over time.
    assert page.count("<figure>") == 7
    assert set(results["beside"]["early-stopped"]) == {"unguided", "interval"}
    assert max(results["gained"]["early-stopped"].values()) in (0, 1)
    assert results["gained"]["early-stopped"]["unguided"] == 0
    assert "a note" in page
    assert "nan" not in (out / "table.md").read_text()
    assert json.loads((out / "metrics.json").read_text())["preset"] == "full"
