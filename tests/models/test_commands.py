"""generate, learn and evaluate, each end to end on small random checkpoints."""

import dataclasses
import importlib
import json
import pathlib
import re
import shlex
import shutil
import types

import jax
import numpy as np
import PIL.Image
import pytest
import tyro

from experiments import checkpoints, evaluate, generate, guides, learn, logs, pictures, tuned
from guidejax.data import load_examples

from . import small

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Stable Diffusion, CLIP, SiT and pictures."""
    place = tmp_path_factory.mktemp("checkpoints")
    small.stable_diffusion(place / "sd")
    small.judge(place / "clip")
    small.transformer(place / "sit")
    small.pictures(place / "pictures")
    small.pictures(place / "classed", said=("0", "2"), count=8)
    return place


def run(module, *flags):
    return module.main(tyro.cli(module.Config, args=[str(flag) for flag in flags]))


def of_the_readme(place, out):
    """README's commands, on the small checkpoints and in small numbers."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- commands: models -->\n```bash\n(.*?)```", text, re.DOTALL)[1]
    there = {
        "stable-diffusion-v1-5": place / "sd", "clip-vit-base-patch32": place / "clip",
        "pictures": place / "pictures", "runs/omega": out / "omega",
    }  # fmt: skip
    for line in block.splitlines()[1:]:
        _, _, name, *flags = shlex.split(line)
        module = importlib.import_module(name)
        flags = [str(there.get(flag, flag)) for flag in flags]
        config = tyro.cli(module.Config, args=flags)
        small_numbers = {"batch": 2, "steps": 3}
        if module is learn:
            small_numbers |= {"updates": 1, "particles": 2}
        else:
            small_numbers |= {"out": out / str(len(config.omegas))}
        yield module, dataclasses.replace(config, **small_numbers)


@pytest.mark.slow
def test_what_the_readme_says_of_public_models(place, tmp_path, monkeypatch):
    # One device, as the commands are for; several are in the tests below.
    auto = (jax.sharding.AxisType.Auto,) * 2
    alone = jax.make_mesh((1, 1), ("data", "model"), auto, devices=jax.devices()[:1])
    monkeypatch.setattr(checkpoints, "devices", lambda model: alone)
    one, sweep, learned = of_the_readme(place, tmp_path)
    assert list(one[0].main(one[1])) == ["CFG, ω = 4"]
    found = sweep[0].main(sweep[1])
    assert list(found) == [f"{r}, ω = {w}" for r in ("CFG", "ADG") for w in ("0", "3", "6.5", "12")]
    assert found["CFG, ω = 0"] == pytest.approx(found["ADG, ω = 0"], rel=1e-4)
    assert found["CFG, ω = 12"] != found["ADG, ω = 12"]
    assert json.loads((tmp_path / "4" / "statistics.json").read_text()) == found
    with PIL.Image.open(tmp_path / "4" / "grid.png") as grid:
        assert grid.width > grid.height > 300
    assert len(list((tmp_path / "4" / "pictures").rglob("*.png"))) == 16
    learned[0].main(learned[1])
    is_a_weight_of_the_prompt(place, tmp_path / "omega")


@pytest.mark.slow
def test_classes_and_three_guided_channels(place, tmp_path, monkeypatch):
    flags = ("--model.checkpoint", place / "sit", "--classes", 0, 2, "--steps", 2)
    two = ("--model.dtype", "bfloat16", "--model.mesh", 4, 2)
    more = (
        *flags,
        *two,
        "--out",
        tmp_path,
        "--guide.channels",
        3,
        "--guide.lo",
        0.2,
        "--guide.hi",
        0.8,
    )
    found = run(generate, *more)
    assert list(found) == ["CFG, ω = 4, 0.2 ≤ t ≤ 0.8"]
    with monkeypatch.context() as patch:  # What is drawn isn't drawn again; another seed's is.
        patch.setattr(generate, "draw", lambda *args, **options: 1 / 0)
        assert run(generate, *more) == found
        with pytest.raises(ZeroDivisionError):
            run(generate, *more, "--seed", 1)
    with pytest.raises(SystemExit, match="3 are no classes of this model, which are 0 to 2"):
        run(generate, "--model.checkpoint", place / "sit", "--classes", 3)
    with pytest.raises(SystemExit, match="takes --classes"):
        run(generate, "--model.checkpoint", place / "sit", "--prompts", "a cat")
    with pytest.raises(SystemExit, match="expected some of cfg, adg"):
        run(generate, *flags, "--rules", "cgf")


def test_a_checkpoint_that_says_nothing_of_itself_is_asked_for_its_name(place, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((place / "sit/model.safetensors").read_bytes())
    model = checkpoints.Model(str(tmp_path))
    with pytest.raises(SystemExit, match=r"give --model.name, such as SiT-XL/2"):
        checkpoints.load(model)
    with pytest.raises(SystemExit, match="--mesh 3 has 3 devices; there are 8"):
        checkpoints.devices(checkpoints.Model("", mesh=(3,)))


def is_a_weight_of_the_prompt(place, folder):
    net, phi, _ = learn.load(folder)
    curves = json.loads((folder / "omega.json").read_text())
    assert set(curves["omega"]) == {"a cat", "a dog", "a cat and a dog"}
    assert len(curves["times"]) == 4
    assert (folder / "omega.png").stat().st_size > 5000
    omega = guides.guidance(guides.Guide(weight=folder)).omega
    found = checkpoints.load(checkpoints.Model(str(place / "sd")))
    said = found.condition(["a cat"])
    at = omega(0.4, 0.5, said, process=found.denoise.process)
    expected = net.weight(phi)(0.4, 0.5, said, process=found.denoise.process)
    np.testing.assert_array_equal(at, expected)


def of_classes(place, out, *flags):
    run(
        learn, "--model.checkpoint", place / "sit", "--model.vae", place / "sd" / "vae", "--data",
        place / "classed", "--batch", 8, "--particles", 2, "--steps", 2, "--out", out, *flags,
    )  # fmt: skip


@pytest.mark.slow
def test_learning_goes_on_where_it_was_killed(place, tmp_path, monkeypatch):
    flags = ("--updates", 5, "--save-every", 2)
    of_classes(place, tmp_path / "whole", *flags)

    def killed(step, metrics):
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        fit = learn.gj.fit_omega
        stopped = lambda *args, **options: fit(*args, **{**options, "progress": killed})
        patch.setattr(learn.gj, "fit_omega", stopped)
        with pytest.raises(KeyboardInterrupt):
            of_classes(place, tmp_path / "killed", *flags)
    of_classes(place, tmp_path / "killed", *flags)
    again, phi = (learn.load(tmp_path / name)[1] for name in ("killed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, again, phi)
    with pytest.raises(SystemExit, match=r"latents of shape \(8, 8, 4\).*--model.vae"):
        run(learn, "--model.checkpoint", place / "sit", "--data", place / "classed",
            "--batch", 8, "--out", tmp_path / "other")  # fmt: skip


@pytest.mark.slow
def test_results_of_other_files_or_flags_are_not_taken_for_these(place, tmp_path):
    of_classes(place, tmp_path / "omega", "--updates", 1)
    with pytest.raises(SystemExit, match=r"of another run \(data .*give another --out"):
        run(learn, "--model.checkpoint", place / "sit", "--model.vae", place / "sd" / "vae",
            "--data", place / "pictures", "--batch", 8, "--out", tmp_path / "omega")  # fmt: skip
    with pytest.raises(SystemExit, match=r"of another run \(rule 'cfg', now 'apg'"):
        of_classes(place, tmp_path / "omega", "--updates", 1, "--rule", "apg")
    flags = (
        "--model.checkpoint", place / "sit", "--classes", 0, 2, "--steps", 2, "--guide.weight",
        tmp_path / "omega", "--out", tmp_path / "drawn",
    )  # fmt: skip
    first = run(generate, *flags)
    assert run(generate, *flags) == first
    # Another weight in the same folder is drawn with, beside weights that are asked for.
    shutil.rmtree(tmp_path / "omega")
    of_classes(place, tmp_path / "omega", "--updates", 3, "--learning-rate", 1.0)
    other = run(generate, *flags, "--omegas", 2)
    assert list(other) == ["CFG, ω = 2", "learned (omega)"]
    assert other["learned (omega)"] != first["learned (omega)"]
    for wrong, message in (
        (("--reward-weight", 1.0), "give one, --reward"),
        (("--objective", "rollout", "--particles", 3), "--batch 8 isn't a multiple of 3 particles"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(learn, "--model.checkpoint", place / "sit", "--data", place / "classed",
                "--batch", 8, "--out", tmp_path / "wrong", *wrong)  # fmt: skip


def test_files_are_told_from_others(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(300_000))
    before = checkpoints.fingerprint(tmp_path)
    assert checkpoints.fingerprint(tmp_path) == before
    for at in (0, 150_000, 299_999):
        path.write_bytes(bytes(at) + b"x" + bytes(299_999 - at))
        assert checkpoints.fingerprint(tmp_path) != before
    path.write_bytes(bytes(300_001))
    assert checkpoints.fingerprint(tmp_path) != before


@pytest.mark.slow
def test_a_rollout_learns_two_numbers_of_adg(place, tmp_path):
    of_classes(place, tmp_path, "--objective", "rollout", "--rule", "adg", "--updates", 2)
    net, phi, _ = learn.load(tmp_path)
    assert sorted(net.weights(phi)) == ["max_angle", "omega"]
    assert set(json.loads((tmp_path / "omega.json").read_text())["omega"]) == {"0", "2"}


def test_presets_say_what_the_paper_does_not():
    names = set(vars(learn.Preset())) - {"ours"}
    for name, preset in learn.PRESETS.items():
        assert set(preset.ours) <= names, name
        assert {"learning_rate", "s_min", "t_max"} <= set(preset.ours), name  # It tells of none.
    assert learn.PRESETS["imagenet64"].beta == 1.75
    assert learn.PRESETS["coco"].updates == 50_000
    config = learn.Config(checkpoints.Model(""), preset="coco", batch=8)
    chosen = learn.settings(config)
    assert (chosen.batch, chosen.reward_weight) == (8, 0.0)  # Without --reward there is none.


@pytest.mark.slow
def test_an_evaluation_tunes_on_other_pictures_and_does_nothing_twice(place, tmp_path):
    flags = (
        "--model.checkpoint", place / "sd", "--data", place / "pictures", "--judge",
        place / "clip", "--methods", "constant", "--settings", 2, "--seeds", 2, "--resamples", 2,
        "--batch", 8, "--steps", 2, "--out", tmp_path,
    )  # fmt: skip
    found = run(evaluate, *flags)
    assert list(found) == ["unguided", "constant"]
    assert found["unguided"]["evaluations"]["mean"] == 2 < found["constant"]["evaluations"]["mean"]
    assert all(np.isfinite(e["mean"]) for row in found.values() for e in row.values())
    report = (tmp_path / "report.md").read_text()
    assert "the network that judges also tuned" in report
    assert found["unguided"]["over the best tuned"].keys() == {"mean", "low", "high"}
    assert "| method | Fréchet distance / constant |" in report
    assert "6 pictures to report on, 6 others to tune on" in report
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.json")}
    assert len(before) == 5
    (tmp_path / "cells" / "report" / "unguided" / "1.json").unlink()
    assert run(evaluate, *flags) == found
    after = {path: path.stat().st_mtime_ns for path in before}
    assert sum(after[path] != before[path] for path in before) == 1
    run(evaluate, *flags[:-4], "--steps", 1, *flags[-2:])  # Another sampler: nothing is kept.
    assert all(path.stat().st_mtime_ns != after[path] for path in after)
    with pytest.raises(SystemExit, match="--judge is missing"):
        run(evaluate, "--model.checkpoint", place / "sd", "--data", "x")


# What is learned on isn't reported on


def of_pixels():
    """What `pictures` asks of a checkpoint: one of 16 pixels without a VAE."""
    return types.SimpleNamespace(
        pixels=16, kind="prompts", encode=None, told="a model",
        noise=lambda key, count: np.zeros((count, 16, 16, 3)),
    )  # fmt: skip


def prepared(folder):
    return np.concatenate([row["x0"] for row in load_examples(
        folder, batch_size=1, shuffle=False, epochs=1
    )])  # fmt: skip


def as_rows(x0):
    return {np.asarray(each, np.float32).tobytes() for each in x0}


def test_half_of_the_pictures_is_the_half_that_is_tuned_on(place, tmp_path):
    data, found = str(place / "pictures"), of_pixels()
    where = pictures.prepare(data, found, tmp_path / "omega" / "latents", half_of=10)
    order = [picture for picture, _ in pictures.examples(data, found, 0)][:10]
    learned, tuned, reported = (
        as_rows(x0)
        for x0 in (prepared(where), *(order[pictures.HALVES[part]] for part in pictures.HALVES))
    )
    assert learned == tuned
    assert len(learned) == 5
    assert not learned & reported
    assert "the half of 10 pictures" in pictures.learned_on(where.parent, data, 1000)
    # Whatever number of pictures an evaluation takes, it reports on none of them.
    assert not learned & as_rows([x for x, _ in pictures.examples(data, found, 0)][1::2])
    for other in (None, 12):
        with pytest.raises(SystemExit, match=r"of another run \(half_of 10"):
            pictures.prepare(data, found, where, half_of=other)


def test_a_weight_learned_on_what_is_reported_on_is_refused(place, tmp_path):
    data, found, weight = str(place / "pictures"), of_pixels(), tmp_path / "omega"
    pictures.prepare(data, found, weight / "latents")
    with pytest.raises(SystemExit, match=r"learned on all of .*--half-of 600"):
        pictures.learned_on(weight, data, 600)
    # Before anything is loaded: there is no such checkpoint.
    with pytest.raises(SystemExit, match=r"learned on all of .*--half-of 1000"):
        run(evaluate, "--model.checkpoint", tmp_path / "none", "--data", data, "--judge",
            place / "clip", "--weights", weight)  # fmt: skip
    assert "other data" in pictures.learned_on(weight, str(place / "classed"), 1000)
    # A folder as it was written before there was a half.
    record = weight / "latents.json"
    old = json.loads(record.read_text())
    del old["half_of"]
    record.write_text(json.dumps(old))
    with pytest.raises(SystemExit, match="learned on all of"):
        pictures.learned_on(weight, data, 1000)
    pictures.prepare(data, found, weight / "latents")  # It goes on.
    # What is learned on those latents is of those pictures.
    other = tmp_path / "other"
    assert pictures.prepare(str(weight / "latents"), found, other / "latents") == weight / "latents"
    with pytest.raises(SystemExit, match="learned on all of"):
        pictures.learned_on(other, data, 1000)
    with pytest.raises(SystemExit, match="with the pictures themselves"):
        pictures.prepare(str(weight / "latents"), found, other / "latents", half_of=4)
    assert "isn't noted" in pictures.learned_on(tmp_path / "unknown", data, 1000)


def test_methods_are_compared_pair_by_pair():
    """Noise and pictures that move all methods alike don't hide which is better."""
    distances = {"unguided": (12.0, 21.0, 33.0), "constant": (10.0, 19.0, 30.0),
                 "learned": (9.0, 17.2, 27.0), "at 0": (0.0, 1.0, 1.0)}  # fmt: skip
    rows = {
        method: [
            dict.fromkeys(evaluate.COLUMNS, value)
            | {"frechet resampled": [value * by for by in (0.8, 1.0, 1.3)]}
            for value in values
        ]
        for method, values in distances.items()
    }
    results = {method: evaluate.summary(each) for method, each in rows.items()}
    apart = results["learned"]["frechet"]["mean"] - results["constant"]["frechet"]["mean"]
    assert abs(apart) < results["constant"]["frechet"]["half width"]
    found = evaluate.ratios(rows, "constant")
    assert list(found) == ["unguided", "learned"]
    assert found["learned"]["mean"] == pytest.approx(0.902, abs=1e-3)
    assert 0.88 < found["learned"]["low"] < found["learned"]["high"] < 0.92
    # How the ratio, and not each distance, varies over resampled pictures widens it.
    for row in rows["learned"]:
        row["frechet resampled"] = [row["frechet"] * by for by in (1.0, 1.0, 1.0)]
    assert evaluate.ratios(rows, "constant")["learned"]["high"] > 1
    shown = evaluate.ratio_table(found, "constant")
    assert "| method | Fréchet distance / constant |" in shown
    assert "| learned | 0.902 (0." in shown
    one = evaluate.ratios({method: each[:1] for method, each in rows.items()}, "constant")
    assert set(one["learned"]) == {"mean"}
    assert evaluate.best_tuned(results, ("constant", "learned")) == "learned"
    assert evaluate.best_tuned(results, ()) is None


def an_evaluation(out):
    """One that has loaded nothing."""
    found = object.__new__(evaluate.Evaluation)
    found.config, found.told = evaluate.Config(checkpoints.Model(""), out=out), ["of", 1]
    found.kept = evaluate.Cells((), [out / "cells"])
    return found


def test_another_search_space_is_searched_anew(tmp_path, monkeypatch):
    made = []

    def tune(self, method, special):
        made.append(method)
        return {"numbers": {name: n.start for name, n in tuned.TUNED[method].space.items()}}

    monkeypatch.setattr(evaluate.Evaluation, "tune", tune)
    first = list(an_evaluation(tmp_path).guides())
    assert first == ["unguided", *evaluate.TUNED]
    an_evaluation(tmp_path).guides()
    assert made == list(evaluate.TUNED)
    other = dataclasses.replace(tuned.TUNED["apg"], others=())
    monkeypatch.setitem(tuned.TUNED, "apg", other)
    an_evaluation(tmp_path).guides()
    assert made == [*evaluate.TUNED, "apg"]
    kept = json.loads((tmp_path / "cells/tune/apg.json").read_text())
    assert kept.keys() == {"about", "found"}


def test_what_pictures_are_of(tmp_path, place):
    assert set(pictures.said(place / "pictures").values()) == {"a cat", "a dog", "a cat and a dog"}
    classes = tmp_path / "classes"
    for name in ("3", "7"):
        (classes / name).mkdir(parents=True)
        small.pictures(classes / name / "inner", count=1)
        (classes / name / "inner" / "00.png").rename(classes / name / "00.png")
        (classes / name / "inner" / "00.txt").unlink()
    assert sorted(pictures.said(classes).values()) == ["3", "7"]
    (classes / "metadata.jsonl").write_text('{"file_name": "3/00.png", "text": "three"}\n')
    with pytest.raises(SystemExit, match=r"1 of the 2 pictures .* 00.png among them"):
        pictures.said(classes)
    with pytest.raises(SystemExit, match="holds no pictures"):
        pictures.said(tmp_path / "classes" / "3" / "inner")
    read = pictures.read(place / "pictures" / "00.png", 16)
    assert read.shape == (16, 16, 3)
    assert -1 <= read.min() < read.max() <= 1
    long = pictures._as_bytes("ü" * 300)
    assert pictures.texts(long[None]) == ["ü" * 200]


def test_libraries_are_quiet_while_work_says_what_it_does(capsys):
    import logging

    logs.begin()
    logging.getLogger("absl").info("chatter")
    logging.getLogger("experiments.learn").info("update 1")
    said = capsys.readouterr().err
    assert "update 1" in said
    assert "chatter" not in said
