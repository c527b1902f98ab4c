"""Any network as a denoiser: `denoise(x, t, cond) -> x0`. Everything after this line speaks x0."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    Tree,
    batch_size,
    check_floating,
    combine,
    concretely,
    is_concrete,
    shard_like,
    tree_map,
)
from guidejax.processes.base import PREDICTIONS, Process, check_process, check_time, to_x0
from guidejax.processes.continuous import EDM, Shifted

# What a network may be told of the time, beside any function of t.
TOLD = ("t", "index", "sigma", "log_snr")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A network, its parameters and its process; call it as `denoise(x, t, cond)`.

    A pytree: `params` and the processes are traced, so that new parameters don't recompile.

    Attributes:
        params: The network's parameters.
        process: The process that x and t are of.
        trained_on: The process that the network was trained on, where that is another; else None.
        network: `network(params, x, told, cond) -> output`.
        prediction: What the network outputs.
        time: What the network is told of the time.
    """

    params: Any
    process: Process
    trained_on: Process | None
    network: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    prediction: str = dataclasses.field(metadata={"static": True})
    time: str | Callable[[Array], Array] = dataclasses.field(default="t", metadata={"static": True})

    def __call__(self, x: Tree, t: Any, cond: Any = None) -> Tree:
        """x̂0(x_t, t, cond): x and x̂0 are (batch, ...), `t` a scalar or (batch,) in [0, 1]."""
        check_floating("x", x)
        check_time("t", t)
        t = jnp.asarray(t, jnp.result_type(float))
        own, inner, seen = self.process, t, x
        if self.trained_on is not None:
            own = self.trained_on
            inner, scale = _move(own, self.process, t)
            seen = combine((scale,), x)
        told = _told(self.time, own, inner)
        # Split as the state is: on an explicit mesh a network may join the two.
        told = shard_like(jnp.broadcast_to(told, (batch_size(x),)), jax.tree.leaves(x)[0])
        output = self.network(self.params, seen, told, cond)
        got, want = tree_map(jnp.shape, output), tree_map(jnp.shape, x)
        if got != want:
            raise ValueError(
                f"the network returned shape {got} for a state of shape {want}; "
                f"expected the same shape (prediction={self.prediction!r})."
            )
        # Back to the state's dtype: a network may compute in another.
        x0 = to_x0(output, seen, inner, own, self.prediction)
        return tree_map(lambda x0, x: x0.astype(x.dtype), x0, x)

    def on(self, process: Process) -> Denoiser:
        """The same denoiser for states of another process.

        Exact, not an approximation: at equal log-SNR two processes differ by a scale, so the
        network is asked at the time t' of its own process at which λ'(t') = λ(t), about
        x · √(α'² + σ'²)/√(α² + σ²). Beyond the noise that it was trained on it is asked at its
        noisiest, t' = 1.

        Args:
            process: The process to sample on.

        Example:
            >>> from guidejax.processes import edm, rectified_flow
            >>> denoise = denoiser(lambda x, t, cond: x / (1 - t[:, None]), rectified_flow(), "x0")
            >>> x = denoise.on(edm())(jnp.ones((1, 2)), 0.5)  # the network here undoes the scale
            >>> [round(v, 4) for v in x[0].tolist()]
            [1.0, 1.0]
        """
        check_process(process)
        own = self.process if self.trained_on is None else self.trained_on
        return dataclasses.replace(
            self, process=process, trained_on=None if same_process(own, process) else own
        )

    def then(self, other: Denoiser, at: Any) -> Denoiser:
        """One denoiser of two: this one at noisy times t ≥ `at`, `other` below.

        As Wan 2.2's pair of a high-noise and a low-noise network is. Each evaluation makes one pass
        of one network; of both, where the samples of a batch lie on both sides of `at`.

        Args:
            other: Of the same process.
            at: The time between the two, a scalar in [0, 1]. Traced.

        Raises:
            ValueError: If `other` isn't a denoiser of the same process, or `at` no time.

        Example:
            >>> from guidejax.processes import rectified_flow
            >>> def constant(value):
            ...     return denoiser(lambda x, t, c: 0 * x + value, rectified_flow())
            >>> high, low = constant(1), constant(2)
            >>> both = high.then(low, at=0.875)
            >>> [both(jnp.zeros((1, 1)), t).item() for t in (0.9, 0.875, 0.5)]
            [1.0, 1.0, 2.0]
        """
        if not isinstance(other, Denoiser) or not same_process(self.process, other.process):
            raise ValueError(
                "`then` expects a denoiser of the same process; for one of another process say "
                "which it is to be on: other.on(process)."
            )
        at = jnp.asarray(at, jnp.result_type(float))
        if at.ndim or (is_concrete(at) and not 0 <= float(at) <= 1):
            raise ValueError(f"`then` expects at, a scalar in [0, 1]; got {at}.")
        return Denoiser((self, other, at), self.process, None, _Then(), "x0")

    @property
    def noisiest(self) -> Denoiser:
        """The one that is asked at t = 1: of a pair by `then` the first, else this."""
        return self.params[0].noisiest if isinstance(self.network, _Then) else self

    def blind_at(self, t: Any) -> bool:
        """Whether the prediction is known to say nothing of x0 at t, where α(t) = 0."""
        own, inner = self._inside(t)
        if inner is None:
            return False
        if isinstance(self.network, _Then):  # α is 0 at t = 1 alone.
            return self.params[0].blind_at(inner)
        with concretely():
            blind = self.prediction in ("eps", "score")
            return blind and bool(np.any(np.asarray(own.alpha(inner)) <= 0))

    def told_at(self, t: Any) -> tuple[str, np.ndarray] | None:
        """What the network is told at t, and by which name of `TOLD`.

        None where it isn't known now, or what a function of t makes of it.
        """
        own, inner = self._inside(t)
        if inner is None:
            return None
        if isinstance(self.network, _Then):
            high, low, at = self.params
            late = is_concrete(at) and not np.any(np.asarray(inner) >= np.asarray(at))
            return (low if late else high).told_at(inner)
        if not isinstance(self.time, str):
            return None
        with concretely():
            return self.time, np.asarray(_told(self.time, own, inner))

    def _inside(self, t: Any) -> tuple[Process, Array | None]:
        """The network's own process, and the time there; None where that isn't known now."""
        own = self.process if self.trained_on is None else self.trained_on
        if not is_concrete(t, self.process, own):
            return own, None
        with concretely():
            t = jnp.asarray(t, jnp.result_type(float))
            return own, t if self.trained_on is None else _move(own, self.process, t)[0]


def _move(own: Process, other: Process, t: Array) -> tuple[Array, Array]:
    """(the time of `own` with the log-SNR that `other` has at t, what scales x_t to it)."""
    inner = jnp.clip(own.inverse_log_snr(other.log_snr(t)), 0, 1)
    size = lambda process, t: jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)  # noqa: E731
    return inner, size(own, inner) / size(other, t)


def _told(time: str | Callable[[Array], Array], process: Any, t: Array) -> Array:
    if time == "t":
        return t
    if time == "index":
        return process.index(t)
    if time == "sigma":
        return process.sigma(t) / process.alpha(t)
    if time == "log_snr":
        return process.log_snr(t)
    return jnp.asarray(time(t))  # type: ignore[operator]  # `denoiser` checked


def same_process(a: Process, b: Process) -> bool:
    """Whether two processes are known to be the same: of one kind, with equal numbers."""
    if a is b:
        return True
    if jax.tree.structure(a) != jax.tree.structure(b) or not is_concrete(a, b):  # type: ignore[operator]
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


@dataclasses.dataclass(frozen=True)
class _Plain:
    """A function of (x, t, cond) that holds its own parameters."""

    fn: Callable[..., Any]

    def __call__(self, params, x, t, cond):
        return self.fn(x, t, cond)


@dataclasses.dataclass(frozen=True)
class _WithParams:
    """A function of (params, x, t, cond)."""

    fn: Callable[..., Any]

    def __call__(self, params, x, t, cond):
        return self.fn(params, x, t, cond)


@dataclasses.dataclass(frozen=True)
class _Then:
    """One of two denoisers by the time."""

    def __call__(self, params, x, t, cond):
        high, low, at = params
        noisy = t >= at
        which = jnp.where(jnp.all(noisy), 0, jnp.where(jnp.any(noisy), 2, 1))

        def mixed(x, t, cond):
            return tree_map(
                lambda a, b: jnp.where(noisy.reshape(-1, *[1] * (a.ndim - 1)), a, b),
                high(x, t, cond),
                low(x, t, cond),
            )

        # Functions of their own: branches are hashed, and parameters have no hash.
        return jax.lax.switch(
            which, [lambda *args: high(*args), lambda *args: low(*args), mixed], x, t, cond
        )


@dataclasses.dataclass(frozen=True)
class _Linen:
    module: Any

    def __call__(self, params, x, t, cond):
        return self.module.apply(params, x, t, cond)


def _called(module, x, t, cond):
    return module(x, t, cond)


@dataclasses.dataclass(frozen=True)
class NNXNetwork:
    """`call(module, x, t, cond)` as a network of an NNX module's state.

    A frozen dataclass, not a closure: two of the same module are equal, and compile once.
    """

    graphdef: Any
    call: Callable[..., Any] = _called

    def __call__(self, params, x, t, cond):
        from flax import errors, nnx

        module = nnx.merge(self.graphdef, _snapshot(params))
        leaves = lambda: dict(jax.tree_util.tree_leaves_with_path(nnx.state(module)))  # noqa: E731
        before, reason = leaves(), ""
        try:
            output = self.call(module, x, t, cond)
            after = leaves()
            changed = any(after.get(path) is not leaf for path, leaf in before.items())
        except errors.TraceContextError as error:
            changed, reason = True, f" {error}"
        if changed:
            raise ValueError(
                "the NNX module changes its own state as it is called, as dropout and batch norm "
                "do in training mode: call module.eval() before making a denoiser of it." + reason
            )
        return output


def split_nnx(module: Any, call: Callable[..., Any] = _called) -> tuple[NNXNetwork, Any]:
    """(network, params) of an NNX module, its parameters as they are now."""
    from flax import nnx

    graphdef, state = nnx.split(module)
    return NNXNetwork(graphdef, call), _snapshot(state)


def _snapshot(state: Any) -> Any:
    """The same arrays in variables of their own: a module's own ones change as it is trained."""
    return jax.tree.map(lambda leaf: leaf, state)


def _is_module(network: Any, library: str) -> bool:
    """Whether `network` is a module of flax's `library`, without importing it."""
    module = sys.modules.get(f"flax.{library}")
    return module is not None and isinstance(network, module.Module)


def denoiser(
    network: Callable[..., Any],
    process: Process,
    prediction: str = "x0",
    *,
    time: str | Callable[[Array], Array] | None = None,
    params: Any = None,
) -> Denoiser:
    """Wrap a network as `denoise(x, t, cond) -> x0`.

    Args:
        network: One of
            - a function `network(x, t, cond) -> output`;
            - a function `network(params, x, t, cond) -> output`, with `params`;
            - a Flax linen module, with its variables as `params`;
            - a Flax NNX module, which holds its own parameters; in eval mode.
            Of a module the denoiser has the parameters as they are now: make it anew after
            training. Define a function once: one made anew at each call, as a lambda within a loop
            is, compiles anew at each call. What a function reads beside its arguments, of globals,
            of a closure or of `self`, is read once, when it compiles; what changes goes in as
            `params`.
        process: The noising process that the network was trained on.
        prediction: What the network outputs: "x0", "eps", "v", "velocity" (ε − x0 on every
            process, which is dx/dt on rectified flow alone) or "score".
        time: What the network is told in place of t, (batch,) float: "t"; "index", of the table
            of a `discrete` process; "sigma", σ/α; "log_snr", log(α²/σ²); or a function of t,
            such as `lambda t: 1000 * t`. None is "t", with a warning on processes whose published
            networks are told something else: a table, EDM, a shifted one.
        params: The network's parameters, where it doesn't hold them itself. Traced.

    Returns:
        A `Denoiser`, a pytree that can be called.

    Raises:
        ValueError: If `prediction` or `time` is unknown, `process` is none, a linen module comes
            without variables, the network is a dataclass that holds arrays, or, at the first call,
            the output has not the shape of its input.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> denoise = denoiser(lambda x, t, cond: 0 * x, rectified_flow(), "velocity")
        >>> denoise(jnp.ones((2, 3)), 0.5).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"unknown prediction {prediction!r}; expected one of {', '.join(PREDICTIONS)}."
        )
    check_process(process)
    asked, time = time, "t" if time is None else time
    if time not in TOLD and not callable(time):
        raise ValueError(
            f"unknown time={time!r}; expected one of {', '.join(TOLD)}, or a function of t."
        )
    if isinstance(process, Shifted) and (asked is None or (callable(time) and not _same(time))):
        warnings.warn(
            f"the network is told {'' if asked is None else 'a function of '}the shifted process's "
            "own t. One that was trained on the process without the shift is wrapped there and "
            "moved, gj.denoiser(network, process, ...).on(gj.processes.shifted(process, shift)); "
            "time='t' says that this t is meant, and the network may scale it itself.",
            stacklevel=2,
        )
    elif asked is None and (hasattr(process, "index") or isinstance(process, EDM)):
        told = "sigma" if isinstance(process, EDM) else "index"
        warnings.warn(
            f"the network is told t in [0, 1]. One that was published for {type(process).__name__} "
            f"is told something else: give time={told!r}, or what it is. time='t' says that this t "
            "is meant.",
            stacklevel=2,
        )
    if time == "index" and not hasattr(process, "index"):
        raise ValueError(
            f"time='index' needs a process with a table, such as gj.processes.discrete(...); got "
            f"{type(process).__name__}. For other numberings give a function of t."
        )
    if isinstance(network, Denoiser):
        raise ValueError("the network is a Denoiser already; pass it to `sample` as it is.")
    wrapped: Any
    if _is_module(network, "nnx"):
        if params is not None:
            raise ValueError("an NNX module holds its parameters; got `params` as well.")
        wrapped, params = split_nnx(network)
    elif _is_module(network, "linen"):
        if params is None:
            raise ValueError(
                "a linen module needs its variables: denoiser(module, process, params=variables)."
            )
        wrapped = _Linen(network)
    elif callable(network):
        _check_comparable(network)
        wrapped = _Plain(network) if params is None else _WithParams(network)
    else:
        raise ValueError(f"expected a function or a Flax module, got {type(network).__name__}.")
    return Denoiser(params, process, None, wrapped, prediction, time)


def _same(time: Callable[[Array], Array]) -> bool:
    """Whether a function of t is known to return it as it is."""
    t = np.array([0.25, 0.5], jnp.result_type(float))
    try:
        with concretely():
            told = time(jnp.asarray(t))
        return is_concrete(told) and np.array_equal(np.asarray(told), t)
    except Exception:  # whatever it raises, it raises again where it is called
        return False


def _check_comparable(network: Any) -> None:
    """Raise `ValueError` for a dataclass that holds arrays, by which JAX would compare networks."""
    made = getattr(type(network), "__dataclass_params__", None)
    if made is None or not made.eq:
        return
    for field in dataclasses.fields(network):
        leaves = jax.tree.leaves(getattr(network, field.name, None)) if field.compare else []
        arrays = [leaf for leaf in leaves if isinstance(leaf, (jax.Array, np.ndarray))]
        # One number can be compared.
        if any(is_concrete(array) and array.size > 1 for array in arrays):
            raise ValueError(
                f"the network, a dataclass {type(network).__name__}, holds arrays as "
                f"{field.name!r}: JAX compares networks to tell what is compiled, and arrays don't "
                "compare. Give what holds arrays as `params`, gj.denoiser(function, process, "
                "params=...) of a function(params, x, t, cond)."
            )


def check_denoiser(denoise: Any) -> None:
    """Raise `ValueError` unless it is a `Denoiser`."""
    if not isinstance(denoise, Denoiser):
        raise ValueError(
            f"expected a denoiser, got {type(denoise).__name__}: wrap what predicts x0 with "
            "gj.denoiser(fn, process), which says which process it is of."
        )
