"""The loop over evaluations beside one over steps, at a size cut down, and the page of it."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import problem, program_size

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_both_loops_make_the_same_samples():
    made = program_size.runs(problem.SIZES["tiny"], "heun")
    ours, by_hand = (np.asarray(run(jnp.float32(2))) for run in made.values())
    np.testing.assert_allclose(ours, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_page(tmp_path):
    config = program_size.Config(
        rounds=1, firsts=1, out=tmp_path, publish=True, docs=tmp_path / "docs"
    )
    program_size.main(config, problem.SIZES["tiny"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rows"]) == list(program_size.SOLVERS)
    assert program_size.table(results) in (config.docs / "program-size.md").read_text()
    sizes = {loop: results["rows"]["rk4"][loop]["bytes"] for loop in ("evaluations", "steps")}
    assert sizes["evaluations"] < sizes["steps"]


def test_the_published_page_is_what_its_results_make():
    results = json.loads((DOCS / "benchmarks" / "program-size.json").read_text())
    assert (DOCS / "program-size.md").read_text() == program_size.page(results)
