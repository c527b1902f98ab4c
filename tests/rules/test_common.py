"""What every rule must be: a rule is tested here by being registered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax.rules
from guidejax.rules import RULES

from .common import (
    BATCH,
    OMEGA,
    SHAPE,
    apply,
    arrays_of,
    bound,
    cases,
    compiled,
    draw,
    dtypes,
    numbers_of,
    per_sample,
    predictions_of,
    rules,
    warm_state,
)

# What a rule promises bit for bit must hold in optimized programs.
pytestmark = pytest.mark.optimized


def test_every_module_of_rules_is_imported():
    assert {"cfg", "apg", "adg", "logits_cfg", "inpaint"} <= set(RULES)
    for name, rule in RULES.items():
        assert getattr(guidejax.rules, name) is rule


@cases
@dtypes
def test_zero_omega_is_cond(rule, numbers, dtype):
    if "omega" not in rule.takes or rule.refines:
        pytest.skip("takes no omega of its own")
    arrays = draw(rule, dtype=dtype)
    omega, state = jnp.asarray([0.0, 2.0, 0.0]), warm_state(rule, arrays, numbers)
    (guided, _), _ = compiled(rule, arrays, omega, state, numbers)
    same = np.all(np.asarray(guided == arrays["cond"]), axis=(1, 2, 3))
    assert not same[1]
    assert list(same[[0, 2]]) == [rule.exact_at_zero] * 2


@pytest.mark.slow
@cases
def test_each_sample_is_guided_alone(rule, numbers):
    """As in a batch of itself alone where ω is one number, and untouched by what others are."""
    arrays, omega = draw(rule), jnp.asarray(OMEGA)
    state, values = warm_state(rule, arrays, numbers), numbers_of(rule, numbers)[0]
    (together, _), _ = compiled(rule, arrays, omega, state, numbers)
    for i in range(BATCH):
        same = lambda leaf, i=i: jnp.broadcast_to(leaf[i], leaf.shape)
        everywhere = per_sample(same, (arrays, omega, state, values))
        (alone, _), _ = compiled(rule, *everywhere[:3], numbers, everywhere[3])
        np.testing.assert_array_equal(together[i], alone[0])
    hit = lambda leaf: leaf.at[1].multiply(-50.0).at[1].add(3.0)
    (other, _), _ = compiled(rule, *per_sample(hit, (arrays, omega, state)), numbers)
    np.testing.assert_array_equal(together[::2], other[::2])
    assert not np.array_equal(together[1], other[1])


@cases
def test_nan_in_nan_out(rule, numbers):
    """In the sample that it came in with, and in no other."""
    arrays, omega = draw(rule), jnp.asarray(OMEGA)
    state = warm_state(rule, arrays, numbers)
    if rule.name == "cached_difference":  # a step that looks at `uncond`
        state = rule.init(arrays["cond"])
    values = numbers_of(rule, numbers)[0]
    spoil = lambda leaf: leaf.at[(1, 0, 1, 0)[: leaf.ndim]].set(jnp.nan)
    broken = [(name, ({**arrays, name: spoil(value)}, omega, values))
              for name, value in arrays.items()]  # fmt: skip
    broken += [(name, (arrays, omega, {**values, name: spoil(value)}))
               for name, value in values.items()]  # fmt: skip
    if "omega" in rule.takes:
        broken.append(("omega", (arrays, spoil(omega), values)))
    for what, (arrays_, omega_, values_) in broken:
        outcome, _ = compiled(rule, arrays_, omega_, state, numbers, values_)
        nan = [np.isnan(np.asarray(leaf, np.float32)).reshape(BATCH, -1).any(axis=1)
               for leaf in jax.tree.leaves(outcome)]  # fmt: skip
        assert np.any(nan, axis=0).tolist() == [False, True, False], what


# Numbers with the unit of the predictions, and arrays without one.
LENGTHS = {
    "apg": ("max_norm",),
    "apg_momentum": ("max_norm",),
    "dynamic_threshold": ("limit",),
    "inpaint": ("known",),
    "threshold": ("lo", "hi"),
}
NO_LENGTH = ("gradient",)
# Rules that aren't of degree 1, and why.
OF_OTHER_DEGREE = {
    "beta_cfg": "a step of the length ω + 1, whatever c − u",
    "feedback": "compares squared distances with σ²",
    "logits_cfg": "logarithms",
    "power_law": "degree 1 + a",
}


@cases
def test_twice_the_predictions_guide_to_twice_as_much(rule, numbers):
    """At any magnitude: the powers of two are those near 10¹⁸ and 10⁻²⁰."""
    if rule.name in OF_OTHER_DEGREE:
        pytest.skip(OF_OTHER_DEGREE[rule.name])
    values, lengths = numbers_of(rule, numbers)[0], LENGTHS.get(rule.name, ())
    seen = {}
    for k in (1.0, 2.0**60, 2.0**-66):
        by = lambda name, value, k=k: value if name in NO_LENGTH else k * value
        arrays, other = ({n: by(n, v) for n, v in draw(rule, i).items()} for i in (0, 99))
        scaled = {n: k * v if n in lengths else v for n, v in values.items()}
        state = warm_state(rule, arrays, numbers, other)
        (guided, _), (slope, *_) = compiled(
            rule, arrays, jnp.asarray(OMEGA), state, numbers, scaled
        )
        slope = {n: v / k if n in NO_LENGTH else v for n, v in slope.items()}
        seen[k] = [np.asarray(guided, np.float64) / k, *jax.tree.leaves(slope)]
    for k, found in seen.items():
        for one, want in zip(found, seen[1.0], strict=True):
            np.testing.assert_allclose(one, want, rtol=1e-4, atol=1e-5, err_msg=str(k))


def _degenerate(names):
    """Inputs where a norm, an angle, a spread or a difference vanishes."""
    normal = np.random.default_rng(7).normal(size=(BATCH, *SHAPE))
    other = np.random.default_rng(8).normal(size=(BATCH, *SHAPE))
    every = lambda value: dict.fromkeys(names, value)
    yield "equal", every(normal)
    yield "zero", every(0 * normal)
    yield "constant", every(np.ones_like(normal))
    yield "apart by rounding", {n: normal * (1 + i * 2e-7) for i, n in enumerate(names)}
    yield "opposite", {n: normal * (-1) ** i for i, n in enumerate(names)}
    yield "constants", {n: np.full_like(normal, i - 1.0) for i, n in enumerate(names)}
    yield "near zero", {n: 1e-20 * v for n, v in zip(names, (normal, other) * 3, strict=False)}
    for zero in names:
        yield f"{zero} zero", every(normal) | {zero: 0 * normal}


@cases
@dtypes
def test_value_and_gradient_are_finite(rule, numbers, dtype):
    omega, names = jnp.asarray([0.0, 0.7, 6.0]), arrays_of(rule)
    for what, arrays in _degenerate(names):
        arrays = {name: jnp.asarray(value, dtype) for name, value in arrays.items()}
        states = [warm_state(rule, arrays, numbers)]
        if rule.init is not None:
            states.append(rule.init(arrays[names[0]]))
        for state in states:
            outcome = compiled(rule, arrays, omega, state, numbers)
            for path, leaf in jax.tree_util.tree_leaves_with_path(outcome):
                assert np.all(np.isfinite(np.asarray(leaf, np.float32))), (what, path)


@rules
def test_without_its_branches_guidance_is_conditional(rule):
    if not set(rule.branches) - {"cond"} or rule.refines:
        pytest.skip("needs no other branch, or follows another rule")
    predictions, x = predictions_of(rule, np.float32)
    guided = apply(bound(rule, 3.0), {"cond": predictions["cond"]}, x, warm=False)
    np.testing.assert_array_equal(guided, 2 * predictions["cond"])
