"""What the cells say: intervals over seeds, and the paper's claims put to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.claims import FAILS, HOLDS, PARTLY, Claim, verdict
from experiments.stages import theory
from experiments.stages.cells import Cells
from experiments.stages.config import SETTINGS, UNEVEN, schedules
from experiments.statistics import Interval, mean_interval, paired_difference_interval

Row = dict[str, Any]


def rows(cells: Cells, kind: str, setting: str | None = None, **wanted: Any) -> list[Row]:
    """One row a seed: that which has the wanted values."""
    found = []
    for result in cells.results(kind, setting):
        (row,) = [r for r in result["rows"] if all(r[k] == v for k, v in wanted.items())]
        found.append(row)
    return found


def values(found: list[Row], of: str | Callable[[Row], Any]) -> np.ndarray:
    """A number of every seed, (seeds, ...)."""
    return np.array([row[of] if isinstance(of, str) else of(row) for row in found], float)


def interval(found: list[Row], of: str | Callable[[Row], Any]) -> Interval:
    """The mean over seeds and its 95% interval."""
    return mean_interval(values(found, of))


def said(found: Interval, digits: int = 3) -> str:
    """An interval as text: of that many digits behind the point, or significant where it is small.

    Example:
        >>> said(Interval(0.1234, 0.12, 0.13))
        '0.123 [0.120, 0.130]'
    """
    if 0 < abs(found.estimate) < 10.0 ** (1 - digits):
        return f"{found.estimate:.3g} [{found.low:.3g}, {found.high:.3g}]"
    return f"{found.estimate:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


# Closed forms beside the simulation


def closed(cells: Cells) -> list[Row]:
    """Width, mean and norm of one mode: simulation, its step error, the closed form, agreement.

    They agree where the closed form is in the interval over seeds, widened on both sides by the
    error of the steps: the difference between the grid and one half as fine.
    """
    found = []
    for std in cells.plan.stds:
        for omega in cells.plan.single_omegas:
            own = rows(cells, "single", std=std, omega=omega)
            mean = theory.mean_factor(std, omega)
            width = std ** (1 + omega)
            exact = {
                # The flow of one mode is linear: over the noise's own width nothing is random.
                "contraction": width, "mean": mean, "norm": theory.mean_norm(1.5 * mean, width)
            }  # fmt: skip
            row: Row = {"std": std, "omega": omega}
            for what, value in exact.items():
                fine, coarse = (
                    np.array([row[grid][what] for row in own]) for grid in ("fine", "coarse")
                )
                seen, error = mean_interval(fine), np.abs(fine - coarse).max()
                # Six digits are kept of each number.
                error = error + 2e-6 * abs(value)
                row[what] = {
                    "seen": seen, "exact": value, "error": error,
                    "agrees": bool(seen.low - error <= value <= seen.high + error),
                }  # fmt: skip
            found.append(row)
    return found


def crossing(cells: Cells, name: str = "triangular") -> Interval:
    """The width of a mode at which a schedule's contraction is a constant's, from simulations."""
    found = []
    stds = np.log(cells.plan.shape_stds)
    for result in cells.results("shapes"):
        by = {(row["name"], row["std"]): row["exponent"] for row in result["rows"]}
        excess = [by[name, s] / by["constant", s] - 1 for s in cells.plan.shape_stds]
        (place,) = np.flatnonzero(np.diff(np.sign(excess)))
        low, high = excess[place], excess[place + 1]
        share = -low / (high - low)
        found.append(np.exp(stds[place] + share * (stds[place + 1] - stds[place])))
    return mean_interval(found)


def until(cells: Cells, setting: str, omega: float) -> Interval | None:
    """The time down to which guided samples are nearer to (1 + ω) μ̄; None where they never are."""
    found = []
    for result in cells.results("omegas", setting):
        (row,) = [r for r in result["rows"] if r["omega"] == omega]
        nearer = np.asarray(row["guided"]) < np.asarray(row["plain"])
        if not nearer[0]:
            return None
        found.append(0.0 if nearer.all() else result["t"][int(np.argmin(nearer)) - 1])
    return mean_interval(found)


# The claims


def claims(cells: Cells) -> list[Claim]:
    """Every claim with its measure."""
    parts = {
        "direction": (_agreement, _direction, _norms),
        "separation": (_starving, _basins),
        "concentration": (_contracts,),
        "schedules": (_halves, _perturbed, _global, _local, _least, _price),
    }
    return [
        made(cells)._replace(figure=f"stagewise/{name}.png")
        for name, each in parts.items()
        for made in each
    ]


def _agreement(cells: Cells) -> Claim:
    found = closed(cells)
    agree = {w: sum(r[w]["agrees"] for r in found) for w in ("contraction", "mean", "norm")}
    away = max(abs(r["contraction"]["seen"].estimate / r["contraction"]["exact"] - 1)
               for r in found)  # fmt: skip
    measured = (
        f"of {len(found)} pairs (σ_y, ω) the contraction agrees at {agree['contraction']}, the "
        f"mean at {agree['mean']} and the mean norm at {agree['norm']}; the contraction is off by "
        f"{100 * away:.2g}% at most. A 95% interval misses one time in 20"
    )
    enough = agree["contraction"] == len(found) and all(
        count >= len(found) - max(2, len(found) // 8) for count in agree.values()
    )
    return Claim(
        "one mode is contracted to σ_y^(1 + ω), its mean and norm amplified as computed",
        "Theorem 3.5, in closed form",
        measured, HOLDS if enough else FAILS,
    )  # fmt: skip


def _direction(cells: Cells) -> Claim:
    parts, good = [], True
    for name in UNEVEN:
        lasting = []
        for omega in cells.plan.omegas[1:]:
            good &= bool(interval(rows(cells, "omegas", name, omega=omega), "gap").low > 0)
            end = until(cells, name, omega)
            good &= end is not None
            if end is not None:
                lasting.append(end.estimate)
        if lasting:
            low, high = min(lasting), max(lasting)
            span = "to the end" if high <= 0 else f"down to t = {low:.2f} to {high:.2f}"
            parts.append(f"{SETTINGS[name].title}: {span}")
    nothing = interval(rows(cells, "omegas", "balanced", omega=4.0), "gap").estimate
    uneven = interval(rows(cells, "omegas", "two", omega=4.0), "gap").estimate
    return Claim(
        "early on guided samples are nearer to (1 + ω) μ̄ than conditional ones",
        "Theorem 3.2",
        f"at every ω, {'; '.join(parts)}. With μ̄ = 0 there is nothing to be nearer to: the gap "
        f"grows by {nothing:.3f} a unit of time at first, not {uneven:.0f}",
        HOLDS if good else FAILS,
    )


def _norms(cells: Cells) -> Claim:
    parts, grows, monotone = [], True, True
    for name in UNEVEN:
        plain = values(rows(cells, "omegas", name, omega=0.0), "norm")
        each = {o: values(rows(cells, "omegas", name, omega=o), "norm")
                for o in cells.plan.omegas}  # fmt: skip
        means = [v.mean() for v in each.values()]
        best = cells.plan.omegas[int(np.argmax(means))]
        rise = paired_difference_interval(each[best], plain)
        grows &= all(paired_difference_interval(v, plain).low > 0 for o, v in each.items() if o > 0)
        monotone &= best == cells.plan.omegas[-1]
        last = cells.plan.omegas[-1]
        parts.append(
            f"{SETTINGS[name].title}: {plain.mean():.2f} at ω = 0, by {said(rise, 2)} more at "
            f"ω = {best:g}, {means[-1]:.2f} at ω = {last:g}"
        )
    verdict = HOLDS if grows and monotone else PARTLY if grows else FAILS
    return Claim("guidance makes norms grow, with ω", "consequence of Theorem 3.2",
                 "mean ‖x‖ of samples, " + "; ".join(parts), verdict)  # fmt: skip


def _starving(cells: Cells) -> Claim:
    parts, falls = [], []
    for name in UNEVEN:
        share = [values(rows(cells, "omegas", name, omega=o), "weak") for o in cells.plan.omegas]
        falls += [
            bool(paired_difference_interval(a, b).high < 0)
            for a, b in zip(share[1:], share[:-1], strict=True)
        ]
        parts.append(
            f"{SETTINGS[name].title}: {said(mean_interval(share[0]))} at ω = 0, "
            f"{said(mean_interval(share[-1]))} at ω = {cells.plan.omegas[-1]:g}"
        )
    even = interval(rows(cells, "omegas", "balanced", omega=cells.plan.omegas[-1]), "weak")
    return Claim(
        "the more guidance, the fewer samples of the weak mode", "Proposition 3.4",
        f"its share, {'; '.join(parts)}. Of two equal modes: {said(even)}",
        verdict(falls),
    )  # fmt: skip


def _basins(cells: Cells) -> Claim:
    parts, there, everywhere = [], True, True
    for name in UNEVEN:
        late = interval(rows(cells, "switch", name, time=0.3), "kept")
        mid = interval(rows(cells, "switch", name, time=0.7), "kept")
        there &= bool(late.estimate > 0.95)
        everywhere &= bool(mid.estimate > 0.95)
        parts.append(f"{SETTINGS[name].title}: {said(mid, 2)} where guidance sets in at t = 0.7, "
                     f"{said(late, 2)} at t = 0.3")  # fmt: skip
    return Claim(
        "guidance is neutral to mode separation: from a region samples go to the weak mode at "
        "every ω",
        "Theorem 3.3",
        "share kept of the samples that go there without guidance, at ω = 1, 4 and 8 alike, "
        f"{'; '.join(parts)}. There is such a region, "
        "but it isn't the whole basin: what lies at the edge is lost",
        HOLDS if there and everywhere else PARTLY if there else FAILS,
    )  # fmt: skip


def _contracts(cells: Cells) -> Claim:
    parts, good = [], True
    for time in cells.plan.kicks:
        plain = values(rows(cells, "kicks", "two", name="unguided", time=time), "growth")
        guided = rows(cells, "kicks", "two", name="constant", time=time)
        ratio = mean_interval(values(guided, "growth") / plain)
        bare = rows(cells, "kicks", "two", name="unguided", time=time)[0]["exact"]
        exact = guided[0]["exact"] / bare
        good &= bool(ratio.high < 1)
        parts.append(f"{said(ratio)} from t = {time:g} (one mode: {exact:.3f})")
    return Claim(
        "late in a run two samples of one mode come closer under guidance", "Theorem 3.5",
        f"growth of a small difference at ω = 3 over that without guidance, {'; '.join(parts)}",
        HOLDS if good else FAILS,
    )  # fmt: skip


def _compare(cells: Cells, name: str, what: str, a: str, b: str) -> tuple[Interval, str]:
    first, second = (values(rows(cells, "schedules", name, name=w), what) for w in (a, b))
    texts = [said(mean_interval(v), 4 if what == "width" else 3) for v in (first, second)]
    text = f"{SETTINGS[name].title}: {' against '.join(texts)}"
    return paired_difference_interval(first, second), text


def _halves(cells: Cells) -> Claim:
    found = [_compare(cells, n, "weak", "early strong", "late strong") for n in UNEVEN]
    plain = [said(interval(rows(cells, "schedules", n, name="unguided"), "weak")) for n in UNEVEN]
    return Claim(
        "strong guidance early costs more global diversity than late",
        "prediction test 1",
        "share of the weak mode at the same mean ω = 3 (the paper's means differ), early against "
        "late, " + "; ".join(f"{t}, without {p}" for (_, t), p in zip(found, plain, strict=True)),
        HOLDS if all(d.high < 0 for d, _ in found) else FAILS,
    )


def _perturbed(cells: Cells) -> Claim:
    time = 0.5
    late, const = (
        values(rows(cells, "kicks", "two", name=n, time=time), "growth")
        for n in ("late strong", "constant")
    )
    return Claim(
        "a perturbation on the way is forgotten more under late strong guidance than a constant",
        "prediction test 2",
        f"growth of one at t = {time:g}: {said(mean_interval(late), 4)} against "
        f"{said(mean_interval(const), 4)} (the paper, on images: MSE 0.0025 against 0.0103)",
        HOLDS if paired_difference_interval(late, const).high < 0 else FAILS,
    )


def _global(cells: Cells) -> Claim:
    found = [_compare(cells, n, "modes", "triangular", "constant") for n in UNEVEN]
    return Claim(
        "the triangle keeps more global diversity than a constant of its mean", "TV-CFG",
        "effective number of modes, " + "; ".join(text for _, text in found),
        _all(found, lambda d: d.low > 0),
    )  # fmt: skip


def _all(found: list[tuple[Interval, str]], good: Callable[[Interval], Any]) -> str:
    return verdict([bool(good(d)) for d, _ in found])


def _local(cells: Cells) -> Claim:
    found = [_compare(cells, n, "width", "triangular", "constant") for n in UNEVEN]
    at = crossing(cells)
    less = ": less" if all(d.high < 0 for d, _ in found) else ""
    return Claim(
        "the triangle keeps more diversity within modes than a constant of its mean", "TV-CFG",
        f"width of the strong mode (σ_y = 0.3), {'; '.join(text for _, text in found)}{less}. The "
        f"triangle keeps more of modes narrower than σ_y = {said(at)}, a constant of wider ones",
        _all(found, lambda d: d.low > 0),
    )  # fmt: skip


def _least(cells: Cells) -> Claim:
    own = rows(cells, "schedules", "two", name="least_contraction")[0]
    rivals = []
    for name in schedules():
        row = rows(cells, "schedules", "two", name=name)[0]
        if name != "least_contraction" and row["peak"] <= 1.001 * own["peak"] and row["least"] >= 0:
            rivals.append((row["exponent"], name))
    best = min(rivals)
    wide = [
        _compare(cells, n, "width", "least_contraction", other)
        for n in UNEVEN for _, other in rivals
    ]  # fmt: skip
    good = [own["exponent"] < best[0], all(bool(d.low > 0) for d, _ in wide)]
    _, text = _compare(cells, "two", "width", "least_contraction", best[1])
    return Claim(
        "least_contraction contracts modes least of all schedules of its mean and peak",
        "guidejax, from Theorem 3.5",
        f"exponent E {own['exponent']:.3f}, next {best[0]:.3f} ({best[1]}), of {len(rivals)} "
        f"schedules whose peak is no higher; width against that one, {text}",
        verdict(good),
    )


def _price(cells: Cells) -> Claim:
    found = [_compare(cells, n, "weak", "least_contraction", "constant") for n in UNEVEN]
    return Claim(
        "least_contraction costs no more of the weak mode than a constant", "guidejax",
        "share of the weak mode, " + "; ".join(text for _, text in found)
        + ". It guides at t near 1, where modes are chosen",
        _all(found, lambda d: d.low >= 0),
    )  # fmt: skip


def ranked(cells: Cells, setting: str, what: str) -> list[str]:
    """Schedules by a measure, the largest first."""
    names = list(schedules())
    key = {n: interval(rows(cells, "schedules", setting, name=n), what).estimate for n in names}
    return sorted(names, key=lambda n: -key[n])


def unbeaten(cells: Cells, setting: str) -> list[str]:
    """Schedules that none beats both in the weak mode's share and in the width within modes."""
    places = {}
    for name in schedules():
        own = rows(cells, "schedules", setting, name=name)
        places[name] = np.array([interval(own, what).estimate for what in ("weak", "width")])
    return [
        name
        for name, place in sorted(places.items(), key=lambda item: item[1][0])
        if not any(np.all(other > place) for other in places.values())
    ]
