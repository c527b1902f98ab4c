"""The page of claims says what the results in the repository say."""

import pathlib

import pytest

from experiments import results
from experiments.claims import VERDICTS

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def runs():
    return [make() for make in results.RUNS]


@pytest.mark.slow
def test_the_page_is_what_the_results_make():
    page = (DOCS / "results.md").read_text()
    assert page == results.text(), "python -m experiments.results"
    readme = (DOCS.parent / "README.md").read_text()
    assert readme == results.readme(readme), "python -m experiments.results"


@pytest.mark.slow
def test_every_claim_is_measured_judged_and_shown(runs):
    assert {paper for run in runs for paper in run.claims} == set(results.PAPERS)
    for run in runs:
        assert (DOCS / run.page).exists()
        for claim in (claim for made in run.claims.values() for claim in made):
            assert claim.verdict in VERDICTS, claim
            assert any(letter.isdigit() for letter in claim.measured), claim
            assert (DOCS / claim.figure).is_file(), claim


@pytest.mark.slow
def test_a_bar_of_our_own_is_a_claim():
    value = {"mean": 0.9, "low": 0.85, "high": 0.96}
    bars = [
        {"claim": "a", "value": value, "holds": True},
        {"claim": "b", "value": {"mean": 2.0}, "holds": False},
    ]
    one, other = results.of_the_bar(bars, "x.png")
    assert one.measured == "0.900 (0.850 to 0.960)"
    assert (one.verdict, other.verdict) == ("holds", "doesn't hold")
