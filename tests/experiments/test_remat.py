"""What the gradient through a run costs, at sizes cut down, and the page made of it."""

import json
import pathlib

import pytest

from experiments.benchmarks import problem, remat

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("remat")
    config = remat.Config(steps=(4, 16), rounds=2, out=out, publish=True, docs=out / "docs")
    remat.main(config, problem.SIZES["tiny"])
    return config, json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_memory_is_what_each_choice_says(run):
    _, results = run
    none, step, recursive = (remat.growth(results, name) for name in remat.CHOICES)
    assert recursive < step < none
    assert len(results["rows"]["16"]["recursive"]["seconds"]) == 2


@pytest.mark.slow
def test_page(run):
    config, results = run
    text = (config.docs / "remat.md").read_text()
    assert remat.table(results) in text
    assert (config.docs / "benchmarks" / "remat.png").stat().st_size > 0


def test_the_published_page_is_what_its_results_make():
    results = json.loads((DOCS / "benchmarks" / "remat.json").read_text())
    assert (DOCS / "remat.md").read_text() == remat.page(results)
