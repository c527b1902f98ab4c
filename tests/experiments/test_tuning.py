"""Search by coordinates: it leaves where it began, refines where it ends, and keeps its budget."""

import pytest

from experiments.tuning import Number, search


@pytest.mark.parametrize("optimum", [(0.3, 0.1), (9.0, 0.8), (1.0, 0.5)])
def test_it_finds_an_optimum_wherever_it_lies(optimum):
    space = {"x": Number(1.0, 0.5, lo=0.0), "y": Number(0.5, 0.2, lo=0.0, hi=1.0)}
    bowl = lambda n: (n["x"] - optimum[0]) ** 2 + (n["y"] - optimum[1]) ** 2
    found = search(bowl, space, 80)
    assert abs(found.numbers["x"] - optimum[0]) < 0.05
    assert abs(found.numbers["y"] - optimum[1]) < 0.05
    assert found.score == bowl(found.numbers) == min(score for _, score in found.trace)


def test_it_spends_its_budget_and_scores_nothing_twice():
    calls = []
    found = search(lambda n: calls.append(n) or n["x"] ** 2, {"x": Number(3.0, 1.0)}, 15)
    assert len(calls) == len(found.trace) == 15
    assert len({n["x"] for n in calls}) == 15
    with pytest.raises(ValueError, match="at least 1"):
        search(lambda n: 0.0, {}, 0)


def test_natural_ends_hold_and_end_the_search():
    found = search(lambda n: n["x"], {"x": Number(0.5, 0.5, lo=0.0, hi=1.0)}, 100)
    assert found.numbers == {"x": 0.0}
    assert all(0 <= numbers["x"] <= 1 for numbers, _ in found.trace)


def test_settings_that_make_no_sense_are_passed_over():
    space = {"lo": Number(0.4, 0.2, 0.0, 1.0), "hi": Number(0.6, 0.2, 0.0, 1.0)}
    found = search(lambda n: n["hi"] - n["lo"], space, 40, lambda n: n["lo"] < n["hi"])
    assert all(n["lo"] < n["hi"] for n, _ in found.trace)
    assert found.score < 0.01


def test_a_method_without_numbers_is_scored_once():
    assert search(lambda n: 2.0, {}, 5).trace == [({}, 2.0)]
