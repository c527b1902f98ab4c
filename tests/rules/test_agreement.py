"""What every rule must be, to rounding: under every transformation, by hand and in a guidance."""

import doctest
import functools
import importlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidejax.processes import PREDICTIONS, from_x0, rectified_flow, to_x0
from guidejax.rules import RULES, cfg

from .common import (
    BATCH,
    OMEGA,
    T,
    apply,
    arrays_of,
    bound,
    combine,
    compiled,
    draw,
    numbers_of,
    per_sample,
    predictions_of,
    rules,
    warm_state,
    weights_of,
)

# Log-probabilities are no prediction of x0. `adaptive` is linear in any space until it is over, and
# when that is depends on the space: `test_stateful.test_adaptive_compares_in_its_own_space`.
SPACED = {n: r for n, r in RULES.items() if r.space != "log_prob" and n != "adaptive"}


@pytest.mark.slow
@pytest.mark.parametrize("rule", SPACED.values(), ids=SPACED)
def test_space(rule):
    """A rule of space "any" gives one x0 whatever its predictions are; the others don't."""
    with jax.enable_x64(True):
        predictions, x = predictions_of(rule)
        omega = jnp.asarray(OMEGA, jnp.float64)
        guided = {s: np.asarray(apply(bound(rule, omega, s), predictions, x)) for s in PREDICTIONS}
    home = "x0" if rule.space == "any" else rule.space
    for space in set(PREDICTIONS) - {home}:
        off = np.max(np.abs(guided[space] - guided[home]), axis=(1, 2, 3))
        if rule.space == "any":
            assert np.all(off < 1e-9), space
        elif {space, home} != {"eps", "score"}:  # proportional to one another
            assert np.max(off) > 1e-3, space


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, id=name, marks=[pytest.mark.slow] * (rule.space != "any"))
        for name, rule in RULES.items()
        # ω of one logit moves all of them: probabilities sum to 1.
        if "omega" in rule.takes and name != "logits_cfg"
    ],
)
def test_omega_by_channel(rule):
    arrays = draw(rule)
    state, (values, options) = warm_state(rule, arrays), numbers_of(rule)
    by_channel = jnp.asarray(OMEGA).reshape(1, 1, 1, 3)
    run = jax.jit(functools.partial(combine, rule, **options))
    if rule.name == "feedback":  # capped a sample
        with pytest.raises(ValueError, match="omega"):
            run(arrays, by_channel, state, **values)
        return
    guided, _ = run(arrays, by_channel, state, **values)
    for i, omega in enumerate(OMEGA):
        (alone, _), _ = compiled(rule, arrays, jnp.full(BATCH, omega), state)
        np.testing.assert_allclose(guided[..., i], alone[..., i], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@rules
def test_shapes_and_dtypes_are_kept(rule):
    traced, options = numbers_of(rule)
    run = functools.partial(combine, rule, **traced, **options)
    with jax.enable_x64(True):
        for dtype, omega in ((jnp.bfloat16, jnp.float32(1.0)), (jnp.float64, jnp.ones(BATCH))):
            arrays = draw(rule, dtype=dtype)
            state = () if rule.init is None else rule.init(next(iter(arrays.values())))
            guided, after = jax.eval_shape(run, arrays, omega, state)
            assert guided.dtype == dtype
            # A scan carries the state: what goes in comes out.
            shapes = [
                [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
                for tree in (state, after)
            ]
            assert shapes[0] == shapes[1]
            assert jax.tree.structure(state) == jax.tree.structure(after)


@pytest.mark.slow
@rules
def test_single_precision_is_double_and_the_gradient_the_slope(rule):
    """To rounding; and jit is eager, one ω for all the same ω for each."""
    values, options = numbers_of(rule)
    arrays, omega = draw(rule), jnp.asarray([2.0] * BATCH)
    state = warm_state(rule, arrays)
    (guided, _), (by_array, by_omega, by_number) = compiled(rule, arrays, omega, state)
    with jax.enable_x64(True):
        to_wide = lambda leaf: leaf.astype(jnp.float64)
        wide, fixed = per_sample(to_wide, ((arrays, omega, values), state))
        run = functools.partial(combine, rule, **options)
        expected = run(wide[0], jnp.asarray(2.0), fixed, **wide[2])[0]
        np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-4)
        along = (draw(rule, 5, dtype=np.float64), jnp.asarray([1.0, -1.0, 0.5]))
        weights, h = weights_of(arrays), 1e-5
        up, down = (
            run(*jax.tree.map(lambda p, a, e=e: p + e * a, wide[:2], along), fixed, **wide[2])[0]
            for e in (h, -h)
        )
        slope = jnp.sum(weights * (up - down)) / (2 * h)
        pairs = zip(jax.tree.leaves((by_array, by_omega)), jax.tree.leaves(along), strict=True)
        np.testing.assert_allclose(sum(jnp.vdot(a, b) for a, b in pairs), slope, rtol=1e-3)
        assert jax.tree.structure(by_number) == jax.tree.structure(values)


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, id=name, marks=[pytest.mark.slow] * (rule.init is None))
        for name, rule in RULES.items()
    ],
)
def test_scan_and_vmap_carry_the_state(rule):
    runs, steps = 2, 3
    numbers, options = numbers_of(rule)
    arrays = [[draw(rule, 10 * run + step) for run in range(runs)] for step in range(steps)]
    omega = jnp.asarray([OMEGA, OMEGA[::-1]])
    like = next(iter(arrays[0][0].values()))
    starts = [() if rule.init is None else rule.init(like)] * runs
    one = functools.partial(combine, rule, **numbers, **options)

    @jax.jit
    def scanned(state, arrays):
        def body(state, arrays):
            guided, state = jax.vmap(one)(arrays, omega, state)
            return state, guided

        return jax.lax.scan(body, state, arrays)

    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    last, guided = scanned(stack(*starts), stack(*(stack(*each) for each in arrays)))
    for run in range(runs):
        state = starts[run]
        for step in range(steps):
            (expected, state), _ = compiled(rule, arrays[step][run], omega[run], state)
            np.testing.assert_allclose(guided[step, run], expected, rtol=2e-5, atol=2e-5)
        after = jax.tree.map(lambda leaf, run=run: leaf[run], last)
        chex.assert_trees_all_close(after, state, rtol=2e-5, atol=2e-5)


@rules
def test_one_compilation_whatever_the_numbers(rule):
    traces = []

    @jax.jit
    def run(g, predictions, x):
        traces.append(rule.name)
        return apply(g, predictions, x, warm=False)

    predictions, x = predictions_of(rule, np.float32)
    g = bound(rule, jnp.asarray(OMEGA))
    for scale in (1.0, 0.0, 0.9, 20.0):
        scaled = jax.tree.map(lambda leaf, k=scale: leaf * k, (g, predictions, x))
        jax.eval_shape(run, *scaled)  # what `run` compiles by, at no cost
    assert traces == [rule.name]


@pytest.mark.slow
def test_output_is_sharded_as_cond_is(mesh):
    """Of every rule, in one program."""
    batch, omega = 8, jnp.linspace(0.5, 4.0, 8)
    by_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    fixed = {name: numbers_of(rule, batch=batch) for name, rule in RULES.items()}

    @jax.jit
    def run(drawn, omega, numbers):
        guided = {}
        for name, rule in RULES.items():
            arrays = {n: drawn[n] for n in arrays_of(rule)}
            state = () if rule.init is None else rule.init(arrays[arrays_of(rule)[0]])
            options = fixed[name][1]
            guided[name] = combine(rule, arrays, omega, state, **numbers[name], **options)[0]
        return guided

    names = sorted({name for rule in RULES.values() for name in arrays_of(rule)})
    given = (
        draw(cfg, batch=batch, names=names), omega, {name: fixed[name][0] for name in RULES},
    )  # fmt: skip
    expected, guided = run(*given), run(*jax.device_put(given, by_batch))
    for name in RULES:
        assert guided[name].sharding.is_equivalent_to(by_batch, 4), name
        np.testing.assert_allclose(guided[name], expected[name], rtol=2e-5, atol=2e-5, err_msg=name)


@rules
def test_docstring(rule):
    doc = rule.fn.__doc__
    assert rule.paper
    for arxiv in re.findall(r"\d{4}\.\d{5}", rule.paper):
        assert arxiv in doc
    for section in ("Args:", "Returns:", "Example:"):
        assert section in doc
    arguments = doc.split("Args:")[1].split("Returns:")[0]
    for name in (*rule.takes, *rule.numbers):
        assert re.search(rf"^ +{name}: \S", arguments, re.MULTILINE), name
    # Run by tests/test_public_api.py, with those of the rest of its module.
    module = importlib.import_module(rule.fn.__module__)
    found = {each.name: each.examples for each in doctest.DocTestFinder().find(module)}
    assert found[f"{module.__name__}.{rule.name}"]


@pytest.mark.slow
@rules
def test_by_hand_is_through_guidance(rule):
    """Convert, apply, convert back by hand; `Guidance.apply` does the same."""
    with jax.enable_x64(True):
        predictions, x = predictions_of(rule)
        omega, t, process = jnp.asarray(OMEGA, jnp.float64), jnp.asarray(T), rectified_flow()
        guided = apply(bound(rule, omega), predictions, x, warm=False)
        doubled = {name: 2 * value for name, value in predictions.items()}  # as in `apply`
        if rule.refines:
            doubled["guided"] = cfg(doubled["cond"], doubled["uncond"], omega)
        space = "x0" if rule.space in ("any", "log_prob") else rule.space
        native = {n: from_x0(value, x, t, process, space) for n, value in doubled.items()}
        arrays = {name: {**native, "x": x}[name] for name in arrays_of(rule)}
        state = () if rule.init is None else rule.init(x)
        numbers, options = numbers_of(rule)
        by_hand = combine(rule, arrays, omega, state, **numbers, **options)[0]
        by_hand = to_x0(by_hand, x, t, process, space)
        np.testing.assert_allclose(guided, by_hand, rtol=1e-9, atol=1e-9)
