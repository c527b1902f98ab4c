"""Rules that weigh the branches by something measured beforehand or by the network's gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, Tree, expand, restore, safe_divide, upcast
from guidejax._denoisers import Denoiser
from guidejax.processes import Process
from guidejax.processes.base import check_time
from guidejax.rules.base import rule
from guidejax.weights.base import Step, Weight


@rule(space="any", paper="Gao et al. (REG), arXiv 2501.18865, §4", raw=("gradient",))
def reg(
    cond: Array, uncond: Array, omega: Array, gradient: Array, t: Array, process: Process
) -> Array:
    """Rectified gradient guidance: c + ω α ∇ₓ(1ᵀ x̂0(x, c)) ⊙ (c − u).

    The gradient is a stand-in for the diagonal of the Jacobian of x̂0 (Gao et al. 2501.18865). It is
    of x̂0 whatever c and u are: α ∇ₓ(1ᵀx̂0) = 1 − σ ∇ₓ(1ᵀε̂), so that in ε this is the paper's
    c + ω (1 − σ ∇ₓ(1ᵀε̂)) ⊙ (c − u), and in EDM (α = 1) its x̂0 form. One vector-Jacobian product a
    step: `input_gradient` makes the branch,

        sample(..., guidance=guidance(reg, 2.0),
               conditions={"gradient": (input_gradient(denoise), labels)})

    Args:
        cond: Conditional prediction c, (batch, ...), in any parameterisation.
        uncond: Unconditional prediction u, the same shape and parameterisation.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        gradient: ∇ₓ(1ᵀ x̂0(x_t, c)), the same shape; of x̂0 whatever the predictions are, and never
            converted.
        t: Time, scalar or (batch,).
        process: The noising process.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> c, u, gradient = jnp.array([[3.0, 3.0]]), jnp.ones((1, 2)), jnp.array([[1.0, 0.0]])
        >>> reg(c, u, 4.0, gradient, 0.5, rectified_flow()).tolist()
        [[7.0, 3.0]]
    """
    c = upcast(cond)
    weight = expand(omega, c) * expand(process.alpha(t), c) * upcast(gradient)
    return restore(c + weight.astype(c.dtype) * (c - upcast(uncond)), cond)


def input_gradient(denoise: Denoiser) -> Denoiser:
    """(x, t, cond) ↦ ∇ₓ Σ x̂0(x, t, cond), sample by sample: the `gradient` branch of `reg`.

    Example:
        >>> import guidejax as gj
        >>> process = gj.processes.rectified_flow()
        >>> square = gj.denoiser(lambda x, t, cond: cond[:, None] * x**2, process)
        >>> input_gradient(square)(jnp.array([[1.0, 2.0]]), 0.5, jnp.array([3.0])).tolist()
        [[6.0, 12.0]]
    """
    return Denoiser(denoise, denoise.process, None, _input_gradient, "x0")


def _input_gradient(denoise: Denoiser, x: Tree, t: Array, cond: Any) -> Tree:
    x0, pull = jax.vjp(lambda x: denoise(x, t, cond), x)
    return pull(jax.tree.map(jnp.ones_like, x0))[0]


@rule(space="eps", paper="Xia et al. (ReCFG), arXiv 2410.18737, §3.3")
def recfg(cond: Array, uncond: Array, omega: Array, *, ratio: Array | float = 1.0) -> Array:
    """ReCFG: c + ω (c − ρ ⊙ u), ρ(t) such that guidance doesn't shift the expectation.

    Xia et al. 2410.18737: the coefficients of c and u need not sum to one, and ρ = E[c]/E[u] keeps
    E of the guided ε at E[c]. `recfg_table` measures ρ.

    Args:
        cond: Conditional prediction c, (batch, ...), as ε.
        uncond: Unconditional prediction u, the same shape and space.
        omega: ω, scalar or (batch,); 0 returns `cond` exactly.
        ratio: ρ: a scalar, (batch,), or an array of as many axes as `cond`; 1 is `cfg`.

    Returns:
        The guided prediction, in the dtype of `cond`.

    Example:
        >>> recfg(jnp.array([[2.0]]), jnp.array([[4.0]]), 3.0, ratio=0.5).tolist()
        [[2.0]]
    """
    c, u = upcast(cond), upcast(uncond)
    rho = expand(ratio, u).astype(u.dtype)
    return restore(c + expand(omega, c) * (c - rho * u), cond)


def _nearest(params: tuple[Array, Array], step: Step) -> Array:
    times, ratios = params
    index = jnp.argmin(jnp.abs(jnp.asarray(step.t)[..., None] - times), axis=-1)
    found = ratios[index]
    return found if index.ndim else found[None]


def recfg_table(times: Array, cond: Array, uncond: Array, *, estimator: str = "paper") -> Weight:
    """ρ of `recfg` from pairs of predictions at several times: `guidance(recfg, ω, ratio=table)`.

    "paper" is ρ = E[c]/E[u] (Xia et al. 2410.18737); "code" is the authors' program, the
    least-squares ρ = E[c u]/E[u²], which doesn't blow up where E[u] is near 0. Element by element,
    over the pairs; they average 500 noised images for each of 100 conditions.

    Args:
        times: (steps,) the times measured at; between them the nearest counts.
        cond: ε̂(x_t, c), (steps, pairs, ...).
        uncond: ε̂(x_t) of the same x_t, the same shape.
        estimator: "paper" or "code".

    Returns:
        A `Weight` whose value is ρ, (1, ...) or (batch, ...) with one time a sample; 1 where there
        is nothing to divide by.

    Raises:
        ValueError: If the shapes don't fit or the estimator is unknown.

    Example:
        >>> c, u = jnp.array([[[1.0], [3.0]]]), jnp.array([[[1.0], [4.0]]])
        >>> recfg_table(jnp.array([0.5]), c, u)(s=0.4, t=0.5).tolist()
        [[0.800000011920929]]
    """
    check_time("recfg_table's times", times)
    times = jnp.asarray(times)
    if cond.shape != uncond.shape or cond.ndim < 3 or cond.shape[:1] != times.shape:
        raise ValueError(
            "recfg_table expects cond and uncond of one shape (steps, pairs, ...) and times "
            f"(steps,); got {cond.shape}, {uncond.shape} and {times.shape}."
        )
    c, u = upcast(cond), upcast(uncond)
    if estimator == "paper":
        above, below = jnp.mean(c, axis=1), jnp.mean(u, axis=1)
    elif estimator == "code":
        above, below = jnp.mean(c * u, axis=1), jnp.mean(u * u, axis=1)
    else:
        raise ValueError(f"unknown estimator {estimator!r}; expected 'paper' or 'code'.")
    return Weight((times, safe_divide(above, below, otherwise=1.0)), _nearest)
