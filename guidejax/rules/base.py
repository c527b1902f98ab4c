"""What a rule is: a pure function on arrays that also carries its facts.

    @rule(space="x0", paper="arXiv 2506.11039, Algorithm 1")
    def adg(cond, uncond, omega, *, max_angle=jnp.pi / 3): ...

The signature is the declaration. Positional parameters are what the rule combines: `omega`,
branches (`cond`, `uncond`, `negative`, `weak`, any name), `guided` (the prediction so far, which
makes the rule a refinement to chain after another) and what the sampler knows (`CONTEXT`).
Keyword-only parameters are the rule's numbers, with or without a default; any may be a `Weight`.
Calling a rule computes; `bind` sets its numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, accumulator, broadcasts_to, is_concrete, square_norm

# What `guidance` can hand a rule besides the branches: the state, the times of the step, the
# process and the rule's own carried state.
CONTEXT = ("x", "t", "s", "process", "state")
SPACES = ("any", "x0", "eps", "v", "velocity", "score", "log_prob")

# The default of a number that has none.
REQUIRED = inspect.Parameter.empty

# For a branch, the weight with which it enters, made of ω and the numbers by name.
Need = Callable[[Mapping[str, Any]], Any]


def any_of(*names: str) -> Need:
    """The need of a branch that matters wherever one of these numbers isn't 0.

    A sum of weights is on where any of its terms is, though their values cancel.
    """
    return lambda numbers: functools.reduce(operator.add, (numbers[name] for name in names))


def per_sample(x: Array, value: float, dtype: jnp.dtype) -> Array:
    """(batch,) of `value`, sharded as the batch of `x` is."""
    return jnp.full_like(square_norm(x), value, dtype=dtype)


def buffer(x: Array) -> Array:
    """Zeros of the shape and sharding of `x`, in the dtype that rules compute in."""
    return jnp.zeros_like(x, accumulator(x.dtype))


# Every rule of the library, by name.
RULES: dict[str, Rule] = {}


@dataclasses.dataclass(eq=False)
class Rule:
    """A combination rule: call it on arrays, bind its numbers, or chain it.

    `adg(cond, uncond, 4.0, max_angle=1.0)` computes, as the function does;
    `adg.bind(max_angle=1.0)` sets numbers for `guidance` and `chain`.

    Attributes:
        fn: The function.
        name: Its name in `guidejax`.
        space: Where its paper defines it: "x0", "eps", "v", "velocity", "score"; "any" where the
            result is the same in all of them, so that nothing is converted.
        paper: Source.
        takes: What it combines, in the order of a call: branches, `omega`, `guided`, `CONTEXT`.
        numbers: Its numbers and their defaults, `REQUIRED` for one that has none.
        init: For a rule with state, `init(x) -> state`; the function then takes `state` and
            returns `(guided, state)`.
        exact_at_zero: Whether ω = 0 returns `cond`.
        static: Names of numbers that are structure (an option, a count), not traced.
        needs: For a branch, the weight with which it enters, made of ω and the numbers by name.
            Where that is known to be 0 the branch isn't evaluated, and `cond` stands in for it.
        wants: For a rule whose state lets its branches go, `wants(state, **options)`: (batch,)
            flags, False where this step needs `cond` alone. The others then come as None.
        raw: Branches that are no predictions, and are never converted to another space.
        check: `check(**numbers)`, which raises `ValueError` for numbers that can't be meant; of
            those alone that are known when the rule is bound, or called.
        renamed: What the function calls the arguments that `on` gave another name.
    """

    fn: Callable[..., Any]
    name: str
    space: str
    paper: str
    takes: tuple[str, ...]
    numbers: Mapping[str, Any]
    init: Callable[[Any], Any] | None = None
    exact_at_zero: bool = True
    static: tuple[str, ...] = ()
    needs: Mapping[str, Need] = dataclasses.field(default_factory=dict)
    wants: Callable[..., Any] | None = None
    raw: tuple[str, ...] = ()
    check: Callable[..., None] | None = None
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        functools.update_wrapper(self, self.fn, updated=())
        self.__name__ = self.name
        if self.renamed:
            vars(self).pop("__wrapped__")  # its parameters have other names

    @property
    def branches(self) -> tuple[str, ...]:
        """The predictions it combines, by name."""
        return tuple(n for n in self.takes if n not in (*CONTEXT, "omega", "guided"))

    @property
    def defaults(self) -> dict[str, Any]:
        """Its numbers that have a default."""
        return {name: value for name, value in self.numbers.items() if value is not REQUIRED}

    @property
    def refines(self) -> bool:
        """Whether it takes the prediction of the rule before it."""
        return "guided" in self.takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Combine predictions.

        Args:
            *args: What the rule `takes`, in that order; by name too.
            **kwargs: Its numbers.

        Raises:
            TypeError: If an argument is missing, given twice, unknown, or one too many.
            ValueError: If a prediction is of another shape than the rest, or ω or a number of
                another batch.
        """
        given = dict(zip(self.takes, args, strict=False))
        if len(args) > len(self.takes) or given.keys() & kwargs.keys():
            raise TypeError(
                f"{self.name} takes {', '.join(self.takes)}, once each, and numbers by name; got "
                f"{len(args)} positional arguments and {', '.join(kwargs) or 'none'} by name."
            )
        given |= kwargs
        if unknown := given.keys() - {*self.takes, *self.numbers}:
            raise TypeError(
                f"{self.name} takes no argument {', '.join(sorted(unknown))}; it takes "
                f"{', '.join((*self.takes, *self.numbers))}."
            )
        if missing := {*self.takes, *self.numbers} - {*self.defaults, *given}:
            raise TypeError(
                f"{self.name} computes and needs {', '.join(sorted(missing))}; to set its numbers "
                f"for guidance or a chain, {self.name}.bind(...)."
            )
        given = self.defaults | given
        self._check_numbers(given)
        return self.evaluate(given)

    def evaluate(self, given: Mapping[str, Any]) -> Any:
        """The rule of everything that it takes, by name, its numbers having been checked before.

        A guidance calls it so: what was bound isn't fetched from the device at every step.

        Raises:
            ValueError: If a prediction is of another shape than the rest, or a number of another
                batch.
        """
        self._check_shapes(given)
        return self.fn(**{self.renamed.get(name, name): value for name, value in given.items()})

    def _check_numbers(self, given: Mapping[str, Any]) -> None:
        if self.check is not None:
            numbers = {n: given[n] for n in self.numbers}
            self.check(**{n: v if _is_known(v) else math.nan for n, v in numbers.items()})

    def _check_shapes(self, given: Mapping[str, Any]) -> None:
        """Raise `ValueError` for what would broadcast the predictions to another shape."""
        base = "cond" if "cond" in given else "guided"
        shape = np.shape(given[base])
        for name in {*self.branches, *(("guided",) if self.refines else ())} - {base}:
            other = np.shape(given[name])
            if other and (len(other) != len(shape) or not broadcasts_to(other, shape)):
                raise ValueError(
                    f"{self.name}: {name} has shape {other}, and {base} {shape}; expected the same."
                )
        numbers = [name for name in self.numbers if name not in self.static]
        for name in (*numbers, *(("omega",) if "omega" in given else ())):
            if not isinstance(given[name], (tuple, list, str)):
                _check_batch(self.name, name, shape, np.shape(given[name]))

    def bind(self, **numbers: Any) -> Bound:
        """The rule with its numbers set, for `guidance` and `chain`.

        Args:
            **numbers: Each a number or a `Weight`; the others keep their defaults.

        Raises:
            ValueError: If it has no such number, one without a default is not given, or one can't
                be meant.

        Example:
            >>> from guidejax.rules import rescale
            >>> rescale.bind(phi=0.5).numbers
            {'phi': 0.5}
        """
        if unknown := sorted(numbers.keys() - self.numbers.keys()):
            raise ValueError(
                f"{self.name} has no number named {', '.join(unknown)}; it takes "
                f"{', '.join(self.numbers) or 'none'}."
            )
        if missing := sorted(self.numbers.keys() - {*self.defaults, *numbers}):
            raise ValueError(
                f"{self.name} needs a value for {', '.join(missing)}, which has no default."
            )
        self._check_numbers(self.defaults | numbers)
        return Bound(self, self.defaults | numbers)

    def on(self, **branches: str) -> Rule:
        """The same rule on branches of other names, so that one rule can work twice in a chain.

        The same names give the same rule, so that making it again compiles nothing.

        Raises:
            ValueError: If it has no such branch, or a name can't be a branch's or is taken.

        Example:
            >>> from guidejax.rules import add_perturbation
            >>> add_perturbation.on(perturbed="skip").branches
            ('cond', 'skip')
        """
        return _renamed(self, tuple(sorted(branches.items())))

    def __repr__(self) -> str:
        return f"<rule {self.name}, space {self.space}>"


def _is_known(value: Any) -> bool:
    """Whether it is a number or numbers that Python may look at now."""
    numbers = isinstance(value, (int, float, np.generic, np.ndarray, jax.Array))
    return numbers and is_concrete(value) and getattr(value, "is_fully_addressable", True)


def _check_batch(rule: str, name: str, cond: tuple[int, ...], shape: tuple[int, ...]) -> None:
    # Else a batch of 1 would broadcast, to as many samples as there are numbers.
    if len(shape) == 1 and len(cond) and shape[0] not in (1, cond[0]):
        raise ValueError(
            f"{rule} is given {shape[0]} numbers as {name} for a batch of {cond[0]}: one a sample "
            f"is ({cond[0]},), one a channel has as many axes as the predictions."
        )


@functools.cache
def _renamed(rule: Rule, names: tuple[tuple[str, str], ...]) -> Rule:
    new = dict(names)
    free = set(rule.branches) - {"cond"}
    if not new.keys() <= free:
        raise ValueError(
            f"{rule.name} has no branch {', '.join(sorted(new.keys() - free))} to rename; it has "
            f"{', '.join(sorted(free)) or 'none'}."
        )
    takes = tuple(new.get(name, name) for name in rule.takes)
    for name in new.values():
        taken = {*CONTEXT, *rule.numbers, "cond", "guided", "omega"}
        if not name.isidentifier() or name in taken or takes.count(name) > 1:
            raise ValueError(
                f"{rule.name}: {name!r} can't name this branch; expected an identifier that "
                "isn't taken."
            )
    return dataclasses.replace(
        rule,
        takes=takes,
        needs={new.get(name, name): need for name, need in rule.needs.items()},
        raw=tuple(new.get(name, name) for name in rule.raw),
        renamed={new.get(n, n): rule.renamed.get(n, n) for n in rule.branches},
    )


@dataclasses.dataclass(frozen=True)
class Bound:
    """A rule with its numbers, ready for `guidance` and `chain`."""

    rule: Rule
    numbers: Mapping[str, Any]


def make_rule(
    fn: Callable[..., Any],
    *,
    space: str,
    paper: str = "",
    name: str | None = None,
    takes: tuple[str, ...] | None = None,
    numbers: Mapping[str, Any] | None = None,
    init: Callable[[Any], Any] | None = None,
    exact_at_zero: bool = True,
    static: tuple[str, ...] = (),
    needs: Mapping[str, Need] | None = None,
    wants: Callable[..., Any] | None = None,
    raw: tuple[str, ...] = (),
    check: Callable[..., None] | None = None,
) -> Rule:
    """A `Rule` of any function whose signature follows the convention above, unregistered.

    A function `fn(**given)`, whose arguments its signature doesn't name, states them as `takes`
    and `numbers`. Where ω = 0 gives `cond`, every other branch is needed where ω isn't 0; `needs`
    adds to that. The other arguments are the attributes of a `Rule`.

    Raises:
        ValueError: If the space is unknown or the signature doesn't follow the convention.

    Example:
        >>> def halfway(cond, uncond, omega, *, share=0.5):
        ...     return cond + share * omega * (cond - uncond)
        >>> make_rule(halfway, space="any").bind(share=0.25).numbers
        {'share': 0.25}
        >>> mean = make_rule(
        ...     lambda **given: (given["cond"] + given["other"]) / 2,
        ...     space="any", name="mean", takes=("cond", "other"), exact_at_zero=False,
        ... )
        >>> mean(1.0, 3.0)
        2.0
    """
    name = name or str(getattr(fn, "__name__", type(fn).__name__))
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}; expected one of {', '.join(SPACES)}.")
    if takes is None:
        takes, numbers = _declared(fn, name)
    numbers = dict(numbers or {})
    if reserved := sorted(numbers.keys() & {*takes, *CONTEXT, "omega", "cond", "guided"}):
        raise ValueError(
            f"{name}: {', '.join(reserved)} can't be a number; what a rule combines is positional."
        )
    if not {"cond", "guided"} & set(takes):
        raise ValueError(f"{name}: a rule takes `cond`, `guided` or both; it takes {takes}.")
    if (init is not None) != ("state" in takes):
        raise ValueError(f"{name}: a rule with state has `init` and takes `state`, or neither.")
    made = Rule(
        fn, name, space, paper, tuple(takes), numbers, init, exact_at_zero, tuple(static),
        wants=wants, raw=tuple(raw), check=check,
    )  # fmt: skip
    if exact_at_zero and "omega" in takes:
        made.needs = dict.fromkeys(set(made.branches) - {"cond"}, operator.itemgetter("omega"))
    made.needs = {**made.needs, **(needs or {})}
    return made


def _declared(fn: Callable[..., Any], name: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What a signature combines, and its numbers."""
    takes, numbers = [], {}
    for each, parameter in inspect.signature(fn).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ValueError(
                f"{name}: name every parameter, or give takes and numbers; got *{each}."
            )
        if parameter.kind is parameter.KEYWORD_ONLY:
            numbers[each] = parameter.default
        elif parameter.kind is parameter.POSITIONAL_ONLY or parameter.default is not REQUIRED:
            raise ValueError(
                f"{name}: {each} is positional-only or has a default; a rule's numbers follow a "
                "bare *, what it combines comes before it and has no default."
            )
        else:
            takes.append(each)
    return tuple(takes), numbers


def rule(**facts: Any) -> Callable[[Callable[..., Any]], Rule]:
    """Decorator: declare a rule's facts (`make_rule`) and list it, which also tests it.

    Raises:
        ValueError: If the name is taken; `make_rule` makes a rule without listing it.

    Example:
        >>> @rule(space="velocity", paper="folklore")
        ... def halfway(cond, uncond, omega):
        ...     return cond + omega * (cond - uncond) / 2
        >>> halfway
        <rule halfway, space velocity>
        >>> RULES.pop("halfway").branches  # not one of the library's
        ('cond', 'uncond')
    """

    def declare(fn: Callable[..., Any]) -> Rule:
        made = make_rule(fn, **facts)
        if made.name in RULES:
            raise ValueError(
                f"there is a rule {made.name} already; choose another name, or make_rule, which "
                "lists nothing."
            )
        RULES[made.name] = made
        return made

    return declare
