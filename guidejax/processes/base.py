"""What a noising process is, and what a network predicts of one.

x_t = α(t) x0 + σ(t) ε with ε ~ N(0, I): t = 0 is data, t = 1 is noise. Each kind of prediction
converts from and to x0 by one affine map.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, dataclass_transform, get_args

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import (
    Array,
    Tree,
    check_floating,
    combine,
    concretely,
    expand,
    is_concrete,
    safe_sqrt,
    tree_map,
    upcast,
)
from guidejax._random import as_keys, normal_like

Prediction = Literal["x0", "eps", "v", "velocity", "score"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
# Halvings of [0, 1]: as many as tell two floats apart near t = 0 too.
_HALVINGS = 60


@dataclass_transform(frozen_default=True, eq_default=False)
@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """α(t) and σ(t) of a Gaussian noising process; subclass it to write your own.

    A subclass becomes a frozen dataclass and a pytree by itself: its fields are traced leaves, so
    that new values don't recompile, except those declared with `metadata={"static": True}`. It
    must define `alpha` and `sigma`, on times of any shape, in JAX; everything else has a default
    made of the two. Don't decorate it. `guidejax.processes.check` tests one.

    Example:
        >>> class Power(Process):
        ...     exponent: float
        ...     def alpha(self, t):
        ...         return 1 - jnp.asarray(t) ** self.exponent
        ...     def sigma(self, t):
        ...         return jnp.asarray(t) ** self.exponent
        >>> process = Power(2.0)
        >>> float(jax.jit(lambda process: process.sigma(0.5))(process))
        0.25
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, eq=False)(cls)
        fields = dataclasses.fields(cls)
        static = tuple(f.name for f in fields if f.metadata.get("static"))
        traced = tuple(f.name for f in fields if f.name not in static)
        keys = tuple(jax.tree_util.GetAttrKey(name) for name in traced)

        # The class is part of the structure. `register_dataclass` leaves it out: two processes
        # with as many leaves compare equal there, and jit may run one with the other's program.
        def flatten(process: Any) -> tuple[tuple[Any, ...], Any]:
            values = tuple(getattr(process, name) for name in static)
            return tuple(getattr(process, name) for name in traced), (cls, values)

        def flatten_with_keys(process: Any) -> Any:
            leaves, structure = flatten(process)
            return tuple(zip(keys, leaves, strict=True)), structure

        def unflatten(structure: Any, leaves: Any) -> Any:
            # Not by __init__: JAX also unflattens with leaves that are no numbers.
            process = object.__new__(cls)
            for name, value in (
                *zip(traced, leaves, strict=True),
                *zip(static, structure[1], strict=True),
            ):
                object.__setattr__(process, name, value)
            return process

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)

    def alpha(self, t: Any) -> Array:
        """Signal coefficient α(t), with α(0) = 1."""
        raise NotImplementedError(f"{type(self).__name__} must define alpha(t).")

    def sigma(self, t: Any) -> Array:
        """Noise coefficient σ(t), with σ(0) = 0."""
        raise NotImplementedError(f"{type(self).__name__} must define sigma(t).")

    def log_snr(self, t: Any) -> Array:
        """λ(t) = log(α²/σ²), falling in t; +∞ at t = 0 and, where α(1) = 0, −∞ at t = 1."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def inverse_log_snr(self, log_snr: Any) -> Array:
        """The t at which λ(t) = `log_snr`; where [0, 1] has none the nearer end, or a t beyond 1.

        By bisection unless a subclass knows better, differentiable once.
        """
        wanted = jnp.asarray(log_snr, jnp.result_type(float))

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            later = self.log_snr(middle) > wanted
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        ends = (jnp.zeros_like(wanted), jnp.ones_like(wanted))
        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
        top = self.log_snr(jnp.ones_like(wanted))
        found = jnp.where(wanted <= top, 1, jnp.where(wanted == jnp.inf, 0, (low + high) / 2))
        found = jax.lax.stop_gradient(found)
        # One step of Newton's method, 0 long but for rounding, carries the gradient.
        inside = (found > 0) & (found < 1)
        safe = jnp.where(inside, found, 0.5)
        value, slope = jax.jvp(self.log_snr, (safe,), (jnp.ones_like(safe),))
        step = (jnp.where(inside, wanted, value) - value) / jax.lax.stop_gradient(slope)
        return jnp.where(jnp.isnan(wanted), jnp.nan, jnp.clip(found + step, 0, 1))

    def derivatives(self, t: Any) -> tuple[Array, Array]:
        """(dα/dt, dσ/dt); by forward differentiation unless a subclass knows better."""
        t = jnp.asarray(t, jnp.result_type(float, t))
        one = jnp.ones_like(t)
        return jax.jvp(self.alpha, (t,), (one,))[1], jax.jvp(self.sigma, (t,), (one,))[1]


def check_process(process: Any) -> None:
    """Raise `ValueError` unless it is a process."""
    if not isinstance(process, Process):
        called = f": call it, {process.__name__}()" if callable(process) else ""
        raise ValueError(
            f"expected a process, such as gj.processes.rectified_flow(), got {process!r}{called}."
        )


def check(process: Process) -> None:
    """Raise `ValueError` where a process breaks its promises, saying which and where.

    α(0) = 1 and σ(0) = 0; both finite and not negative on [0, 1]; λ falling, and 2 log(α/σ);
    `inverse_log_snr` the inverse of `log_snr`; `derivatives` those of α and σ. For tests of a
    process of one's own.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> check(rectified_flow())
    """
    check_process(process)
    who, t = type(process).__name__, np.linspace(0, 1, 101)
    with concretely():
        alpha, sigma = (np.asarray(f(jnp.asarray(t))) for f in (process.alpha, process.sigma))
        log_snr = np.asarray(process.log_snr(jnp.asarray(t)))
        back = np.asarray(process.inverse_log_snr(jnp.asarray(log_snr)))
        inner = jnp.asarray(t[5:-5])  # At the ends a slope may be infinite.
        slopes = [np.asarray(a) for a in process.derivatives(inner)]
        expected = [np.asarray(a) for a in Process.derivatives(process, inner)]
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        if value.shape != t.shape:
            raise ValueError(f"{who}.{name}(t) has shape {value.shape} for t of shape {t.shape}.")
        if not (np.all(np.isfinite(value)) and np.all(value >= 0)):
            bad = t[~(np.isfinite(value) & (value >= 0))][0]
            raise ValueError(f"{who}.{name}({bad:g}) is negative or not finite.")
    if abs(alpha[0] - 1) > 1e-4 or abs(sigma[0]) > 1e-4:
        raise ValueError(f"{who}: α(0) = {alpha[0]}, σ(0) = {sigma[0]}; expected 1 and 0.")
    if not np.all(np.diff(log_snr) < 0):
        bad = t[:-1][~(np.diff(log_snr) < 0)][0]
        raise ValueError(f"{who}.log_snr doesn't fall at t = {bad:g}.")
    inside = (alpha > 0) & (sigma > 0)
    log_alpha, log_sigma = (np.log(np.where(inside, a, 1)) for a in (alpha, sigma))
    ratio = 2 * (log_alpha - log_sigma)
    off = ~(np.abs(np.where(inside, log_snr, 0) - ratio) <= 1e-2 * (1 + np.abs(ratio)))
    if np.any(off):
        bad = int(np.argmax(off))
        raise ValueError(
            f"{who}.log_snr({t[bad]:g}) is {log_snr[bad]:g}; expected 2 log(α/σ) = {ratio[bad]:g}."
        )
    wrong = ~(np.abs(back - t) <= 1e-3)
    if np.any(wrong):
        bad = int(np.argmax(wrong))
        raise ValueError(f"{who}.inverse_log_snr(log_snr({t[bad]:g})) is {back[bad]:g}.")
    for name, slope, want in zip(("α", "σ"), slopes, expected, strict=True):
        if not np.allclose(slope, want, rtol=1e-2, atol=1e-3):
            raise ValueError(f"{who}.derivatives(t) isn't d{name}/dt.")


# Two times that differ by less are the same time, computed in different ways.
ROUNDING = 1e-6


def check_time(name: str, t: Any) -> None:
    """Raise `ValueError` where a time isn't in [0, 1], or is traced and an index."""
    if not is_concrete(t):
        dtype = getattr(t, "dtype", None)
        if dtype is not None and not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"{name} is {dtype}, an index and no time; give the process's, in [0, 1], 1 being "
                "noise: of index i of N noise levels it is (i + 1)/N."
            )
        return
    if not getattr(t, "is_fully_addressable", True):
        return
    value = np.asarray(t, np.float32)
    if not np.all((value >= -ROUNDING) & (value <= 1 + ROUNDING)):
        raise ValueError(
            f"{name} must lie in [0, 1], 1 being noise; got {t}. What a network is told in its "
            "place, such as an index, is `time` of gj.denoiser."
        )


def initial_noise(key: Array, process: Process, shape: Any, t: Any = 1.0) -> Array:
    """What `sample` starts from: σ(t) ε, ε ~ N(0, I), float32.

    On rectified flow and variance-preserving processes σ(1) is 1, or nearly; on EDM's it is 80.

    Args:
        key: A random key, or (batch,) keys.
        process: The noising process.
        shape: (batch, ...).
        t: The first time of the run, scalar or (batch,).

    Raises:
        ValueError: If t doesn't lie in [0, 1].

    Example:
        >>> from guidejax.processes import edm
        >>> initial_noise(jax.random.key(0), edm(), (2, 8, 8, 3)).shape
        (2, 8, 8, 3)
    """
    check_process(process)
    check_time("t", t)
    eps = normal_like(as_keys(key), jnp.zeros(shape, jnp.float32))
    return combine((process.sigma(t),), eps)


def noise_to(process: Process, x0: Tree, t: Array, eps: Tree) -> Tree:
    """x_t = α(t) x0 + σ(t) ε, with `t` a scalar or (batch,).

    Raises:
        ValueError: If t doesn't lie in [0, 1], or x0 or ε isn't of floating point numbers.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> noise_to(rectified_flow(), jnp.ones((1, 2)), 0.25, jnp.zeros((1, 2))).tolist()
        [[0.75, 0.75]]
    """
    check_time("t", t)
    check_floating("x0", x0)
    check_floating("eps", eps)
    return combine((process.alpha(t), process.sigma(t)), x0, eps)


def _coefficients(process: Process, t: Array, kind: str) -> tuple[Array, Array]:
    """(a, b) with x0 = a x_t + b · prediction."""
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown prediction {kind!r}; expected one of {', '.join(PREDICTIONS)}.")
    alpha, sigma = process.alpha(t), process.sigma(t)
    if kind == "x0":
        return jnp.zeros_like(alpha), jnp.ones_like(alpha)
    if kind == "v":
        return alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)
    if kind == "velocity":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    live = alpha > 0
    inverse = jnp.where(live, 1 / jnp.where(live, alpha, 1), 0)
    return inverse, (-sigma if kind == "eps" else sigma**2) * inverse


def to_x0(value: Tree, x: Tree, t: Array, process: Process, prediction: str) -> Tree:
    """The clean image that a network's output means.

    ε̂: (x − σε̂)/α;  v̂ = αε − σx0: (αx − σv̂)/(α²+σ²);  velocity û = ε − x0: (x − σû)/(α+σ);
    score ∇log p_t: (x + σ²·score)/α. "eps" and "score" say nothing of x0 where α = 0: there x0
    comes back as 0, the mean of centred data.

    Args:
        value: The network's output, the shape of `x`.
        x: The noisy state x_t, (batch, ...).
        t: Time, scalar or (batch,).
        process: The noising process.
        prediction: What `value` is: "x0", "eps", "v", "velocity" or "score".

    Returns:
        x0, in the dtype of `x`.

    Raises:
        ValueError: If `prediction` is none of these, t doesn't lie in [0, 1], or x isn't of
            floating point numbers.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> x = jnp.ones((1, 2))
        >>> to_x0(jnp.zeros((1, 2)), x, 0.5, rectified_flow(), "eps").tolist()
        [[2.0, 2.0]]
    """
    check_time("t", t)
    check_floating("x", x)
    if prediction == "x0":
        return value
    if prediction not in ("eps", "score"):
        return combine(_coefficients(process, t, prediction), x, value)
    inverse = _coefficients(process, t, prediction)[0]
    noise = process.sigma(t) ** (1 if prediction == "eps" else 2)

    # The noise is taken away before anything is divided by α: near α = 0 both may be out of range.
    def one(x: Array, value: Array) -> Array:
        x_, value = upcast(x), upcast(value)
        by = lambda c: expand(c, x_).astype(x_.dtype)  # noqa: E731
        sign = -1 if prediction == "eps" else 1
        return ((x_ + sign * by(noise) * value) * by(inverse)).astype(x.dtype)

    return tree_map(one, x, value)


def from_x0(
    x0: Tree,
    x: Tree,
    t: Array,
    process: Process,
    prediction: str,
    noiseless: Literal["undefined", "zero"] = "undefined",
) -> Tree:
    """The inverse of `to_x0`: what a network of that kind would have output; needs σ(t) > 0.

    Where σ = 0 there is no noise to speak of, and the result isn't finite; "zero" takes ε̂ = 0.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> x = jnp.ones((1, 2))
        >>> from_x0(2 * x, x, 0.5, rectified_flow(), "velocity").tolist()
        [[-2.0, -2.0]]
    """
    check_time("t", t)
    check_floating("x", x)
    if prediction == "x0":
        return x0
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"unknown prediction {prediction!r}; expected one of {', '.join(PREDICTIONS)}."
        )

    # ε̂ first: where σ is small its parts x/σ and α x0/σ may be out of range each.
    def one(x: Array, x0: Array) -> Array:
        x_, x0 = upcast(x), upcast(x0)
        alpha, sigma = (
            expand(c, x_).astype(x_.dtype) for c in (process.alpha(t), process.sigma(t))
        )
        size = jnp.where(sigma == 0, jnp.inf, sigma) if noiseless == "zero" else sigma
        eps = (x_ - alpha * x0) / size
        if prediction == "v":
            eps = alpha * eps - sigma * x0
        elif prediction == "velocity":
            eps = eps - x0
        elif prediction == "score":
            eps = -eps / size
        return eps.astype(x.dtype)

    return tree_map(one, x, x0)


def convert(
    value: Tree,
    x: Tree,
    t: Array,
    process: Process,
    source: str,
    target: str,
    noiseless: Literal["undefined", "zero"] = "undefined",
) -> Tree:
    """A prediction of one kind, `source`, as another, `target`.

    "velocity" is ε − x0 on every process. It is dx/dt on rectified flow alone: for an ODE solver
    take `gj.guided(...).drift`. `noiseless` is that of `from_x0`.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> x, eps = jnp.ones((1, 2)), jnp.zeros((1, 2))
        >>> convert(eps, x, 0.5, rectified_flow(), "eps", "velocity").tolist()
        [[-2.0, -2.0]]
    """
    if source == target:
        return value
    return from_x0(to_x0(value, x, t, process, source), x, t, process, target, noiseless)


def x0_per_unit(process: Process, t: Array, space: str) -> Array:
    """∂x0/∂prediction at fixed x_t: what turns a difference in `space` into one in x0.

    At α = 0 an "eps" or "score" difference is 0/0; the factor is 0 there, so that a guided
    prediction falls back on the conditional one.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> float(x0_per_unit(rectified_flow(), 0.75, "eps"))
        -3.0
    """
    check_time("t", t)
    return _coefficients(process, t, space)[1]


def bridge(
    process: Process, s: Array, t: Array, churn: Array | float
) -> tuple[Array, Array, Array]:
    """Coefficients (A, B, C) of the DDIM bridge x_s = A x_t + B x0 + C ε, s < t.

    With r_ij = (α_t/α_s)^i (σ_s/σ_t)^j and churn e (Galashov et al. 2510.00815, Eqs. (2), (23)):
    A = e² r₁₂ + (1−e²) r₀₁;  B = α_s (1 − e² r₂₂ − (1−e²) r₁₁);
    C² = σ_s² (1 − (e² r₁₁ + 1 − e²)²).
    Whatever the churn, x_s | x0 ~ N(α_s x0, σ_s² I); e = 0 is DDIM, e = 1 is DDPM's posterior.

    Args:
        process: The noising process.
        s: Target time, scalar or (batch,).
        t: Current time, s < t.
        churn: e in [0, 1].

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> a, b, c = bridge(rectified_flow(), 0.3, 0.7, 0.0)
        >>> [round(float(v), 4) for v in (a, b, c)]
        [0.4286, 0.5714, 0.0]
    """
    check_time("s", s)
    check_time("t", t)
    e2 = jnp.asarray(churn) ** 2
    alpha_s, sigma_s = process.alpha(s), process.sigma(s)
    r01 = sigma_s / process.sigma(t)
    # α_s = 0 only where the times rise, and there is no churn then.
    r11 = process.alpha(t) / jnp.where(alpha_s > 0, alpha_s, 1) * r01
    keep = e2 * r11 + (1 - e2)
    a = r01 * keep
    b = alpha_s - process.alpha(t) * a
    # 1 − keep² factored: no cancellation to a small negative number at churn = 0.
    c = sigma_s * safe_sqrt(e2 * (1 - r11) * (1 + keep))
    return a, b, c
