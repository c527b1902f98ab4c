"""The experiment as cells, one a seed, each a small file: what is finished isn't done again."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidejax as gj
from experiments import cells
from experiments.stages import theory
from experiments.stages.config import (
    KICKED,
    MEAN,
    PROCESS,
    SETTINGS,
    SHAPES,
    STD,
    UNEVEN,
    Plan,
    schedules,
)

# What each kind of cell draws its keys from; none is another's.
PARTS = ("single", "shapes", "omegas", "switch", "schedules", "kicks", "limit")
# ω of the guidance that is turned on or off on the way.
SWITCHED = (1.0, 4.0, 8.0)
# Length of a perturbation over the noise of its time.
DELTA = 0.01
# Length of time over which the drift at t = 1 is measured.
EARLY = 0.005
# Samples among which distances are taken.
COMPARED = 1000

Result = dict[str, Any]
SOLVERS = {"heun": gj.solvers.heun, "ddim": gj.ddim}


@functools.partial(jax.jit, static_argnames=("solver", "keep"))
def run(
    model: Any, omega: Any, noise: Any, times: Any, solver: str = "heun", keep: bool = False
) -> Any:
    """`gj.sample` of condition 0 under CFG with a row of `omega` (steps,) a step.

    Returns:
        x at times[-1], (batch, d); with `keep` x after every step, (steps, batch, d).
    """
    found = gj.sample(
        jax.random.key(0), gj.analytic.denoiser(model, PROCESS), noise,
        cond=jnp.zeros(len(noise), int), uncond=model.null, times=times,
        guidance=gj.guidance(gj.cfg, omega=gj.schedules.table(omega)),
        solver=SOLVERS[solver](), keep="all" if keep else "final",
    )  # fmt: skip
    return found[1].x if keep else found


def table(weight: Any, times: Any, mean: float = MEAN) -> np.ndarray:
    """ω of every step, (steps,), at the given mean over time."""
    row = gj.with_mean(weight, mean).table(jnp.asarray(times), process=PROCESS)
    return np.broadcast_to(np.asarray(row), (len(times) - 1,))


@functools.cache
def scheduled(name: str, steps: int) -> np.ndarray:
    """ω of every step under a schedule by name, (steps,), at the mean `MEAN`."""
    if name == "unguided":
        return np.zeros(steps)
    return table(schedules()[name](), gj.uniform_times(steps))


@functools.cache
def shaped(name: str, std: float, steps: int) -> np.ndarray:
    """ω of every step under one of `SHAPES`, (steps,), at the mean 1."""
    return table(SHAPES[name](std), gj.uniform_times(steps), 1.0)


class Cells(cells.Cells):
    """Every cell of a plan by name."""

    def __init__(self, plan: Plan, folder: pathlib.Path | None, known: Mapping | None = None):
        """Results are looked for in `known`, then in `folder`, where new ones go."""
        self.plan, self.times = plan, jnp.asarray(gj.uniform_times(plan.steps))
        super().__init__(self._cells(), [] if folder is None else [folder], known=known)

    def _cells(self) -> Iterator[tuple[str, Callable[[], Result]]]:
        for seed in range(self.plan.seeds):
            for kind in ("single", "shapes", "limit"):
                yield f"{kind}/{seed}", functools.partial(self._rounded, kind, seed)
            for kind, names in (
                ("omegas", SETTINGS), ("switch", UNEVEN), ("schedules", UNEVEN), ("kicks", ("two",))
            ):  # fmt: skip
                for name in names:
                    work = functools.partial(self._rounded, kind, seed, name)
                    yield f"{kind}/{name}/{seed}", work

    def _rounded(self, kind: str, seed: int, *setting: str) -> Result:
        return rounded(getattr(self, f"_{kind}")(self.key(kind, seed), *setting))

    def key(self, kind: str, seed: int) -> jax.Array:
        """A key for a kind of cell and a seed."""
        return jax.random.fold_in(jax.random.key(PARTS.index(kind)), seed)

    def results(self, kind: str, setting: str | None = None) -> list[Result]:
        """The results of all seeds."""
        where = kind if setting is None else f"{kind}/{setting}"
        return [self[f"{where}/{seed}"] for seed in range(self.plan.seeds)]

    def noise(self, key: Any, dimension: int = 2, samples: int | None = None) -> jax.Array:
        """x at t = 1, (samples, dimension)."""
        return jax.random.normal(key, (samples or self.plan.samples, dimension))

    # One mode, of which everything is known in closed form

    def _single(self, key: jax.Array) -> Result:
        """Width, mean and norm of the samples of one mode at (1.5, 0), by width and ω."""
        noise, rows = self.noise(key), []
        for std in self.plan.stds:
            model = gj.analytic.stagewise([[1.5, 0.0]], [1.0], std)
            for omega in self.plan.single_omegas:
                x, coarse = (
                    np.asarray(run(model, jnp.full(len(times) - 1, omega), noise, times))
                    for times in (self.times, self.times[::2])
                )
                rows.append({"std": std, "omega": omega, "fine": _gaussian(x, noise),
                             "coarse": _gaussian(coarse, noise)})  # fmt: skip
        return {"rows": rows}

    def _shapes(self, key: jax.Array) -> Result:
        """Contraction of one mode under schedules of mean 1, as exponents E.

        E is log of the width without guidance over that with it: ∫ ω K dt in the theory.
        """
        noise, rows = self.noise(key), []
        for std in self.plan.shape_stds:
            model = gj.analytic.stagewise([[1.5, 0.0]], [1.0], std)
            plain = _width(run(model, jnp.zeros(self.plan.steps), noise, self.times))
            for name in SHAPES:
                omega = shaped(name, std, self.plan.steps)
                width = _width(run(model, jnp.asarray(omega), noise, self.times))
                exact = exponent(std, omega, self.times)
                rows.append({"std": std, "name": name, "exponent": np.log(plain / width),
                             "exact": exact})  # fmt: skip
        return {"rows": rows}

    def _limit(self, key: jax.Array) -> Result:
        """Distance of the samples from the limit of the ODE, by solver and number of steps."""
        setting, plan, rows = SETTINGS["two"], self.plan, []
        noise = self.noise(key, samples=plan.limit_samples)
        exact = theory.limit(setting, MEAN, noise)
        where = _nearest(exact, setting)
        for solver in SOLVERS:
            for steps in plan.limit_steps:
                times = jnp.asarray(gj.uniform_times(steps))
                x = np.asarray(run(setting.model(), jnp.full(steps, MEAN), noise, times, solver))
                away = np.linalg.norm(x - exact, axis=1)
                rows.append({"solver": solver, "steps": steps, "distance": np.median(away),
                             "elsewhere": np.mean(_nearest(x, setting) != where)})  # fmt: skip
        return {"rows": rows}

    # Mixtures

    def _omegas(self, key: jax.Array, name: str) -> Result:
        """A constant ω over time: distance from (1 + ω) μ̄, norms, and what the samples are."""
        setting = SETTINGS[name]
        noise = self.noise(key, setting.means.shape[1])
        steps, model = self.plan.steps, setting.model()
        early = jnp.asarray(gj.uniform_times(2, 1.0, 1 - EARLY))
        shown = np.unique(np.linspace(0, steps - 1, 50).astype(int))
        start = run(model, jnp.zeros(2), noise, early)
        plain = run(model, jnp.zeros(steps), noise, self.times, keep=True)
        # x · toward is 1 at μ̄, and 0 where there is no such direction.
        toward = jnp.asarray(setting.mean / max(float(setting.mean @ setting.mean), 1e-12))
        rows = []
        for omega in self.plan.omegas:
            target = (1 + omega) * jnp.asarray(setting.mean)
            x = run(model, jnp.full(steps, omega), noise, self.times, keep=True)
            drifted = run(model, jnp.full(2, omega), noise, early)
            gap = jnp.mean(jnp.sum((start - target) ** 2 - (drifted - target) ** 2, axis=1))
            rows.append({
                "omega": omega,
                "gap": gap / EARLY,
                "guided": _distance(x[shown], target),
                "plain": _distance(plain[shown], target),
                "norms": jnp.mean(jnp.linalg.norm(x[shown], axis=-1), axis=1),
                "drift": jnp.mean(x[shown], axis=1) @ toward,
                **described(x[-1], setting, noise),
            })  # fmt: skip
        return {"t": np.asarray(self.times)[1:][shown], "rows": rows}

    def _switch(self, key: jax.Array, name: str) -> Result:
        """Guidance that is turned on at a time, or off: shares of the weak mode.

        "Kept" are those of the samples that without guidance end in the weak mode which end there
        whichever ω of `SWITCHED` guidance is turned on with, "joined" those that do of the others:
        from the same x_τ. "Early" is guidance with ω = `SWITCHED`[1] down to the time.
        """
        setting = SETTINGS[name]
        noise, model = self.noise(key, setting.means.shape[1]), setting.model()
        begins = np.asarray(self.times)[:-1]
        weak = _nearest(run(model, jnp.zeros(self.plan.steps), noise, self.times), setting) == 0
        rows = []
        for time in self.plan.switches:
            late = begins <= time + 1e-6
            on = [
                _nearest(run(model, jnp.asarray(late * omega), noise, self.times), setting) == 0
                for omega in SWITCHED
            ]
            omega = jnp.asarray(~late * SWITCHED[1])
            off = _nearest(run(model, omega, noise, self.times), setting) == 0
            rows.append({
                "time": time,
                "late": [each.mean() for each in on],
                "early": off.mean(),
                "kept": np.all(on, axis=0)[weak].mean(),
                "joined": np.any(on, axis=0)[~weak].mean(),
            })  # fmt: skip
        return {"plain": weak.mean(), "rows": rows}

    def _schedules(self, key: jax.Array, name: str) -> Result:
        """Every schedule at one mean of ω: what the samples are."""
        setting = SETTINGS[name]
        drawn, other = jax.random.split(key)
        noise, model = self.noise(drawn, setting.means.shape[1]), setting.model()
        real = model.sample(other, jnp.zeros(COMPARED, int))
        rows = []
        for which in ("unguided", *schedules()):
            omega = scheduled(which, self.plan.steps)
            x = run(model, jnp.asarray(omega), noise, self.times)
            some = x[: min(COMPARED, len(x))]
            rows.append({
                "name": which,
                "exponent": exponent(STD, omega, self.times),
                "peak": np.max(omega),
                "least": np.min(omega),
                "passes": np.count_nonzero(omega) / self.plan.steps,
                "diversity": gj.metrics.mean_pairwise_distance(some),
                "coverage": gj.metrics.coverage(real, some),
                "energy": gj.metrics.energy_distance(some, real),
                **described(x, setting, noise),
            })  # fmt: skip
        return {"rows": rows}

    def _kicks(self, key: jax.Array, name: str) -> Result:
        """The perturbation test: samples under schedules of one mean, perturbed on the way."""
        setting = SETTINGS[name]
        drawn, other = jax.random.split(key)
        noise, model = self.noise(drawn), setting.model()
        kick, rows = self.noise(other), []
        for which in ("unguided", *KICKED):
            omega = scheduled(which, self.plan.steps)
            path = run(model, jnp.asarray(omega), noise, self.times, keep=True)
            for time in self.plan.kicks:
                index = int(np.argmin(np.abs(np.asarray(self.times) - time)))
                rest, row = self.times[index:], jnp.asarray(omega[index:])
                moved = DELTA * self.times[index] * kick
                end = np.asarray(run(model, row, path[index - 1] + moved, rest))
                # One mode's both ends: what the theorem speaks of.
                within = _nearest(end, setting) == _nearest(path[-1], setting)
                away = np.linalg.norm(end - path[-1], axis=1)
                length = np.linalg.norm(moved, axis=1)
                rows.append({
                    "name": which,
                    "time": time,
                    "growth": np.median(away / length),
                    "mse": np.mean(away[within] ** 2) / DELTA**2,
                    "within": within.mean(),
                    "exact": gj.analytic.contraction(STD, gj.schedules.table(row), rest),
                })  # fmt: skip
        return {"rows": rows}


def described(x: Any, setting: Any, noise: Any) -> Result:
    """Shares of the modes, norm, width within the strong mode, all over samples (batch, d).

    The width is the interquartile range over that of the normal distribution, 1.349, mean over
    coordinates: samples that stay between the modes don't count for it.
    """
    x = np.asarray(x)
    near = _nearest(x, setting)
    shares = np.bincount(near, minlength=len(setting.weights)) / len(x)
    own = x[near == len(setting.weights) - 1]
    quarter, three = np.percentile(own, [25, 75], axis=0)
    some = shares[shares > 0]
    return {
        "weak": shares[0],
        "modes": np.exp(-np.sum(some * np.log(some))),
        "norm": np.linalg.norm(x, axis=1).mean(),
        "width": np.mean(three - quarter) / 1.349,
    }


def exponent(std: float, omega: Any, times: Any) -> float:
    """E = ∫ ω K dt on the grid: log of the width without guidance over that with it."""
    with_it = gj.analytic.contraction(std, gj.schedules.table(jnp.asarray(omega)), times)
    return float(-jnp.log(with_it / gj.analytic.contraction(std, 0.0, times)))


def _nearest(x: Any, setting: Any) -> np.ndarray:
    return np.asarray(gj.analytic.nearest_mode(jnp.asarray(x), setting.means))


def _distance(x: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum((x - target) ** 2, axis=-1), axis=1)


def _width(x: Any) -> float:
    return float(np.sqrt(np.mean(np.var(np.asarray(x, np.float64), axis=0))))


def _gaussian(x: np.ndarray, noise: Any) -> Result:
    """Width, mean over that of the mode, norm; and the width over that of the very noise."""
    return {
        "width": _width(x),
        "contraction": _width(x) / _width(noise),
        "mean": float(x[:, 0].mean(dtype=np.float64)) / 1.5,
        "norm": float(np.linalg.norm(x, axis=1).mean(dtype=np.float64)),
    }


def rounded(value: Any) -> Any:
    """Plain lists and numbers of six digits, as files hold them."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    if isinstance(value, str | bool | int):
        return value
    array = np.asarray(value, np.float64)
    if array.ndim:
        return [rounded(each) for each in array]
    return float(f"{float(array):.6g}")
