"""Time grids: falling, from noise at t = 1 to data at t = 0.

NumPy arrays, so that a grid is known under jit too, where JAX would trace it.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from guidejax._arrays import concretely, whole_number
from guidejax.processes.base import Process, check_process


def uniform_times(steps: int, start: float = 1.0, stop: float = 0.0) -> np.ndarray:
    """`steps` equal steps from `start` down to `stop`: an array (steps + 1,).

    Raises:
        ValueError: If steps < 1 or not 1 ≥ start > stop ≥ 0.

    Example:
        >>> uniform_times(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    steps = whole_number("steps", steps)
    if steps < 1 or not 1 >= start > stop >= 0:
        raise ValueError(
            f"expected steps ≥ 1 and 1 ≥ start > stop ≥ 0, got {steps}, {start}, {stop}."
        )
    return np.linspace(start, stop, steps + 1, dtype=jnp.result_type(float))


def karras_times(
    process: Process,
    steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> np.ndarray:
    """The grid of Karras et al. 2206.00364, Eq. (5), in the process's own time: (steps + 1,).

    σ_i^(1/ρ) falls evenly from `sigma_max` to `sigma_min` in `steps` points, and then σ = 0. σ is
    the noise over the signal, σ(t)/α(t), so that the grid means the same on every process.

    Raises:
        ValueError: If steps < 1, not 0 < sigma_min < sigma_max, ρ is not positive, or the process
            has less noise than `sigma_max`.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> karras_times(rectified_flow(), 3, sigma_min=0.25, sigma_max=4.0, rho=1.0).tolist()
        [0.800000011920929, 0.6800000071525574, 0.20000000298023224, 0.0]
    """
    check_process(process)
    steps = whole_number("steps", steps)
    if steps < 1 or not 0 < sigma_min < sigma_max or not rho > 0:
        raise ValueError(
            "expected steps ≥ 1, 0 < sigma_min < sigma_max and rho > 0, "
            f"got {steps}, {sigma_min}, {sigma_max}, {rho}."
        )
    ramp = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)
    with concretely():
        # Not by the times found: an inverse may stop at 1.
        most = float(process.log_snr(jnp.ones((), jnp.result_type(float))))
        times = np.asarray(process.inverse_log_snr(jnp.asarray(-2 * rho * np.log(ramp))))
    if -2 * np.log(sigma_max) < most - 1e-3:
        raise ValueError(
            f"sigma_max={sigma_max} is more noise over signal than the process has at t = 1, "
            f"{np.exp(-most / 2):.6g}; give that or less."
        )
    times = np.append(np.minimum(times, 1), 0)
    if not np.all(np.diff(times) < 0):
        raise ValueError(f"{steps} steps are too many to tell apart in {times.dtype}.")
    return times.astype(jnp.result_type(float))
