"""A rule, its weights and its space bound into one pytree: `(init, apply)`, as optax has it."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    Tree,
    any_of_row,
    batch_size,
    broadcasts_to,
    check_mask,
    check_not_nan,
    combine,
    concretely,
    expand,
    is_concrete,
    tree_map,
    upcast,
)
from guidejax.processes.base import (
    PREDICTIONS,
    ROUNDING,
    Process,
    check_process,
    check_time,
    convert,
    from_x0,
    to_x0,
    x0_per_unit,
)
from guidejax.rules.base import CONTEXT, SPACES, Bound, Rule, make_rule
from guidejax.rules.linear import cfg
from guidejax.weights.base import Step, Weight, as_weight


def _is_weight(value: Any) -> bool:
    return isinstance(value, Weight)


@dataclasses.dataclass(frozen=True)
class _Link:
    """One rule of a chain, with what is static of it."""

    rule: Rule
    space: str
    options: tuple[tuple[str, Any], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """Rules in a chain, with ω and their numbers; made by `guidance`.

    A pytree: ω and every number is a traced leaf, which rules and in which space is structure.

    Attributes:
        omega: ω(s, t, c), or one for each part of the state by name.
        numbers: For each rule of the chain, its numbers by name, each a `Weight` or a tuple.
        mask: What to guide: 1 guided, 0 conditional, broadcast over the batch, or one for each part
            of the state by name; None is all.
        links: The chain.
    """

    omega: Weight | dict[str, Weight]
    numbers: tuple[dict[str, Any], ...]
    mask: Any
    links: tuple[_Link, ...] = dataclasses.field(metadata={"static": True})

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the predictions that the chain combines, "cond" first."""
        names = [n for link in self.links for n in link.rule.branches]
        return tuple(dict.fromkeys(["cond", *names]))

    @property
    def stateful(self) -> bool:
        """Whether a rule of the chain carries state from step to step."""
        return any(link.rule.init is not None for link in self.links)

    @property
    def weights(self) -> list[tuple[str, Weight]]:
        """Every weight with the name under which an error speaks of it, in the order of `row`."""
        named = []
        paths, _ = jax.tree_util.tree_flatten_with_path(
            (self.omega, self.numbers), is_leaf=_is_weight
        )
        for path, weight in paths:
            words = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
            name = ".".join(["omega", *words[1:]])
            if words[0] == "1":
                name = f"{self.links[int(words[1])].rule.name}'s {'.'.join(words[2:])}"
            named.append((name, weight))
        return named

    # Where it is needed

    def needed(
        self, names: tuple[str, ...], s: Any, t: Any, process: Process | None, times: Any
    ) -> Any:
        """For each of the steps (s, t), whether one of these branches matters: NumPy if known now.

        Of any sample: (n,). `needed_each` says it of each.
        """
        return any_of_row(self.needed_each(names, s, t, process, times))

    def needed_each(
        self, names: tuple[str, ...], s: Any, t: Any, process: Process | None, times: Any
    ) -> Any:
        """`needed` by sample where samples differ: (n,), (n, batch) or (n, 1).

        Args:
            names: Branches, "cond" not among them.
            s: Times denoised to, (n,) or (n, batch); None where nobody knows them.
            t: Times denoised from.
            process: The noising process.
            times: The sampler's grid.
        """
        weights: dict[int, Weight] = {}
        omega = self.omega
        if isinstance(omega, dict):  # a sum is on where any of its terms is
            omega = functools.reduce(operator.add, omega.values())
        for link, numbers in zip(self.links, self.numbers, strict=True):
            for name in set(names) & set(link.rule.branches):
                if name not in link.rule.needs:
                    return np.ones(len(t), bool)
                weight = link.rule.needs[name]({"omega": omega, **numbers})
                weights[id(weight)] = weight
        if not weights:
            return np.zeros(len(t), bool)
        weight = functools.reduce(operator.add, weights.values())
        active = functools.partial(weight.active, process=process, times=times)
        each = jax.vmap(lambda s, t: any_of_row(jnp.asarray(active(s, t))))
        rows = lambda: each(None if s is None else jnp.asarray(s), jnp.asarray(t))  # noqa: E731
        if is_concrete(weight, s, t, times, process):
            with concretely():
                return np.asarray(rows())
        if is_concrete(s, t, times, process):
            # One by one, for a weight may be known in part: where it is 0, but not what it is.
            on = []
            for i in range(len(t))[::-1]:
                on.append(active(None if s is None else np.asarray(s)[i], np.asarray(t)[i]))
                if not is_concrete(on[-1]):
                    break
            else:
                known = (any_of_row(np.asarray(step)) for step in on[::-1])
                return np.stack(np.broadcast_arrays(*known)).astype(bool)
        return rows()

    def active(self, times: Any, process: Process | None = None) -> Any:
        """For each step of a grid, whether any branch but "cond" matters: NumPy if known now."""
        names = self.branches[1:]
        return self.needed(names, times[1:], times[:-1], process, times)

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

    # What it computes

    def row(self, step: Step) -> tuple[Any, ...]:
        """The value of each weight at `step`; () for those that must see the state first."""
        return tuple(() if w.sees_state else w.at(step) for _, w in self.weights)

    def rows(self, times: Any, cond: Any = None, process: Process | None = None) -> tuple[Any, Any]:
        """(ω, numbers) at every step of a grid, leading axis (steps,); () of those that see x_t."""
        at = lambda s, t: self.row(Step(s, t, cond, process, times))  # noqa: E731
        row = jax.vmap(at)(jnp.asarray(times[1:]), jnp.asarray(times[:-1]))
        _, treedef = jax.tree.flatten((self.omega, self.numbers), is_leaf=_is_weight)
        return jax.tree.unflatten(treedef, row)

    def check_row(self, row: tuple[Any, ...], x: Tree) -> None:
        """Raise `ValueError` unless each value is one for the batch, one a sample, or an array.

        Args:
            row: Values by weight, or what has their shapes; () for those that see the state.
            x: A state that they are for; an array must broadcast against it.
        """
        batch, shapes = batch_size(x), [leaf.shape for leaf in jax.tree.leaves(x)]
        for (name, _), value in zip(self.weights, row, strict=True):
            if isinstance(value, tuple):
                continue
            shape = value.shape
            whole = len(shape) > 1 and any(broadcasts_to(shape, leaf) for leaf in shapes)
            if shape not in ((), (batch,)) and not whole:
                raise ValueError(
                    f"{name} has shape {shape} at a step; expected a scalar, ({batch},), one a "
                    "sample, or an array that broadcasts against the state with its batch axis."
                )

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
        step: Step,
        row: tuple[Any, ...] | None = None,
        *,
        space: str = "x0",
    ) -> tuple[Tree, Tree]:
        """The guided prediction and the next state.

        Args:
            state: From `init` or the step before.
            predictions: x̂0 of each branch by name; "cond" alone where the step is not guided.
                A rule none of whose other branches is there is passed over, or called with None
                if it says itself when it wants them; a branch that is left out where its weight
                is 0 has `cond` standing in for it.
            step: Where on the grid, with x_t.
            row: The `row` of this step, where it was evaluated ahead.
            space: What the predictions are, if not x̂0; then no rule may be of another space.
        """
        cond = predictions["cond"]
        values = self._values(predictions, step, row)
        paths, treedef = jax.tree_util.tree_flatten_with_path(cond)
        parts = [str(getattr(path[0], "key", "")) if path else "" for path, _ in paths]
        count = len(paths)
        leaves = [None] * count if step.x is None else jax.tree.leaves(step.x)
        by_leaf = [
            dict(zip(predictions, each, strict=True))
            for each in zip(*(jax.tree.leaves(p) for p in predictions.values()), strict=True)
        ]
        guided, states = [], []
        masks = self._masks(parts)
        for branches, x, carried, mask, part in zip(
            by_leaf, leaves, state, masks, parts, strict=True
        ):
            omega, numbers = values
            if isinstance(omega, dict):
                omega = _part(omega, part)
            value, after = self._leaf(carried, branches, omega, numbers, x, step, space)
            if mask is not None:
                plain = upcast(branches["cond"])
                value = plain + jnp.asarray(mask, plain.dtype) * (upcast(value) - plain)
            guided.append(value.astype(branches["cond"].dtype))
            states.append(after)
        return jax.tree.unflatten(treedef, guided), states

    def combine(
        self,
        predictions: Mapping[str, Tree],
        *,
        x: Tree = None,
        t: Any = None,
        s: Any = None,
        condition: Any = None,
        process: Process | None = None,
        prediction: str = "x0",
        times: Any = None,
        state: Tree = None,
    ) -> Any:
        """Guide in anybody's loop: the predictions of the branches in, the guided one out.

        Give what the guidance uses; an error names what is missing. `cfg` at a constant ω needs the
        predictions alone. A rule of another space than `prediction`, or a weight that sees the
        predictions, needs x, t and process, to convert there and back; a schedule needs t; a
        learned ω s, t, condition and process.

        Args:
            predictions: What the network predicts of each branch, by name: {"cond": ..., "uncond":
                ...}; each (batch, ...), or a pytree.
            x: x_t, the same shape.
            t: The time denoised from, in [0, 1], scalar or (batch,).
            s: The time denoised to; by default the grid's next after t, where `times` is given.
            condition: The conditioning c, for weights that depend on it.
            process: The noising process, as in `gj.processes`.
            prediction: What the predictions are, and what comes back: "x0", "eps", "v",
                "velocity", "score".
            times: The grid of the loop, (steps + 1,).
            state: For rules that carry one: `init(x)` at first, then what came back.

        Returns:
            The guided prediction; with `state`, a pair of it and the next state.

        Raises:
            ValueError: If a branch, or something that a rule or a weight needs, is missing.

        Example:
            >>> guide = guidance(cfg, omega=2.0)
            >>> cond, uncond = jnp.array([[2.0]]), jnp.array([[1.0]])
            >>> guide.combine({"cond": cond, "uncond": uncond}, prediction="eps").tolist()
            [[4.0]]
        """
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"unknown prediction {prediction!r}; expected one of {', '.join(PREDICTIONS)}."
            )
        if self.stateful and state is None:
            raise ValueError(
                "this guidance carries state from step to step: give combine(state=...), "
                "guidance.init(x) at first and then what came back beside the prediction."
            )
        if process is not None:
            check_process(process)
        if times is not None:
            check_precision(t)
            times = as_time("times", times)
        t = as_time("t", t)
        s = following(times, t) if s is None and times is not None and t is not None else s
        s = as_time("s", s)
        self._check_branches(predictions, s, t, process, times, state)
        predictions = {name: tree_map(jnp.asarray, p) for name, p in predictions.items()}
        step = Step(s, t, condition, process, times, x)
        row = self._checked_row(step, predictions["cond"])
        before = self.init(predictions["cond"]) if state is None else state
        if self._works_on(prediction, step) or prediction == "x0":
            result, after = self.apply(before, predictions, step, row, space=prediction)
        else:
            result, after = self._by_x0(before, predictions, step, row, prediction)
        return result if state is None else (result, after)

    def _works_on(self, prediction: str, step: Step) -> bool:
        """Whether nothing need be converted; raises where something must and can't be."""
        spaces = ("any", "log_prob", prediction)
        foreign = [link.rule.name for link in self.links if link.space not in spaces]
        if prediction != "x0":  # weights that see the predictions see x̂0
            foreign += [name for name, weight in self.weights if weight.sees_state]
        if not foreign:
            return True
        for name in ("x", "t", "process"):
            if getattr(step, name) is None:
                raise ValueError(
                    f"{', '.join(foreign)} works on another space than "
                    f"prediction={prediction!r}: give combine({name}=...)."
                )
        return False

    def _checked_row(self, step: Step, like: Tree) -> tuple[Any, ...]:
        for weight in every_weight(self):
            if hasattr(weight.fn, "check"):
                weight.fn.check(step.cond)
        row = self.row(step)
        self.check_row(row, like)
        return row

    def _by_x0(self, state, predictions, step, row, prediction):
        """`apply` to x̂0 of predictions of another kind, and back.

        Only what guidance changed is converted back: where it changes nothing, at α = 0, where ε
        says nothing of x0, and at σ = 0, where x_t is x0 whatever it is, the conditional prediction
        comes back as it is.
        """
        x, t, process = tree_map(upcast, step.x), step.t, step.process
        raw = {name for link in self.links for name in link.rule.raw}
        clean = {
            name: p if name in raw else to_x0(tree_map(upcast, p), x, t, process, prediction)
            for name, p in predictions.items()
        }
        guided, after = self.apply(state, clean, step, row)
        shift = tree_map(jnp.subtract, guided, clean["cond"])
        shift = from_x0(
            shift, tree_map(jnp.zeros_like, shift), t, process, prediction, noiseless="zero"
        )
        add = lambda p, d: (upcast(p) + d).astype(p.dtype)  # noqa: E731
        return tree_map(add, predictions["cond"], shift), after

    def check_known(self, names: Iterable[str]) -> None:
        """Raise `ValueError` where a name isn't that of a branch."""
        unknown = sorted(set(names) - set(self.branches))
        if unknown:
            raise ValueError(
                f"the guidance has no branch {', '.join(unknown)}; it combines "
                f"{', '.join(self.branches)}."
            )

    def _check_branches(self, predictions, s, t, process, times, state):
        self.check_known(predictions)
        missing = [name for name in self.branches if name not in predictions]
        wanted = self.wants(state) if missing and self.stateful else {}
        for name in missing:
            row = lambda time: None if time is None else time[None]  # noqa: E731
            known = row(s), row(t)
            if name != "cond" and t is not None:
                needed = self.needed((name,), *known, process, times)
                if is_concrete(needed) and not np.any(needed):
                    continue
            # A rule whose state lets its branches go: where that isn't known it says so itself.
            if name in wanted and not (is_concrete(wanted[name]) and np.any(wanted[name])):
                continue
            raise ValueError(
                f"the guidance needs the branch {name!r}; got {', '.join(predictions) or 'none'}."
            )

    def _values(self, predictions, step, row):
        """(ω, numbers), the weights that see the state among them."""
        weights, treedef = jax.tree.flatten((self.omega, self.numbers), is_leaf=_is_weight)
        if any(weight.sees_state for weight in weights):
            stand_in = {name: predictions.get(name, predictions["cond"]) for name in self.branches}
            step = dataclasses.replace(step, predictions=stand_in)
        row = self.row(step) if row is None else row
        filled = [w.at(step) if w.sees_state else r for w, r in zip(weights, row, strict=True)]
        return jax.tree.unflatten(treedef, filled)

    def _masks(self, parts: list[str]) -> list[Any]:
        if self.mask is None:
            return [None] * len(parts)
        if isinstance(self.mask, dict):
            if set(self.mask) != set(parts) - {""}:
                raise ValueError(
                    f"mask has the parts {', '.join(self.mask)}; the state has "
                    f"{', '.join(dict.fromkeys(filter(None, parts))) or 'none'}."
                )
            found = []
            for part in dict.fromkeys(parts):
                masks, count = jax.tree.leaves(self.mask[part]), parts.count(part)
                found += masks * count if len(masks) == 1 else masks
            return found
        masks = jax.tree.leaves(self.mask)
        return masks * len(parts) if len(masks) == 1 else masks

    def _leaf(self, state, branches, omega, numbers, x, step, space):
        dtype = branches["cond"].dtype
        branches = {name: upcast(value) for name, value in branches.items()}
        x = None if x is None else upcast(x)
        guided = branches["cond"]
        after = []
        for link, values, carried in zip(self.links, numbers, state, strict=True):
            others = set(link.rule.branches) - {"cond"}
            missing = others - set(branches)
            lets_go = link.rule.wants is not None
            passed_over = missing == others or not missing <= set(link.rule.needs)
            if missing and passed_over and not lets_go:
                after.append(carried)
                continue
            stand_in = None if lets_go else branches["cond"]
            known = {**dict.fromkeys(missing, stand_in), **branches, "guided": guided}
            guided, new = _apply_link(link, values, carried, known, omega, x, step, space)
            if link.rule.exact_at_zero and "omega" in link.rule.takes:
                # A step without guidance leaves the state alone, made or left out.
                new = _where(any_of_row(omega != 0), new, carried)
            # A number in float64 doesn't make a state of that: a loop carries one dtype.
            after.append(tree_map(lambda a, b: a.astype(jnp.result_type(b)), new, carried))
        return guided.astype(dtype), tuple(after)


def _where(on: Array, new: Tree, old: Tree) -> Tree:
    return tree_map(lambda a, b: jnp.where(expand(on, a), a, b), new, old)


def _part(omega: dict[str, Array], part: str) -> Array:
    if part not in omega:
        raise ValueError(
            f"omega is given for the parts {', '.join(omega)}; the state has a part {part!r}."
        )
    return omega[part]


def _apply_link(link, values, state, predictions, omega, x, step, space):
    """One rule in its own space, back as a difference in the space of the predictions.

    Only the difference from where the rule starts is converted: what a rule leaves alone comes
    back bit for bit, and nothing is divided by α where α = 0.
    """
    rule = link.rule
    start = "guided" if rule.refines else "cond"
    native = link.space in ("any", space, "log_prob")
    branches = predictions
    if not native:
        branches = {
            name: value
            if value is None or name in rule.raw
            else convert(value, x, step.t, step.process, space, link.space, noiseless="zero")
            for name, value in predictions.items()
            if name in rule.takes or name == start
        }
    known = {
        **branches,
        "omega": omega,
        "state": state,
        "x": x,
        "t": step.t,
        "s": step.s,
        "process": step.process,
    }
    for name in set(rule.takes) & set(CONTEXT):
        if known[name] is None:
            raise ValueError(f"{rule.name} needs {name}: give {name}=...")
    arguments = {name: known[name] for name in rule.takes}
    result = rule.evaluate({**arguments, **values, **dict(link.options)})
    result, state = result if rule.init is not None else (result, state)
    if native:
        return result, state
    shift = result - known[start]
    factor = x0_per_unit(step.process, step.t, link.space)
    return combine((1, factor), predictions[start], shift), state


def every_weight(guide: Guidance) -> list[Weight]:
    """Every weight of the guidance, those inside products and sums too."""
    found: list[Weight] = []

    def visit(node: Any) -> None:
        if isinstance(node, Weight):
            found.append(node)
            visit(node.params)
        elif isinstance(node, (tuple, list)):
            for child in node:
                visit(child)
        elif isinstance(node, dict):
            visit(list(node.values()))

    visit([guide.omega, *guide.numbers])
    return found


def following(times: Any, t: Any) -> Array:
    """The grid's next time after t, in the direction that the grid runs; its last at its end."""
    lib = np if is_concrete(times, t) else jnp
    times, t = (lib.asarray(a, jnp.result_type(float)) for a in (times, t))
    grid = times[:, None] if times.ndim < 2 and t.ndim else times
    lower = lib.max(lib.where(grid < t - ROUNDING, grid, -np.inf), axis=0)
    higher = lib.min(lib.where(grid > t + ROUNDING, grid, np.inf), axis=0)
    nearest = lib.where(grid[0] > grid[-1], lower, higher)
    return lib.where(lib.isfinite(nearest), nearest, grid[-1])


def check_precision(t: Any) -> None:
    """Raise `ValueError` where t has too few digits to be found on a grid."""
    dtype = getattr(t, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        raise ValueError(
            f"t is {dtype}, which doesn't hold a time of the grid: steps would be taken for their "
            "neighbours. Give t in float32; x may be of any dtype."
        )


def as_time(name: str, t: Any) -> Any:
    """`t` as an array, NumPy where it is known now; None stays None."""
    if t is None:
        return None
    # Under jit JAX would trace what is known, and no branch could be left out.
    check_time(name, t)
    known = is_concrete(t) and getattr(t, "is_fully_addressable", True)
    return (np if known else jnp).asarray(t, jnp.result_type(float))


def chain(*rules: Any) -> tuple[Bound, ...]:
    """Rules one after another, as optax chains transformations: each refines the one before.

    The first combines the branches; the others take its result as `guided`. Numbers of a rule are
    bound by `rule.bind(...)`.

    Raises:
        ValueError: If it is empty or a rule but the first doesn't take `guided`.

    Example:
        >>> from guidejax.rules import rescale
        >>> [bound.rule.name for bound in chain(cfg, rescale.bind(phi=0.5))]
        ['cfg', 'rescale']
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
        return rule.rule.bind(**{**rule.numbers, **numbers})
    if not isinstance(rule, Rule):
        if not callable(rule) or isinstance(rule, Weight):
            raise ValueError(
                f"expected a rule, such as gj.cfg, or a function; got {type(rule).__name__}. "
                "A weight goes by name: gj.guidance(gj.cfg, omega=...)."
            )
        rule = make_rule(rule, space=space or "x0", exact_at_zero=False)
    return rule.bind(**numbers)


# A 0 of its own, so that whoever gives no ω is told from who gives 0.
_NO_OMEGA: Any = float("0")


def guidance(
    rule: Rule | Bound | tuple[Bound, ...] | Callable[..., Any] = cfg,
    omega: Any = _NO_OMEGA,
    *,
    space: str | None = None,
    mask: Any = None,
    **numbers: Any,
) -> Guidance:
    """Bind a rule, its weights and the space the rule is defined on.

    Args:
        rule: A rule, a rule with its numbers (`adg.bind(max_angle=1.0)`), a `chain`, or any
            function `fn(cond, uncond, omega)` on arrays.
        omega: ω, the excess over the conditional model: a number, (batch,) numbers, an array that
            broadcasts against the sample ((1, 1, 1, channels)), a function `(s, t, cond) -> ω`, or
            a `Weight`; or, for a state that is a dict, a dict of these by the names of its parts.
            0 is the conditional model.
        space: Where the rule works, if not where its paper defines it: "x0", "eps", "v",
            "velocity" or "score"; predictions are converted there and back.
        mask: 1 where to guide, 0 where to keep the conditional prediction; broadcasts against
            (batch, ...), e.g. `jnp.arange(4) < 3` for the first three of four channels; or a dict
            by parts of the state.
        **numbers: The rule's own numbers, each a number or a `Weight`, or a tuple of these.

    Returns:
        A `Guidance`, a pytree of which every number is a traced leaf.

    Raises:
        ValueError: If the space or a number's name is unknown, a number is NaN, ω is given to
            rules that take none, the rule's numbers are given and ω, at 0 of which they say
            nothing, is not, or the mask holds other numbers than from 0 to 1.

    Example:
        >>> from guidejax.rules import adg
        >>> guidance(adg, omega=4.0, max_angle=1.0).branches
        ('cond', 'uncond')
    """
    if space is not None and space not in SPACES:
        raise ValueError(f"unknown space {space!r}; expected one of {', '.join(SPACES)}.")
    first, *rest = rule if isinstance(rule, tuple) else (rule,)
    own = getattr(first, "numbers", {})
    for name in ("scale", "guidance_scale", "w"):
        if name in numbers and name not in own:
            raise ValueError(
                f"guidance takes omega, the excess over the conditional model, and no {name}: for "
                f"the common scale write omega=gj.from_scale({numbers[name]!r})."
            )
    bound = (_bind(first, numbers, space), *rest)
    links, traced = [], []
    for each in bound:
        options = {
            name: value
            for name, value in each.numbers.items()
            if name in each.rule.static or value is None
        }
        links.append(_Link(each.rule, space or each.rule.space, tuple(options.items())))
        for name, value in each.numbers.items():
            if not (name in options or callable(value)):
                check_not_nan(f"{each.rule.name}'s {name}", value)
        traced.append({n: _weights(v) for n, v in each.numbers.items() if n not in options})
    _check_omega([each.rule for each in bound], omega, numbers)
    omega = as_weight(omega) if isinstance(omega, tuple) else _weights(omega)
    if isinstance(mask, (list, tuple)) and all(isinstance(m, (bool, int, float)) for m in mask):
        mask = np.asarray(mask)  # Numbers, not one mask for each part of a state.
    for leaf in jax.tree.leaves(mask):
        check_mask("guidance's mask", leaf)
    return Guidance(omega, tuple(traced), mask, tuple(links))


def _check_omega(rules: list[Rule], omega: Any, numbers: Mapping[str, Any]) -> None:
    """Raise `ValueError` where rules would leave the conditional model as it is, unasked."""
    taking = [rule for rule in rules if "omega" in rule.takes]
    off = isinstance(omega, (int, float)) and omega == 0
    if not (off or taking):
        refining = all(rule.refines for rule in rules)
        names = ", ".join(f"gj.rules.{rule.name}" for rule in rules)
        raise ValueError(
            f"{', '.join(rule.name for rule in rules)} takes no omega"
            + (
                f"; it refines what another rule combines: gj.chain(gj.cfg, {names})."
                if refining
                else ", only the numbers that it names."
            )
        )
    if omega is _NO_OMEGA and numbers and taking and all(rule.exact_at_zero for rule in taking):
        raise ValueError(
            f"{taking[0].name} is given {', '.join(numbers)} and no omega, which is 0 then: the "
            "conditional model, whatever they are. Give omega=... too; 0 where it is to be off."
        )


def unguided() -> Guidance:
    """The conditional model, which needs no other branch."""
    return Guidance(as_weight(0.0), (), None, ())


def _weights(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): as_weight(part) for name, part in value.items()}
    return tuple(as_weight(v) for v in value) if isinstance(value, tuple) else as_weight(value)
