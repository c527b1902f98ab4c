"""What a rule is: a pure function on arrays that also carries its facts.

    @rule(space="x0", paper="arXiv 2506.11039, Algorithm 1")
    def adg(cond, uncond, omega, *, max_angle=jnp.pi / 3): ...

The signature is the declaration. Parameters without a default are what the rule combines:
`omega`, branches (`cond`, `uncond`, `negative`, `weak`, any name), `guided` (the prediction so far,
which makes the rule a refinement to chain after another) and what the sampler knows (`CONTEXT`).
Keyword parameters with a default are the rule's numbers; any may be a `Weight`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

# What `guidance` can hand a rule besides the branches: the state, the times of the step, the
# process and the rule's own carried state.
CONTEXT = ("x", "t", "s", "process", "state")
SPACES = ("any", "x0", "eps", "v", "velocity", "score", "log_prob")

Need = Callable[[Mapping[str, Any]], Any]


def any_of(*names: str) -> Need:
    """The gate of a branch that matters wherever one of these numbers isn't 0.

    A sum of weights is on where any of its terms is, though their values cancel.
    """
    return lambda numbers: functools.reduce(operator.add, (numbers[name] for name in names))


REGISTRY: dict[str, Rule] = {}


@dataclasses.dataclass(eq=False)
class Rule:
    """A combination rule: call it on arrays, bind it in `guidance`, or chain it.

    Calling with arrays computes. Calling without them (`adg(max_angle=1.0)`, or a number alone,
    `rescale(0.7)`) binds its numbers for use in `guidance` and `chain`.

    Attributes:
        fn: The function.
        space: Where its paper defines it: "x0", "eps", "v", "velocity", "score"; "any" where the
            result is the same in all of them, so that nothing is converted.
        paper: Source.
        init: For a rule with state, `init(x) -> state`; the function then takes `state` and
            returns `(guided, state)`.
        exact_at_zero: Whether ω = 0 returns `cond`.
        static: Names of numbers that are structure (an option, a count), not traced.
        needs: For a branch, the weight that it enters with, made of ω and the numbers by name.
            Where that is known to be 0 the branch isn't evaluated, and `cond` stands in for it.
        wants: For a rule whose state lets its branches go, `wants(state, **options)`: (batch,)
            flags, False where this step needs `cond` alone. The others then come as None.
    """

    fn: Callable[..., Any]
    space: str
    paper: str
    init: Callable[[Any], Any] | None
    exact_at_zero: bool
    static: tuple[str, ...]
    takes: tuple[str, ...]
    defaults: Mapping[str, Any]
    needs: Mapping[str, Need] = dataclasses.field(default_factory=dict)
    wants: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        """Its name in `guidejax`."""
        return self.fn.__name__

    @property
    def branches(self) -> tuple[str, ...]:
        """The predictions it combines, by name."""
        return tuple(n for n in self.takes if n not in (*CONTEXT, "omega", "guided"))

    @property
    def refines(self) -> bool:
        """Whether it takes the prediction of the rule before it."""
        return "guided" in self.takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Combine predictions."""
        return self.fn(*args, **kwargs)

    def bind(self, **numbers: Any) -> Bound:
        return Bound(self, self.check_numbers(numbers))

    def check_numbers(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """`numbers` over the defaults, or an error that names what is unknown."""
        unknown = sorted(set(numbers) - set(self.defaults))
        if unknown:
            raise ValueError(
                f"{self.name} has no number named {', '.join(unknown)}; it takes "
                f"{', '.join(self.defaults) or 'none'}."
            )
        return {**self.defaults, **numbers}

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
        taken = {*CONTEXT, *rule.defaults, "cond", "guided", "omega"}
        if not name.isidentifier() or name in taken or takes.count(name) > 1:
            raise ValueError(
                f"{rule.name}: {name!r} can't name this branch; expected an identifier that "
                "isn't taken."
            )
    old = {name: branch for branch, name in names}

    @functools.wraps(rule.fn)
    def fn(*args: Any, **kwargs: Any) -> Any:
        return rule.fn(*args, **{old.get(name, name): value for name, value in kwargs.items()})

    needs = {new.get(name, name): gate for name, gate in rule.needs.items()}
    made = dataclasses.replace(rule, fn=fn, takes=takes, needs=needs)
    functools.update_wrapper(made, fn, updated=())
    return made


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
    init: Callable[[Any], Any] | None = None,
    exact_at_zero: bool = True,
    static: tuple[str, ...] = (),
    needs: Mapping[str, Need] | None = None,
    wants: Callable[..., Any] | None = None,
) -> Rule:
    """A `Rule` of any function whose signature follows the convention above, unregistered.

    Where ω = 0 gives `cond`, every other branch is gated by ω; `needs` adds to that.

    Raises:
        ValueError: If the space is unknown or the signature doesn't follow the convention.

    Example:
        >>> def halfway(cond, uncond, omega, *, share=0.5):
        ...     return cond + share * omega * (cond - uncond)
        >>> make_rule(halfway, space="any")(share=0.25).numbers
        {'share': 0.25}
    """
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}; expected one of {', '.join(SPACES)}.")
    takes, defaults = [], {}
    for name, parameter in inspect.signature(fn).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ValueError(f"{fn.__name__}: name every parameter; got *{name}.")
        if parameter.default is parameter.empty:
            takes.append(name)
        else:
            defaults[name] = parameter.default
    if not {"cond", "guided"} & set(takes):
        raise ValueError(f"{fn.__name__}: a rule takes `cond`, `guided` or both; it takes {takes}.")
    if (init is not None) != ("state" in takes):
        raise ValueError(
            f"{fn.__name__}: a rule with state has `init` and takes `state`, or neither."
        )
    made = Rule(fn, space, paper, init, exact_at_zero, tuple(static), tuple(takes), defaults)
    if exact_at_zero and "omega" in takes:
        made.needs = dict.fromkeys(set(made.branches) - {"cond"}, operator.itemgetter("omega"))
    made.needs = {**made.needs, **(needs or {})}
    made.wants = wants
    functools.update_wrapper(made, fn, updated=())
    return made


def rule(**facts: Any) -> Callable[[Callable[..., Any]], Rule]:
    """Decorator: declare a rule's facts (`make_rule`) and list it, which also tests it.

    Example:
        >>> @rule(space="velocity", paper="folklore")
        ... def halfway(cond, uncond, omega):
        ...     return cond + omega * (cond - uncond) / 2
        >>> halfway
        <rule halfway, space velocity>
        >>> REGISTRY.pop("halfway").branches  # not one of the library's
        ('cond', 'uncond')
    """

    def declare(fn: Callable[..., Any]) -> Rule:
        made = make_rule(fn, **facts)
        REGISTRY[made.name] = made
        return made

    return declare
