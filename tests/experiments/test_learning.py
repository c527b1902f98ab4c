"""What evaluations are counted, and the page that is made of the runs."""

import functools
import json
import pathlib

import numpy as np
import pytest

from experiments.benchmarks import learning

DOCS = pathlib.Path(__file__).parents[2] / "docs"
ESTIMATORS = learning.consistency(1000), learning.rollouts(300, 24)


def test_evaluations_are_counted_as_the_page_says():
    consistency, rollouts = ESTIMATORS
    assert consistency["paper"].evaluations(1) == 2 * 256 * 4
    assert consistency["kept"].evaluations(17) == 2 * 2 * consistency["kept"].kept
    # 16 steps of 240 samples, two conditions, and twice that for a backward pass through all.
    assert rollouts["rollout"].evaluations(1) == 3 * 2 * 16 * 240
    assert rollouts["some"].evaluations(1) == (1 + 2 / 6) * 2 * 16 * 240
    assert rollouts["last"].evaluations(1) == 2 * 2 * 16 * 240
    assert rollouts["none"].evaluations(1) == 2 * 16 * 240


def test_the_cheaper_ones_cost_a_tenth_and_a_third():
    consistency, rollouts = ESTIMATORS
    total = lambda e: e.evaluations(e.updates)
    for name in ("small", "online", "kept"):
        assert 0.95 < 10 * total(consistency[name]) / total(consistency["paper"]) < 1.01
    for name in set(rollouts) - {"rollout"}:
        assert 0.95 < 3 * total(rollouts[name]) / total(rollouts["rollout"]) <= 1


def test_tuning_and_report_share_no_seed():
    assert not set(learning.TUNED_ON) & set(learning.REPORTED_ON)
    assert len(learning.REPORTED_ON) == 5


def test_the_published_page_is_what_its_results_make():
    results = json.loads((DOCS / "learning" / "results.json").read_text())
    assert (DOCS / "learning.md").read_text() == learning.page(results)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("learning")
    config = learning.Config(
        "tiny", ("mixtures",), together=5, out=out, publish=True, docs=out / "docs"
    )
    everything, fewer = learning.consistency, ("paper", "small", "kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            learning, "consistency",
            lambda *args: {n: e for n, e in everything(*args).items() if n in fewer},
        )  # fmt: skip
        patch.setattr(learning, "Mixtures", functools.partial(learning.Mixtures, held=500))
        patch.setattr(learning, "TUNED_ON", learning.TUNED_ON[:1])
        patch.setattr(learning, "REPORTED_ON", learning.REPORTED_ON[:2])
        learning.main(config)
        yield config, json.loads((out / "results-tiny.json").read_text())


@pytest.mark.slow
def test_page(run):
    config, results = run
    text = (config.docs / "learning.md").read_text()
    assert learning.consistency_table(results["parts"]["mixtures"]) in text
    assert (config.docs / "learning" / "figure.png").stat().st_size > 0


@pytest.mark.slow
def test_a_second_call_reads_what_is_there(run, monkeypatch):
    config, results = run
    monkeypatch.setattr(learning.Runs, "_run", None)  # Nothing is left to run.
    learning.main(config)
    assert json.loads((config.out / "results-tiny.json").read_text()) == results
    part = results["parts"]["mixtures"]
    assert np.all(learning.excess(part, "paper") > 0)
