"""A rule, its weight and its space bound into one pytree: `(init, apply)`, as optax has it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    Times,
    Tree,
    check_not_nan,
    combine,
    concretely,
    expand,
    is_concrete,
    tree_map,
    upcast,
)
from guidejax.processes import Process, from_x0, x0_per_unit
from guidejax.rules.base import SPACES, Bound, Rule, make_rule
from guidejax.rules.linear import cfg
from guidejax.weights.base import Weight, as_weight


@dataclasses.dataclass(frozen=True)
class _Link:
    """One rule of a chain: what is structure."""

    rule: Rule
    space: str
    options: tuple[tuple[str, Any], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """Rules in a chain, with ω and their numbers; made by `guidance`.

    A pytree: ω and every number is a traced leaf, which rules and in which space is structure.

    Attributes:
        omega: ω(s, t, c).
        numbers: For each rule of the chain, its numbers by name, each a `Weight`.
        mask: What to guide: 1 guided, 0 conditional, broadcast over the batch; None is all.
        links: The chain.
    """

    omega: Weight
    numbers: tuple[dict[str, Weight], ...]
    mask: Any
    links: tuple[_Link, ...] = dataclasses.field(metadata={"static": True})

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the predictions that the chain combines, "cond" first."""
        names = [n for link in self.links for n in link.rule.branches]
        return tuple(dict.fromkeys(["cond", *names]))

    def active(self, times: Times, process: Process) -> Any:
        """For each step, whether any branch but "cond" matters: NumPy where known now."""
        return self._active(self.branches[1:], times, process)

    def active_branches(self, times: Times, process: Process) -> dict[str, Any]:
        """For each branch but "cond", the steps on which it matters: NumPy where known now."""
        return {name: self._active((name,), times, process) for name in self.branches[1:]}

    def _active(self, branches: tuple[str, ...], times: Times, process: Process) -> Any:
        steps = times.shape[0] - 1
        weights: dict[int, Weight] = {}
        for link, numbers in zip(self.links, self.numbers, strict=True):
            for name in set(branches) & set(link.rule.branches):
                if name not in link.rule.gates:
                    return np.ones(steps, bool)
                gate = link.rule.gates[name]({"omega": self.omega, **numbers})
                weights[id(gate)] = gate
        if not weights:
            return np.zeros(steps, bool)
        weight = functools.reduce(operator.add, weights.values())
        active = functools.partial(weight.active, process=process, times=times)
        rows = jax.vmap(lambda s, t: jnp.any(active(s, t)))
        if is_concrete(weight, times, process):
            with concretely():
                return np.asarray(rows(times[1:], times[:-1]))
        if is_concrete(times, process):
            # Step by step, for a weight may be known in part: where it is 0, but not what it is.
            on = []
            for s, t in itertools.pairwise(np.asarray(times)[::-1]):
                on.append(active(s, t))
                if not is_concrete(on[-1]):
                    break
            else:
                return np.asarray([np.any(step) for step in on[::-1]], bool)
        return rows(times[1:], times[:-1])

    def wants(self, state: Tree) -> dict[str, Array]:
        """For each branch that the rules' state may let go, whether any sample wants it now."""
        flags: dict[str, Array] = {}
        always: set[str] = set()
        for i, link in enumerate(self.links):
            names = set(link.rule.branches) - {"cond"}
            if link.rule.wants is None:
                always |= names
                continue
            options = {k: v for k, v in link.options if k in link.rule.static}
            for carried in state:
                wanted = jnp.any(link.rule.wants(carried[i], **options))
                flags |= {name: flags.get(name, False) | wanted for name in names}
        return {name: flag for name, flag in flags.items() if name not in always}

    def evaluate(self, s: Array, t: Array, cond: Any, process: Process, times: Any = None) -> Tree:
        """(ω, numbers) for the step t → s: what `apply` takes as `row`."""
        value = lambda weight: weight(s, t, cond, process=process, times=times)  # noqa: E731
        return value(self.omega), tuple(
            {name: value(weight) for name, weight in numbers.items()} for numbers in self.numbers
        )

    def rows(self, times: Times, cond: Any, process: Process) -> Tree:
        """`evaluate` at every step, in one batch: leading axis (steps,)."""
        row = lambda s, t: self.evaluate(s, t, cond, process, times)  # noqa: E731
        return jax.vmap(row)(times[1:], times[:-1])

    def init(self, x: Tree) -> Tree:
        """State at the start of a run: per leaf of `x`, per rule; () where a rule has none."""
        return [
            tuple(() if link.rule.init is None else link.rule.init(leaf) for link in self.links)
            for leaf in jax.tree.leaves(x)
        ]

    def apply(
        self,
        state: Tree,
        predictions: Mapping[str, Tree],
        row: Tree,
        x: Tree,
        t: Array,
        s: Array,
        process: Process,
    ) -> tuple[Tree, Tree]:
        """The guided x0 and the next state.

        Args:
            state: From `init` or the step before.
            predictions: x̂0 of each branch by name; "cond" alone where the step is not guided.
                A rule none of whose other branches is there is passed over, or called with None
                if it says itself when it wants them; a branch that is left out where its weight
                is 0 has `cond` standing in for it.
            row: One step's row of `rows`.
            x: x_t.
            t: The time denoised from, scalar or (batch,).
            s: The time denoised to.
            process: The noising process.
        """
        treedef = jax.tree.structure(x)
        by_leaf = [
            dict(zip(predictions, leaves, strict=True))
            for leaves in zip(*(jax.tree.leaves(p) for p in predictions.values()), strict=True)
        ]
        guided, states = [], []
        masks = jax.tree.leaves(self.mask) if self.mask is not None else [None] * len(by_leaf)
        if len(masks) == 1:
            masks = masks * len(by_leaf)
        for branch, leaf, carried, mask in zip(
            by_leaf, jax.tree.leaves(x), state, masks, strict=True
        ):
            value, after = self._leaf(carried, branch, row, leaf, t, s, process)
            if mask is not None:
                cond = upcast(branch["cond"])
                value = cond + jnp.asarray(mask, cond.dtype) * (upcast(value) - cond)
            guided.append(value.astype(leaf.dtype))
            states.append(after)
        return jax.tree.unflatten(treedef, guided), states

    def _leaf(self, state, branches, row, x, t, s, process):
        omega, numbers = row
        dtype = x.dtype
        branches = {name: upcast(value) for name, value in branches.items()}
        x = upcast(x)
        guided = branches["cond"]
        after = []
        for link, values, carried in zip(self.links, numbers, state, strict=True):
            others = set(link.rule.branches) - {"cond"}
            missing = others - set(branches)
            lets_go = link.rule.wants is not None
            passed_over = missing == others or not missing <= set(link.rule.gates)
            if missing and passed_over and not lets_go:
                after.append(carried)
                continue
            stand_in = None if lets_go else branches["cond"]
            known = {**dict.fromkeys(missing, stand_in), **branches, "guided": guided}
            guided, new = _apply_link(link, values, carried, known, omega, x, t, s, process)
            if link.rule.exact_at_zero and "omega" in link.rule.takes:
                # A step without guidance leaves the state alone, made or left out.
                new = tree_map(lambda a, b: jnp.where(expand(omega != 0, a), a, b), new, carried)
            after.append(new)
        return guided.astype(dtype), tuple(after)


def _apply_link(link, values, state, predictions, omega, x, t, s, process):
    """One rule in its own space, back as a difference in x0.

    Only the difference from where the rule starts is converted: what a rule leaves alone comes
    back bit for bit, and nothing is divided by α where α = 0.
    """
    rule = link.rule
    start = predictions["guided" if rule.refines else "cond"]
    native = link.space in ("any", "x0", "log_prob")
    known = {
        **(
            predictions
            if native
            else {
                name: None if value is None else from_x0(value, x, t, process, link.space)
                for name, value in predictions.items()
                if name in rule.takes
            }
        ),
        "omega": omega,
        "state": state,
        "x": x,
        "t": t,
        "s": s,
        "process": process,
    }
    arguments = {name: known[name] for name in rule.takes}
    result = rule.fn(**arguments, **values, **dict(link.options))
    result, state = result if rule.init is not None else (result, state)
    if native:
        return result, state
    shift = result - known["guided" if rule.refines else "cond"]
    return combine((1, x0_per_unit(process, t, link.space)), start, shift), state


def chain(*rules: Any) -> tuple[Bound, ...]:
    """Rules one after another, as optax chains transformations: each refines the one before.

    The first combines the branches; the others take its result as `guided`.

    Raises:
        ValueError: If it is empty or a rule but the first doesn't take `guided`.

    Example:
        >>> [bound.rule.name for bound in chain(cfg)]
        ['cfg']
    """
    if not rules:
        raise ValueError("chain expects at least one rule.")
    bound: list[Bound] = []
    for link in rules:
        bound.extend(link if isinstance(link, tuple) else [_bind(link, {})])
    for later in bound[1:]:
        if not later.rule.refines:
            raise ValueError(
                f"{later.rule.name} combines branches and takes no `guided`; in a chain only the "
                "first rule may do so."
            )
    return tuple(bound)


def _bind(rule: Any, numbers: Mapping[str, Any], space: str | None = None) -> Bound:
    if isinstance(rule, Bound):
        return Bound(rule.rule, rule.rule.check_numbers({**rule.numbers, **numbers}))
    if not isinstance(rule, Rule):
        if not callable(rule):
            raise ValueError(f"expected a rule or a function, got {type(rule).__name__}.")
        rule = make_rule(rule, space=space or "x0", exact_at_zero=False)
    return Bound(rule, rule.check_numbers(numbers))


def guidance(
    rule: Rule | Bound | tuple[Bound, ...] | Callable[..., Any] = cfg,
    omega: Any = 0.0,
    *,
    space: str | None = None,
    mask: Any = None,
    **numbers: Any,
) -> Guidance:
    """Bind a rule, a weight and the space the rule is defined on.

    Args:
        rule: A rule, a rule with its numbers (`adg(max_angle=1.0)`), a `chain`, or any function
            `fn(cond, uncond, omega)` on arrays.
        omega: ω, the excess over the conditional model: a number, (batch,) numbers, a function
            `(s, t, cond) -> ω`, or a `Weight`. 0 is the conditional model.
        space: Where the rule works, if not where its paper defines it: "x0", "eps", "v",
            "velocity" or "score"; predictions are converted there and back.
        mask: 1 where to guide, 0 where to keep the conditional prediction; broadcasts against
            (batch, ...), e.g. shape (channels,) for channels last.
        **numbers: The rule's own numbers, each a number or a `Weight`.

    Returns:
        A `Guidance`, a pytree of which every number is a traced leaf.

    Raises:
        ValueError: If the space or a number's name is unknown, or a number is NaN.

    Example:
        >>> from guidejax.rules import adg
        >>> guidance(adg, omega=4.0, max_angle=1.0).branches
        ('cond', 'uncond')
    """
    if space is not None and space not in SPACES:
        raise ValueError(f"unknown space {space!r}; expected one of {', '.join(SPACES)}.")
    bound = rule if isinstance(rule, tuple) else (_bind(rule, {}, space),)
    first, *rest = bound
    bound = (_bind(first, numbers), *rest)
    links, traced = [], []
    for each in bound:
        options = {
            name: value
            for name, value in each.numbers.items()
            if name in each.rule.static or value is None or isinstance(value, (str, bool))
        }
        links.append(_Link(each.rule, space or each.rule.space, tuple(options.items())))
        for name, value in each.numbers.items():
            if not (name in options or callable(value)):
                check_not_nan(f"{each.rule.name}'s {name}", value)
        traced.append({n: as_weight(v) for n, v in each.numbers.items() if n not in options})
    return Guidance(as_weight(omega), tuple(traced), mask, tuple(links))
