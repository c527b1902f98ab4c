"""What every rule must be: a rule is tested here by being registered."""

import doctest
import functools
import importlib
import re

import chex
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

# What a rule promises bit for bit must hold in optimized programs.
pytestmark = pytest.mark.optimized

BATCH, SHAPE = 3, (4, 4, 3)
OMEGA = (0.5, 2.0, 5.0)
TIMES = (0.9, 0.6, 0.35)
T, S = TIMES[1], TIMES[2]


def _picture(seed: int, batch: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, *SHAPE)).astype(np.float32)


# Numbers for rules whose defaults make a special case, or that have none.
NUMBERS: dict[str, dict] = {
    "apg": {"max_norm": 2.0, "eta": 0.1},
    "apg_momentum": {"max_norm": 2.0},
    "dynamic_threshold": {"percentile": 50.0, "most": 1.5},
    "fdg_projected": {"parallel": 0.5},
    "fresca": {"cutoff": 1},
    "higs": {"parallel": 0.5},
    "inpaint": {"known": lambda batch: _picture(1, batch), "mask": 0.75},
    "mambo_g": {"damping": 0.5},
    "mimic": {"mimic_omega": 0.1},
    "recfg": {"ratio": 0.8},
    "zero_init": {"share": 0.7},
}

# Options whose branches of code those don't reach.
VARIANTS: dict[str, list[dict]] = {
    "adg": [{"max_angle": None}, {"axis": -1, "norm_axis": -1}, {"axis": (1, 2)}],
    "apg": [
        {"max_norm": None},
        {"form": "diffusers", "max_norm": 2.0},
        {"form": "comfy", "eta": 1.0, "max_norm": jnp.inf},
    ],
    "apg_momentum": [{"form": "comfy", "max_norm": 2.0}],
    "dynamic_threshold": [{"most": None}],
    "fdg": [{"levels": 3}],
    "fdg_projected": [{"levels": 3}],
    "mimic": [{"measure": "std"}, {"centre": "zero", "percentile": 90.0, "phi": 0.5}],
    "slerp": [{"max_angle": None, "axis": -1}],
    "token_norm": [{"shrink": True, "strength": 0.5}],
}

rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
# Of a rule with options the first case is run by default, as are those of float32.
cases = pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        pytest.param(rule, numbers, id=f"{name}{i or ''}", marks=[pytest.mark.slow] * (i > 0))
        for name, rule in RULES.items()
        for i, numbers in enumerate([{}, *VARIANTS.get(name, [])])
    ],
)
dtypes = pytest.mark.parametrize(
    "dtype",
    [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)],
    ids=["float32", "bfloat16"],
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


def numbers_of(rule: Rule, variant: dict | None = None, batch: int = BATCH) -> tuple[dict, dict]:
    """(traced, options): the rule's numbers, one a sample, and what is structure."""
    given = {**rule.defaults, **NUMBERS.get(rule.name, {}), **(variant or {})}
    traced, options = {}, {}
    for name, value in given.items():
        if callable(value):
            traced[name] = jnp.asarray(value(batch))
        elif name in rule.static or value is None:
            options[name] = value
        else:
            traced[name] = jnp.full(batch, value, jnp.float32)
    return traced, options


@jaxtyped(typechecker=beartype)
def combine(
    rule: Rule,
    arrays: dict[str, Float[Array, "batch h w c"]],
    omega: Float[Array, ""] | Float[Array, " batch"] | Float[Array, "1 1 1 c"],
    state: object,
    **numbers: object,
) -> tuple[Float[Array, "batch h w c"], object]:
    """The rule on arrays, and its next state (as it came, where it has none)."""
    known = {
        **arrays,
        "omega": omega,
        "state": state,
        "process": rectified_flow(),
        "t": jnp.asarray(T, jnp.result_type(float)),
        "s": jnp.asarray(S, jnp.result_type(float)),
    }
    result = rule(**{name: known[name] for name in rule.takes}, **numbers)
    return result if rule.init is not None else (result, state)


@functools.cache
def _compiled(rule: Rule, **options):
    def loss(arrays, omega, numbers, state, weights):
        guided, state = combine(rule, arrays, omega, state, **numbers, **options)
        return jnp.sum(guided.astype(jnp.float32) * weights), (guided, state)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def weights_of(arrays: dict):
    shape = next(iter(arrays.values())).shape
    return jnp.asarray(np.random.default_rng(9).normal(size=shape), jnp.float32)


def compiled(rule: Rule, arrays: dict, omega, state, variant=None, numbers=None):
    """(guided, next state) and the gradients of a weighted sum of it, from one program."""
    traced, options = numbers_of(rule, variant)
    run = _compiled(rule, **options)
    gradients, value = run(arrays, omega, traced if numbers is None else numbers, state,
                           weights_of(arrays))  # fmt: skip
    return value, gradients


def warm_state(rule: Rule, arrays: dict, variant=None, like=None):
    """A state that isn't the initial one: one step has been made from other predictions."""
    if rule.init is None:
        return ()
    first = next(iter(arrays.values()))
    other = draw(rule, 99, dtype=first.dtype) if like is None else like
    start = rule.init(first)
    return compiled(rule, other, jnp.ones(BATCH), start, variant)[0][1]


def per_sample(fn, *trees):
    """`fn` on the leaves that lead with the batch, floating ones; others as they are."""

    def one(leaf, *rest):
        batched = jnp.ndim(leaf) > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
        return fn(leaf, *rest) if batched else leaf

    return jax.tree.map(one, *trees)


def bound(rule: Rule, omega, space=None):
    """`guidance` of the rule; a rule that refines another follows `cfg`."""
    traced, options = numbers_of(rule)
    link = rule.bind(**traced, **options)
    return guidance(chain(cfg, link) if rule.refines else link, omega=omega, space=space)


def apply(g, predictions: dict, x, *, warm=True):
    """One step of a `Guidance`, from a state, if it has one, that has seen one step before."""
    warm = warm and any(link.rule.init is not None for link in g.links)
    process, times = rectified_flow(), jnp.asarray(TIMES, x.dtype)
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
@rules
def test_space(rule):
    """A rule of space "any" gives one x0 whatever its predictions are; the others don't."""
    if rule.space == "log_prob":
        pytest.skip("no parameterisation of x0")
    if rule.name == "adaptive":
        pytest.skip("linear until it is over; tested with the rule")
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


# ω that isn't a factor of the element it is for.
BY_SAMPLE = {"feedback": "capped a sample", "logits_cfg": "probabilities sum to 1"}


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, id=name, marks=[pytest.mark.slow] * (rule.space != "any"))
        for name, rule in RULES.items()
    ],
)
def test_omega_by_channel(rule):
    if "omega" not in rule.takes:
        pytest.skip("takes no omega")
    arrays = draw(rule)
    state, (values, options) = warm_state(rule, arrays), numbers_of(rule)
    by_channel = jnp.asarray(OMEGA).reshape(1, 1, 1, 3)
    run = jax.jit(functools.partial(combine, rule, **options))
    if rule.name == "feedback":
        with pytest.raises(ValueError, match="omega"):
            run(arrays, by_channel, state, **values)
        return
    if rule.name in BY_SAMPLE:
        pytest.skip(BY_SAMPLE[rule.name])
    guided, _ = run(arrays, by_channel, state, **values)
    for i, omega in enumerate(OMEGA):
        (alone, _), _ = compiled(rule, arrays, jnp.full(BATCH, omega), state)
        np.testing.assert_allclose(guided[..., i], alone[..., i], rtol=1e-5, atol=1e-5)


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


@rules
def test_without_its_branches_guidance_is_conditional(rule):
    if not set(rule.branches) - {"cond"} or rule.refines:
        pytest.skip("needs no other branch, or follows another rule")
    predictions, x = predictions_of(rule, np.float32)
    guided = apply(bound(rule, 3.0), {"cond": predictions["cond"]}, x, warm=False)
    np.testing.assert_array_equal(guided, 2 * predictions["cond"])
