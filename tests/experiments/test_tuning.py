"""Search by coordinates: it leaves where it began, refines where it ends, and keeps its budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from experiments.tuned import TUNED
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
    space = {name: Number(s, 0.2, 0.0, 1.0, least=1e-3) for name, s in (("lo", 0.4), ("hi", 0.6))}
    found = search(lambda n: n["hi"] - n["lo"], space, 40, lambda n: n["lo"] < n["hi"])
    assert all(n["lo"] < n["hi"] for n, _ in found.trace)
    assert found.score < 0.01


def test_it_rests_where_no_step_is_worth_a_try_and_not_before():
    bowl = lambda n: (n["x"] - 4.0) ** 2 + (n["y"] - n["x"]) ** 2
    space = {"x": Number(0.0, 1.0, least=0.05), "y": Number(0.0, 1.0, least=0.05)}
    found = search(bowl, space, 500)
    assert found.rests
    assert len(found.trace) < 200
    assert abs(found.numbers["x"] - 4.0) < 0.1
    assert not search(bowl, space, 10).rests


def test_what_does_not_bind_is_left_behind():
    """A cap far above what matters: no small step changes the score."""
    score = lambda n: abs(min(n["cap"], 2.0) - 0.3)
    cap = Number(50.0, 0.7, lo=0.001, least=0.05, log=True)
    found = search(score, {"cap": cap}, 40)
    assert found.score < 0.05


def test_a_window_moves_as_one():
    """Wide enough at once, and nothing to gain by moving either end alone."""
    score = lambda n: abs(n["hi"] - n["lo"] - 0.25) * 9 + abs(n["lo"] - 0.125)
    space = {n: Number(s, 0.25, 0.0, 1.0, 1 / 16) for n, s in (("lo", 0.625), ("hi", 0.875))}
    ordered = lambda n: n["lo"] < n["hi"]
    found = search(score, space, 60, ordered, together=[("lo", "hi")])
    assert found.numbers == {"lo": 0.125, "hi": 0.375}
    assert search(score, space, 60, ordered).score > found.score


def test_it_is_never_worse_than_where_it_starts_and_goes_on_from_a_trace():
    space = {"x": Number(0.0, 0.1, least=0.05)}
    hole = lambda n: -5.0 if n["x"] == 7.0 else abs(n["x"])
    assert search(hole, space, 4, starts=[{"x": 7.0}]).score == -5.0
    first = search(hole, space, 3, starts=[{"x": 7.0}])
    asked = []
    more = search(lambda n: asked.append(n) or hole(n), space, 5, trace=first.trace)
    assert more.trace[:3] == first.trace
    assert len(more.trace) == 5
    assert len(asked) == 2
    assert more.score == -5.0


@pytest.mark.parametrize("method", [m for m in TUNED if TUNED[m].after])
def test_each_begins_at_its_special_case(method):
    """There it is that method, so that a search never ends above it."""
    special = {"omega": 0.7}
    assert TUNED[method].after == "constant"
    start = TUNED[method].begin(special)
    assert set(start) == set(TUNED[method].space)
    assert TUNED[method].allowed(start)
    x = jax.random.normal(jax.random.key(0), (4, 6))
    denoise = gj.denoiser(lambda x, t, c: jnp.tanh(x + c[:, None]), gj.processes.rectified_flow())
    run = lambda guide: gj.sample(
        jax.random.key(1), denoise, x, cond=jnp.full(4, 0.1), uncond=0.0, guidance=guide,
        times=gj.uniform_times(6),
    )  # fmt: skip
    ours, plain = run(TUNED[method].guide(**start)), run(TUNED["constant"].guide(**special))
    # ADG is CFG for small angles alone, CFG-Zero* where c and u are as long, triangles nowhere.
    if method not in ("adg", "cfg-zero", "triangular"):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    for other in TUNED[method].others:
        assert set(other) == set(TUNED[method].space)


def test_a_method_without_numbers_is_scored_once():
    assert search(lambda n: 2.0, {}, 5).trace == [({}, 2.0)]
