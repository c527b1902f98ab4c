"""What every rule must be: a rule is tested here by being registered."""

import doctest
import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped

import guidejax.rules
from guidejax._guidance import chain, guidance
from guidejax.processes import PREDICTIONS, from_x0, rectified_flow, to_x0
from guidejax.rules import RULES, Rule, cfg
from guidejax.rules.base import CONTEXT
from guidejax.weights import Step

BATCH, SHAPE = 3, (4, 4, 3)
OMEGA = (0.5, 2.0, 5.0)
TIMES = (0.9, 0.6, 0.35)
T, S = TIMES[1], TIMES[2]

# Numbers for rules whose defaults make a special case.
NUMBERS: dict[str, dict] = {
    "zero_init": {"gate": 0.7},
    "fresca": {"cutoff": 1},
    "mambo_g": {"damping": 0.5},
    "mimic": {"mimic_omega": 0.1},
    "recfg": {"ratio": 0.8},
}

# Options whose branches of code the defaults don't reach.
VARIANTS: dict[str, list[dict]] = {
    "adg": [{"max_angle": None}, {"axis": -1, "norm_axis": -1}, {"axis": (1, 2)}],
    "apg": [
        {"form": "diffusers", "max_norm": 2.0},
        {"form": "comfy", "eta": 1.0, "max_norm": jnp.inf},
    ],
    "apg_momentum": [{"form": "comfy", "max_norm": 2.0}],
    "dynamic_threshold": [{"percentile": 50.0, "most": 1.5}],
    "fdg": [{"levels": 3}],
    "fdg_projected": [{"levels": 3, "parallel": 0.5}],
    "mimic": [{"measure": "std"}, {"centre": "zero", "percentile": 90.0, "phi": 0.5}],
    "slerp": [{"max_angle": None, "axis": -1}],
    "token_norm": [{"shrink": True, "strength": 0.5}],
}

rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
cases = pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        pytest.param(rule, numbers, id=f"{name}{i or ''}")
        for name, rule in RULES.items()
        for i, numbers in enumerate([NUMBERS.get(name, {}), *VARIANTS.get(name, [])])
    ],
)


def arrays_of(rule: Rule) -> list[str]:
    """Names of its array arguments: branches, `guided`, `x`."""
    return [name for name in rule.takes if name not in set(CONTEXT) - {"x"} | {"omega"}]


def draw(rule: Rule, seed: int = 0, batch: int = BATCH, dtype=np.float32, names=None) -> dict:
    names = arrays_of(rule) if names is None else names
    keyed = {
        name: np.random.default_rng([seed, *name.encode()]).normal(size=(batch, *SHAPE))
        for name in names
    }
    return {name: jnp.asarray(value, dtype) for name, value in keyed.items()}


@jaxtyped(typechecker=beartype)
def combine(
    rule: Rule,
    arrays: dict[str, Float[Array, "batch h w c"]],
    omega: Float[Array, ""] | Float[Array, " batch"],
    state: object,
    **numbers: object,
) -> tuple[Float[Array, "batch h w c"], object]:
    """The rule on arrays, and its next state (as it came, where it has none)."""
    known = {
        **arrays,
        "omega": omega,
        "state": state,
        "process": rectified_flow(),
        "t": jnp.asarray(T),
        "s": jnp.asarray(S),
    }
    taken = {name: known[name] for name in rule.takes}
    result = rule(**taken, **(numbers or NUMBERS.get(rule.name, {})))
    return result if rule.init is not None else (result, state)


def warm_state(rule: Rule, arrays: dict):
    """A state that isn't the initial one: one step has been made from other predictions."""
    if rule.init is None:
        return ()
    like = next(iter(arrays.values()))
    other = draw(rule, 99, like.shape[0], like.dtype)
    start = (other, jnp.ones(like.shape[0]), rule.init(like))
    if like.dtype == jnp.float64:
        return combine(rule, *start)[1]
    return compiled(rule, *start, **NUMBERS.get(rule.name, {}))[0][1]


@functools.cache
def _compiled(rule: Rule, **numbers):
    def loss(arrays, omega, state, weights):
        guided, state = combine(rule, arrays, omega, state, **numbers)
        return jnp.sum(guided.astype(jnp.float32) * weights), (guided, state)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def weights_of(arrays: dict):
    shape = next(iter(arrays.values())).shape
    return jnp.asarray(np.random.default_rng(9).normal(size=shape), jnp.float32)


def compiled(rule: Rule, arrays: dict, omega, state, **numbers):
    """(guided, next state) and the gradients of a weighted sum of it, from one program."""
    gradients, value = _compiled(rule, **numbers)(arrays, omega, state, weights_of(arrays))
    return value, gradients


def per_sample(fn, *trees):
    """`fn` on the leaves that lead with the batch, floating ones; others as they are."""

    def one(leaf, *rest):
        batched = jnp.ndim(leaf) > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
        return fn(leaf, *rest) if batched else leaf

    return jax.tree.map(one, *trees)


def bound(rule: Rule, omega, space=None, **numbers):
    """`guidance` of the rule; a rule that refines another follows `cfg`."""
    numbers = {**NUMBERS.get(rule.name, {}), **numbers}
    chained = chain(cfg, rule.bind(**numbers)) if rule.refines else rule.bind(**numbers)
    return guidance(chained, omega=omega, space=space)


def apply(g, predictions: dict, x, *, warm=True):
    """One step of a `Guidance`, from a state, if it has one, that has seen one step before."""
    warm = warm and any(link.rule.init is not None for link in g.links)
    process, times = rectified_flow(), jnp.asarray(TIMES, x.dtype)
    rows = g.rows(times, None, process)
    state = g.init(x)
    for i in (0, 1) if warm else (1,):
        scaled = {name: value * (1 + i) for name, value in predictions.items()}
        guided, state = g.apply(state, scaled, Step(times[i + 1], times[i], None, process, None, x))
    return guided


def predictions_of(rule: Rule, dtype=np.float64):
    """x̂0 of each branch, and x_t."""
    names = dict.fromkeys(["cond", *rule.branches, *(["uncond"] if rule.refines else [])])
    drawn = draw(rule, dtype=dtype, names=[*names, "x"])
    x = drawn.pop("x")
    return drawn, x


def test_every_module_of_rules_is_imported():
    assert {"cfg", "apg", "adg", "logits_cfg"} <= set(RULES)
    for name, rule in RULES.items():
        assert getattr(guidejax.rules, name) is rule


@cases
def test_zero_omega_is_cond(rule, numbers):
    if "omega" not in rule.takes or rule.refines:
        pytest.skip("takes no omega of its own")
    for dtype in (jnp.float32, jnp.bfloat16):
        arrays = draw(rule, dtype=dtype)
        omega, state = jnp.asarray([0.0, 2.0, 0.0]), warm_state(rule, arrays)
        (guided, _), _ = compiled(rule, arrays, omega, state, **numbers)
        same = np.all(np.asarray(guided == arrays["cond"]), axis=(1, 2, 3))
        assert not same[1]
        assert list(same[[0, 2]]) == [rule.exact_at_zero] * 2


@rules
def test_space(rule):
    """A rule of space "any" gives one x0 whatever its predictions are; the others don't."""
    if rule.space == "log_prob":
        pytest.skip("no parameterisation of x0")
    if rule.name == "adaptive":
        pytest.skip("linear until its gate closes; tested with the rule")
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


@cases
def test_batched_omega_is_a_loop_over_samples(rule, numbers):
    """Each sample is as it would be in a batch of itself alone, where ω is one number."""
    arrays, omega = draw(rule), jnp.asarray(OMEGA)
    state = warm_state(rule, arrays)
    (together, _), _ = compiled(rule, arrays, omega, state, **numbers)
    for i in range(BATCH):
        same = lambda leaf, i=i: jnp.broadcast_to(leaf[i], leaf.shape)
        everywhere = per_sample(same, (arrays, omega, state))
        (alone, _), _ = compiled(rule, *everywhere, **numbers)
        np.testing.assert_array_equal(together[i], alone[0])
    with jax.enable_x64(True):
        arrays = draw(rule, dtype=np.float64)
        state = warm_state(rule, arrays)
        scalar, batched = jnp.asarray(2.0), jnp.full(BATCH, 2.0)
        np.testing.assert_allclose(
            combine(rule, arrays, scalar, state, **numbers)[0],
            combine(rule, arrays, batched, state, **numbers)[0],
            rtol=1e-12,
            atol=1e-12,
        )


@cases
def test_nothing_mixes_the_batch(rule, numbers):
    arrays, omega = draw(rule), jnp.asarray(OMEGA)
    state = warm_state(rule, arrays)
    (guided, _), _ = compiled(rule, arrays, omega, state, **numbers)
    hit = lambda leaf: leaf.at[1].multiply(-50.0).at[1].add(3.0)
    (other, _), _ = compiled(rule, *per_sample(hit, (arrays, omega, state)), **numbers)
    np.testing.assert_array_equal(guided[::2], other[::2])
    assert not np.array_equal(guided[1], other[1])


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
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_value_and_gradient_are_finite(rule, numbers, dtype):
    omega, names = jnp.asarray([0.0, 0.7, 6.0]), arrays_of(rule)
    for what, arrays in _degenerate(names):
        arrays = {name: jnp.asarray(value, dtype) for name, value in arrays.items()}
        states = [warm_state(rule, arrays)]
        if rule.init is not None:
            states.append(rule.init(arrays[names[0]]))
        for state in states:
            outcome = compiled(rule, arrays, omega, state, **numbers)
            for path, leaf in jax.tree_util.tree_leaves_with_path(outcome):
                assert np.all(np.isfinite(np.asarray(leaf, np.float32))), (what, path)


@rules
def test_shapes_and_dtypes_are_kept(rule):
    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64):
            arrays = draw(rule, dtype=dtype)
            state = () if rule.init is None else rule.init(next(iter(arrays.values())))
            for omega in (jnp.float32(1.0), jnp.ones(BATCH, jnp.float32)):
                one = functools.partial(combine, rule)
                guided, after = jax.eval_shape(one, arrays, omega, state)
                assert guided.dtype == dtype
                # A scan carries the state: what goes in comes out.
                shapes = [
                    [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
                    for tree in (state, after)
                ]
                assert shapes[0] == shapes[1]
                assert jax.tree.structure(state) == jax.tree.structure(after)


@rules
def test_jit_is_eager(rule):
    """And single precision is double precision, to its rounding."""
    numbers = NUMBERS.get(rule.name, {})
    arrays, omega = draw(rule), jnp.asarray(OMEGA)
    state = warm_state(rule, arrays)
    (guided, _), _ = compiled(rule, arrays, omega, state, **numbers)
    with jax.enable_x64(True):
        wide = per_sample(lambda leaf: leaf.astype(jnp.float64), (arrays, omega, state))
        expected, _ = combine(rule, *wide)
        np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-4)


@rules
def test_scan_and_vmap_carry_the_state(rule):
    runs, steps = 2, 3
    numbers = NUMBERS.get(rule.name, {})
    arrays = [[draw(rule, 10 * run + step) for run in range(runs)] for step in range(steps)]
    omega = jnp.asarray([OMEGA, OMEGA[::-1]])
    like = next(iter(arrays[0][0].values()))
    starts = [() if rule.init is None else rule.init(like)] * runs

    @jax.jit
    def scanned(state, arrays):
        def body(state, arrays):
            guided, state = jax.vmap(functools.partial(combine, rule))(arrays, omega, state)
            return state, guided

        return jax.lax.scan(body, state, arrays)

    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    last, guided = scanned(stack(*starts), stack(*(stack(*each) for each in arrays)))
    for run in range(runs):
        state = starts[run]
        for step in range(steps):
            (expected, state), _ = compiled(rule, arrays[step][run], omega[run], state, **numbers)
            np.testing.assert_allclose(guided[step, run], expected, rtol=2e-5, atol=2e-5)
        after = jax.tree.map(lambda leaf, run=run: leaf[run], last)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), after, state
        )


@rules
def test_gradient_is_the_slope(rule):
    numbers = NUMBERS.get(rule.name, {})
    arrays, omega = draw(rule), jnp.asarray(OMEGA)
    state = warm_state(rule, arrays)
    _, gradient = compiled(rule, arrays, omega, state, **numbers)
    with jax.enable_x64(True):
        to_wide = lambda leaf: leaf.astype(jnp.float64)
        wide, wide_state = per_sample(to_wide, ((arrays, omega), state))
        along = (draw(rule, 5, dtype=np.float64), jnp.asarray([1.0, -1.0, 0.5]))
        weights, h = weights_of(arrays), 1e-5
        up, down = (
            combine(rule, *jax.tree.map(lambda p, a, e=e: p + e * a, wide, along), wide_state)[0]
            for e in (h, -h)
        )
        slope = jnp.sum(weights * (up - down)) / (2 * h)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True)
        np.testing.assert_allclose(sum(jnp.vdot(a, b) for a, b in pairs), slope, rtol=1e-3)


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


@rules
def test_output_is_sharded_as_cond_is(rule, mesh):
    by_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    arrays = draw(rule, batch=8)
    omega, state = jnp.linspace(0.5, 4.0, 8), warm_state(rule, arrays)
    expected = combine(rule, arrays, omega, state)[0]
    place = lambda leaf: jax.device_put(leaf, by_batch) if leaf.ndim else leaf
    placed = jax.tree.map(place, (arrays, omega, state))
    guided = jax.jit(lambda *args: combine(rule, *args)[0])(*placed)
    assert guided.sharding.is_equivalent_to(by_batch, guided.ndim)
    np.testing.assert_allclose(guided, expected, rtol=2e-5, atol=2e-5)


@rules
def test_docstring(rule):
    doc = rule.fn.__doc__
    assert rule.paper
    for arxiv in re.findall(r"\d{4}\.\d{5}", rule.paper):
        assert arxiv in doc
    for section in ("Args:", "Returns:", "Example:"):
        assert section in doc
    arguments = doc.split("Args:")[1].split("Returns:")[0]
    for name in (*rule.takes, *rule.defaults):
        assert re.search(rf"^ +{name}: \S", arguments, re.MULTILINE), name
    # Run by tests/test_public_api.py, with those of the rest of its module.
    module = importlib.import_module(rule.fn.__module__)
    found = {each.name: each.examples for each in doctest.DocTestFinder().find(module)}
    assert found[f"{module.__name__}.{rule.name}"]


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
        by_hand = to_x0(combine(rule, arrays, omega, state)[0], x, t, process, space)
        np.testing.assert_allclose(guided, by_hand, rtol=1e-9, atol=1e-9)


@rules
def test_without_its_branches_guidance_is_conditional(rule):
    if not set(rule.branches) - {"cond"} or rule.refines:
        pytest.skip("needs no other branch, or follows another rule")
    predictions, x = predictions_of(rule, np.float32)
    guided = apply(bound(rule, 3.0), {"cond": predictions["cond"]}, x, warm=False)
    np.testing.assert_array_equal(guided, 2 * predictions["cond"])
