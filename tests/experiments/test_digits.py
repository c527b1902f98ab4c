"""The main job end to end, with every size cut down."""

import dataclasses
import itertools
import json

import pytest

from experiments.digits import __main__ as digits
from experiments.digits import methods, networks, report
from experiments.digits.config import FIRST_SEED, PLANS, Config

FIRST, SECOND = str(FIRST_SEED), str(FIRST_SEED + 1)
TINY = dataclasses.replace(
    PLANS["full"],
    seeds=2,
    denoisers=(("under-trained", 20), ("well-trained", 20)),
    classifier_steps=20,
    tune_samples=40,
    report_samples=60,
    omegas=(0.5, 1.0),
    los=(0.0,),
    his=(0.5,),
    rollout_steps=4,
    rollout_group=4,
    consistency_steps=4,
    sampling_steps=4,
    hidden=16,
    depth=1,
    batch=16,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setitem(PLANS, "full", TINY)
    # A perceptron and a convolution of each.
    for seen_or_report in ("SEEN", "REPORT"):
        nets = getattr(networks, seen_or_report)
        patch.setattr(networks, seen_or_report, dict(itertools.islice(nets.items(), 2)))
    config = Config(preset="full", out=tmp_path_factory.mktemp("runs") / "digits")
    digits.main(config)
    yield config
    patch.undo()


@pytest.mark.slow
def test_writes_what_the_readme_promises(run):
    for name in ("report.html", "metrics.json", "log.txt", "table.md"):
        assert (run.out / name).stat().st_size > 0
    results = json.loads((run.out / "metrics.json").read_text())
    assert set(results["seeds"]) == {FIRST, SECOND}
    for seed in results["seeds"].values():
        assert set(seed) == {"under-trained", "well-trained"}
        for by_method in seed.values():
            assert {"unguided", "interval", *methods.LEARNED} <= set(by_method)
            for entry in by_method.values():
                assert {*report.FIGURES, "frechet/mlp-relu"} <= set(entry["figures"])
    under = results["seeds"][FIRST]["under-trained"]
    assert {"interval (oracle)", "triangular", "clamp-linear", "adg"} <= set(under)
    assert under["unguided"]["figures"]["evaluations"] == 4
    assert under["interval"]["figures"]["evaluations"] == 4 + 2
    assert under["rollout"]["figures"]["evaluations"] == 8
    page = (run.out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    assert "http" not in page


@pytest.mark.slow
def test_the_oracle_is_at_least_as_good_as_the_tuned_interval(run):
    results = json.loads((run.out / "metrics.json").read_text())
    for seed in results["seeds"].values():
        oracle, tuned = (seed["under-trained"][m] for m in ("interval (oracle)", "interval"))
        assert oracle["figures"]["frechet"] <= tuned["figures"]["frechet"] * (1 + 1e-4)


@pytest.mark.slow
def test_goes_on_where_it_stopped(run):
    """A second run trains nothing again and comes to the same numbers."""
    before = json.loads((run.out / "metrics.json").read_text())
    (run.out / f"seed{SECOND}.json").unlink()
    digits.main(run)
    after = json.loads((run.out / "metrics.json").read_text())
    assert after["seeds"][FIRST] == before["seeds"][FIRST]
    assert after["seeds"][SECOND] == before["seeds"][SECOND]


@pytest.mark.slow
def test_another_setting_does_not_mix_with_an_old_run(run):
    with pytest.raises(SystemExit, match="other settings"):
        digits.main(dataclasses.replace(run, preset="quick"))
    assert (run.out / "metrics.json").exists()


def test_claims_fail_when_the_numbers_do():
    def seeds(rollout):
        figures = lambda frechet: {"figures": {"frechet": frechet, "energy": frechet}}
        names = ("unguided", "interval", "interval (oracle)", "self-consistency", "l2")
        return {
            str(i): {
                "under": {n: figures(10.0 + i) for n in names}
                | {n: figures(rollout + i) for n in ("rollout", methods.ALONG_ACROSS)}
            }
            for i in range(3)
        }

    good = {c["claim"]: c["holds"] for c in report.claims(seeds(8.0), ["under"])}
    bad = {c["claim"]: c["holds"] for c in report.claims(seeds(9.8), ["under"])}
    first = next(iter(good))
    assert good[first]
    assert not bad[first]
