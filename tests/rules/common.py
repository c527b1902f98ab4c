"""The rules, by name, with numbers and inputs for each: what the common tests are made of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Array, Float, jaxtyped

from guidejax._guidance import chain, guidance
from guidejax.processes import rectified_flow
from guidejax.rules import RULES, Rule, cfg
from guidejax.rules.base import CONTEXT
from guidejax.weights import Step

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
