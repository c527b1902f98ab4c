"""The experiment as cells, each a small file: what is finished is never done again."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.flax
from flax import traverse_util

import guidejax as gj
from experiments import cells, guides, sharing
from experiments.emoji import captions, methods, towers, train
from experiments.emoji.arena import Arena, evaluations, generate, generate_tuned
from experiments.emoji.config import Plan

# What is chosen for: the Fréchet distance, or both it and the reward, of which 0.01 (a cosine) is
# worth 5% of the distance.
AIMS: dict[str, Callable[[float, float], float]] = {
    "distance": lambda distance, reward: math.log(distance),
    "both": lambda distance, reward: math.log(distance) - 5 * reward,
}
# What a method is called that was chosen for both.
BOTH = ", for both"

# What the parts of the experiment draw their keys from; none is another's.
TUNE, CHOOSE, LEARN, REPORT, SWEEP, DIVERSE, PICTURE = range(7)

# The rules of the sweep, with the numbers that their papers give.
SWEEP_RULES: dict[str, Callable[[Any], gj.Guidance]] = {
    "cfg": lambda omega: gj.guidance(gj.cfg, omega),
    "adg": lambda omega: gj.guidance(gj.adg, omega),
    "apg": lambda omega: gj.guidance(gj.apg, omega, eta=0.0),
    "cfg-zero": lambda omega: gj.guidance(gj.rules.cfg_zero, omega),
    "rescale": lambda omega: gj.guidance(gj.chain(gj.cfg, gj.rescale.bind(phi=0.7)), omega),
    "norm cap": lambda omega: gj.guidance(gj.chain(gj.cfg, gj.rules.norm_cap), omega),
    "interval": lambda omega: gj.guidance(gj.cfg, gj.interval(omega, lo=0.2, hi=0.8)),
}
# Schedules of one mean weight, whose diversity Jin et al. 2509.22007 order.
MEAN = 3.0
SCHEDULES: dict[str, gj.Weight] = {
    "constant": gj.weights.as_weight(MEAN),
    "early strong": gj.with_mean(gj.interval(1.0, lo=0.5, hi=1.0), MEAN),
    "late strong": gj.with_mean(gj.interval(1.0, lo=0.0, hi=0.5), MEAN),
    "triangular": gj.schedules.triangular(MEAN),
    "least contraction": gj.schedules.least_contraction(MEAN),
}


class Cells(cells.Cells):
    """Every cell of a plan by name."""

    def __init__(
        self, plan: Plan, weights: pathlib.Path, folders: list[pathlib.Path],
        say: Callable[[str], None],
    ):  # fmt: skip
        """`folders` are searched for results; new ones go to the first. `say` gets progress."""
        self.plan, self.weights = plan, weights
        super().__init__(self._cells(), folders, say)
        self._made: dict[Any, Any] = {}

    @property
    def denoisers(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.plan.early, *self.plan.long)

    def tuned(self, denoiser: str) -> tuple[str, ...]:
        """The methods that are tuned for a denoiser, and no guidance."""
        plan, every = self.plan, self.plan.methods or tuple(methods.TUNED)
        return every if denoiser in plan.early else plan.long_methods or every

    def both(self, denoiser: str) -> tuple[str, ...]:
        """Those of them that are tuned for the distance and the reward together too."""
        return self.plan.both if denoiser in self.plan.early else ()

    def compared(self, denoiser: str) -> tuple[str, ...]:
        """Every method of a denoiser's report."""
        learned = ("learned", "learned, gated", *(("learned anew",) if self.plan.anew else ()))
        both = (*self.both(denoiser), "learned") if self.both(denoiser) else ()
        return (*self.tuned(denoiser), *learned, *(method + BOTH for method in both))

    def like(self, denoiser: str) -> str:
        """The denoiser on which the methods of this one are tuned and learned."""
        return (self.plan.early if denoiser in self.plan.early else self.plan.long)[0]

    def _cells(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        plan, partial = self.plan, functools.partial
        homes = dict.fromkeys(self.like(denoiser) for denoiser in self.denoisers)
        for home in homes:
            for method in self.tuned(home):
                if method != "unguided":
                    yield f"tune/{home}/{method}", partial(self._tune, home, method)
        aims = tuple(AIMS) if plan.both else ("distance",)
        for form in dict.fromkeys(form for aim in aims for form in self.candidates(aim)):
            yield f"choose/{form}", partial(self._choose, form)
        for omega in plan.constants:
            yield f"constants/{omega:g}", partial(self._constant, omega)
        if plan.constants:
            yield "self-consistency", self._self_consistency
        for aim in aims:
            yield f"choice/{aim}", partial(self._choice, aim)
        for home in homes:
            for seed in range(plan.seeds):
                yield f"learn/{home}/{seed}", partial(self._learn, home, seed)
        for home in homes:
            for method in self.both(home):
                yield f"tune/{home}/{method}{BOTH}", partial(self._tune, home, method, "both")
            for seed in range(plan.seeds if self.both(home) else 0):
                yield f"learn/{home}/{seed}{BOTH}", partial(self._learn, home, seed, "both")
        for denoiser in self.denoisers:
            for method in self.compared(denoiser):
                name = f"{plan.label}/{denoiser}/{method}"
                yield name, partial(self._report, denoiser, method)
        for omega in plan.line:
            yield (
                f"line/{plan.early[0]}/{omega:g}",
                partial(self._on_the_line, plan.early[0], omega),
            )
        if not plan.omegas:
            return
        for rule in SWEEP_RULES:
            for omega in plan.omegas:
                name = f"sweep/{plan.early[0]}/{rule}/{omega:g}"
                yield name, partial(self._sweep, plan.early[0], rule, omega)
        for schedule in SCHEDULES:
            name = f"schedules/{plan.early[0]}/{schedule}"
            yield name, partial(self._schedule, plan.early[0], schedule)

    def valid(self, found: Any) -> bool:
        """Whether a result isn't of a search that has settings left to score."""
        if not isinstance(found, dict) or "trace" not in found:
            return True
        return found.get("rests") or len(found["trace"]) >= self.plan.settings

    # Networks and pictures

    def _once(self, make: Callable[..., Any], *args: Any) -> Any:
        if (make, *args) not in self._made:
            self._made[make, *args] = make(*args)
        return self._made[make, *args]

    def denoiser(self, name: str) -> gj.Denoiser:
        """A denoiser by name: of the repository, or one that was trained here."""
        return self._once(self._denoiser, name)

    def _denoiser(self, name: str) -> gj.Denoiser:
        path = self.weights / f"denoiser-{name}.safetensors"
        return train.load(path if path.exists() or not name.isdigit() else train.trained(name))

    def selection(self, part: int | None = None) -> Arena:
        """Pictures to choose on: the half that `part` says, or all."""
        return self._once(self._selection, part)

    def _selection(self, part: int | None) -> Arena:
        rows = np.arange(min(self.plan.selection, len(captions.pictures("select").captions)))
        rows = rows if part is None else rows[rows % 2 == part]
        return Arena("select", tuple(towers.SEEN), self.weights, rows)

    def learned_from(self, form: str, part: int | None = None) -> Arena:
        """Pictures that a form learns on: the half of the selection that `part` says, or others."""
        split = methods.LEARNED[form].split
        return self.selection(part) if split == "select" else self._once(self._all, split)

    def _all(self, split: captions.Split) -> Arena:
        return Arena(split, (), self.weights)

    def reported(self, split: captions.Split) -> Arena:
        """Pictures of the report."""
        return self._once(self._reported, split)

    def _reported(self, split: captions.Split) -> Arena:
        rows = np.arange(min(self.plan.report, len(captions.pictures(split).captions)))
        return Arena(split, tuple(towers.REPORT), self.weights, rows, self.plan.resamples)

    def key(self, part: int, *seeds: int) -> jax.Array:
        """A key of a part of the experiment."""
        key = jax.random.key(part)
        for seed in seeds:
            key = jax.random.fold_in(key, seed)
        return key

    # The kinds of cell

    def _tune(self, home: str, method: str, aim: str = "distance") -> dict[str, Any]:
        arena, denoise, plan = self.selection(), self.denoiser(home), self.plan
        tuned = methods.TUNED[method]
        known: dict[tuple[float, ...], tuple[float, float | None]] = {}
        if aim != "distance":  # What tuning for the distance looked at isn't drawn again.
            for row in self[f"tune/{home}/{method}"]["trace"]:
                if row["reward"] is not None:
                    known[tuple(row["numbers"].values())] = row["distance"], row["reward"]

        def look(numbers: dict[str, float]) -> tuple[float, float]:
            traced = {name: jnp.asarray(value) for name, value in numbers.items()}
            x0 = generate_tuned(self.key(TUNE), denoise, method, traced, arena.cond, plan.steps)
            distance, reward = arena.score(x0), arena.reward_score(x0)
            self.say(f"  {numbers}: distance {distance:.4f}, reward {reward:.4f}")
            return distance, reward

        def score(numbers: dict[str, float]) -> float:
            row = tuple(numbers.values())
            if row not in known:
                known[row] = look(numbers)
            distance, reward = known[row]
            # The reward of what was scored for the distance alone may be unknown, and isn't asked.
            value = AIMS[aim](distance, reward or 0.0) if distance > 0 else math.inf
            return value if math.isfinite(value) else math.inf

        special = None
        if tuned.after in (self.tuned(home) if aim == "distance" else self.both(home)):
            special = self[f"tune/{home}/{tuned.after}{'' if aim == 'distance' else BOTH}"][
                "numbers"
            ]
        before = self._before(f"tune/{home}/{method}{'' if aim == 'distance' else BOTH}")
        for row in before:
            known[tuple(row["numbers"].values())] = row["distance"], row.get("reward")
        trace = [(row["numbers"], score(row["numbers"])) for row in before]
        found = tuned.search(score, plan.settings, special, trace)
        best, *rows = (
            {"numbers": numbers, "distance": seen[0], "reward": seen[1]}
            for numbers in (found.numbers, *(numbers for numbers, _ in found.trace))
            for seen in (known[tuple(numbers.values())],)
        )
        return {**best, "rests": found.rests, "device": _device(), "trace": rows}

    def _before(self, name: str) -> list[dict[str, Any]]:
        """What an earlier search, with fewer settings, scored on the same kind of device."""
        for folder in self.folders:
            path = folder / f"{name}.json"
            if path.exists():
                found = json.loads(path.read_text())
                if found.get("device") == _device():
                    return found["trace"]
        return []

    def _updates(self, form: methods.Learned) -> int:
        """As many as spend what tuning spends."""
        plan = self.plan
        spend = plan.learned * plan.selection * plan.steps * 2
        update = methods.evaluations_of_an_update(form, plan.batch, plan.steps, plan.particles)
        return max(1, spend // update)

    def _fit(
        self, name: str, form: str, home: str, seed: int, arena: Arena, key: jax.Array,
        updates: int | None = None,
    ) -> Any:  # fmt: skip
        """φ, learned in the folder `name`, from which a run that was stopped goes on."""
        plan = self.plan
        updates = updates or self._updates(methods.LEARNED[form])

        def progress(step: int, metrics: dict[str, float]) -> None:
            if step % 10 == 0:
                self.say(f"  update {step} of {updates}, loss {metrics['loss']:.4f}")

        return methods.learn(
            methods.LEARNED[form], key, self.denoiser(home), np.asarray(arena.x0), arena.cond,
            updates=updates, batch=plan.batch, steps=plan.steps,
            particles=plan.particles, seed=seed, folder=self.weights,
            checkpoint_dir=self.folders[0].absolute() / name, progress=progress,
        )  # fmt: skip

    def _choose(self, form: str) -> dict[str, Any]:
        """Learned on one half of the selection pictures, scored on the other."""
        home, half = self.plan.early[0], self.learned_from(form, 0)
        phi = self._fit(f"fits/{form}", form, home, 0, half, self.key(CHOOSE))
        guide = methods.LEARNED[form].guide(phi)
        updates, curve = self._updates(methods.LEARNED[form]), self._curve(guide, self.selection(1))
        return {**self._scored(guide), "updates": updates, "omega": curve}

    def _constant(self, omega: float) -> dict[str, Any]:
        """A constant, where the learned forms are scored."""
        guide = gj.guidance(gj.cfg, jnp.float32(omega))  # Traced: one program for all.
        return {"omega": omega, **self._scored(guide)}

    def _self_consistency(self) -> dict[str, Any]:
        """What self-consistency says of constants: a loss a picture, and the reward that it sees.

        On the half of the selection that forms learn on, all from the same draws, as many as an
        eighth of the form's updates see.
        """
        arena, plan, denoise = self.selection(0), self.plan, self.denoiser(self.plan.early[0])
        form = methods.Learned(objective="self-consistency")
        forms = (dataclasses.replace(form, reward=gamma) for gamma in (0.0, 1.0))
        plain, rewarded = (
            methods.objective(each, None, 0, plan.particles, self.weights) for each in forms
        )
        null = jax.tree.map(
            lambda n, c: jnp.broadcast_to(n, c.shape), towers.NULL, dict(arena.cond)
        )
        batch = gj.objectives.Batch(arena.x0, dict(arena.cond), {"uncond": null})
        omegas = jnp.asarray([0.0, *(w for w in plan.constants if w), 0.1])

        @jax.jit
        def look(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            keys = jax.random.split(key, len(arena.captions))
            known = plain.evaluate(keys, ("cond", "uncond"), denoise, batch)
            seen = batch._replace(evaluations=known)

            def of(omega: jax.Array) -> tuple[jax.Array, jax.Array]:
                guide = gj.guidance(gj.cfg, omega)
                loss = plain(keys, guide, denoise, seen)
                return loss, loss - rewarded(keys, guide, denoise, seen)

            return jax.lax.map(of, omegas)

        draws = max(1, self._updates(form) * plan.batch // len(arena.captions) // 8)
        found = [look(key) for key in jax.random.split(self.key(CHOOSE, 2), draws)]
        loss, reward = (np.mean([each[i] for each in found], axis=0) for i in (0, 1))
        order = np.argsort(omegas)
        return {
            "omega": np.asarray(omegas)[order].round(5).tolist(),
            "loss": loss[order].astype(np.float64).round(4).tolist(),
            "reward": reward[order].astype(np.float64).round(6).tolist(),
        }

    def _scored(self, guide: gj.Guidance) -> dict[str, float]:
        """What a form is chosen by, on the half of the selection that it didn't learn on."""
        other, denoise = self.selection(1), self.denoiser(self.plan.early[0])
        x0 = generate(self.key(CHOOSE, 1), denoise, guide, other.cond, self.plan.steps)
        return {"distance": other.score(x0), "reward": other.reward_score(x0)}

    def _curve(self, guide: gj.Guidance, arena: Arena) -> list[float] | None:
        """Mean ω of each step over captions, None where it looks at the state."""
        if gj.weights.as_weight(guide.omega).sees_state:
            return None
        times = jnp.asarray(gj.uniform_times(self.plan.steps))
        table = gj.weights.as_weight(guide.omega).table(times, arena.cond, process=train.PROCESS)
        return np.asarray(table.reshape(self.plan.steps, -1).mean(axis=1)).round(4).tolist()

    def candidates(self, aim: str) -> list[str]:
        """The forms that an aim is chosen among: those that see the reward are for both."""
        return [name for name, form in methods.LEARNED.items() if aim == "both" or not form.reward]

    def _choice(self, aim: str) -> dict[str, Any]:
        """The form that is best by an aim."""
        found = {form: self[f"choose/{form}"] for form in self.candidates(aim)}
        better = AIMS[aim]
        best = min(found, key=lambda form: better(found[form]["distance"], found[form]["reward"]))
        return {"form": best, "score": {name: better(row["distance"], row["reward"])
                                        for name, row in found.items()}}  # fmt: skip

    def _learn(self, home: str, seed: int, aim: str = "distance") -> dict[str, Any]:
        form = self[f"choice/{aim}"]["form"]
        arena = self.learned_from(form)
        if aim != "distance" and form == self["choice/distance"]["form"]:
            return {"form": form, "same": f"learn/{home}/{seed}"}
        name = f"{home}/{seed}{'' if aim == 'distance' else BOTH}"
        phi = self._fit(f"fits/{name}", form, home, seed, arena, self.key(LEARN, seed))
        flat = traverse_util.flatten_dict(phi, sep="/")
        sharing.write(
            self.folders[0] / f"learn/{name}.safetensors",
            lambda part: safetensors.flax.save_file(flat, part),
        )
        curve = self._curve(methods.LEARNED[form].guide(phi), arena)
        return {"form": form, "omega": curve, "updates": self._updates(methods.LEARNED[form])}

    def _anew(self, home: str) -> Any:
        """The same form, learned on the spot with fewer updates."""
        form, seed = self["choice/distance"]["form"], self.plan.seeds
        return self._fit(
            f"fits/{home}-anew", form, home, seed, self.learned_from(form), self.key(LEARN, seed),
            self.plan.anew,
        )  # fmt: skip

    def learned(self, home: str, seed: int, aim: str = "distance") -> gj.Guidance:
        """The guidance of the learned form that won."""
        name = f"learn/{home}/{seed}{'' if aim == 'distance' else BOTH}"
        name = self[name].get("same", name)
        form, path = self[name]["form"], self.places[name] / f"{name}.safetensors"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} isn't there, the weights of the cell beside it: delete "
                f"{path.with_suffix('.json').name} there to learn them again."
            )
        phi = traverse_util.unflatten_dict(safetensors.flax.load_file(path), sep="/")
        return methods.LEARNED[form].guide(phi)

    def publish(self, folder: pathlib.Path) -> None:
        """Copy what is finished, with what was learned."""
        for name in filter(self.done, self.functions):
            # The weights first: whoever finds a result finds them too.
            for suffix in (".safetensors", ".json"):
                source, target = (f / f"{name}{suffix}" for f in (self.places[name], folder))
                if source.exists() and source.resolve() != target.resolve():
                    sharing.write(target, functools.partial(shutil.copyfile, source))

    def guide(self, denoiser: str, method: str, seed: int) -> gj.Guidance:
        """The guidance of a method."""
        home, plain = self.like(denoiser), method.removesuffix(BOTH)
        if method == "unguided":
            return methods.TUNED[method].guide()
        if plain in methods.TUNED:
            return methods.TUNED[plain].guide(**self[f"tune/{home}/{method}"]["numbers"])
        if method == "learned anew":
            form = methods.LEARNED[self["choice/distance"]["form"]]
            return form.guide(self._once(self._anew, home))
        guide = self.learned(home, seed, "distance" if plain == method else "both")
        if method == "learned, gated":
            return self._gated(home, guide)
        return guide

    def _gated(self, home: str, guide: gj.Guidance) -> gj.Guidance:
        """A learned weight where it is largest, for as many steps as the tuned interval guides."""
        steps = self.plan.steps
        interval = self.guide(home, "interval", 0)
        count = evaluations(interval, steps) - steps
        if count == 0:
            return methods.TUNED["unguided"].guide()
        curve = self._curve(guide, self.selection())
        if curve is None:  # What looks at the state has no curve: where the interval guides.
            numbers = self[f"tune/{home}/interval"]["numbers"]
            return guides.windowed(guide, numbers["lo"], numbers["hi"])
        times = np.asarray(gj.uniform_times(steps))[:-1]
        first = int(np.argmax([sum(curve[i : i + count]) for i in range(steps - count + 1)]))
        return guides.windowed(guide, float(times[first + count - 1]), float(times[first]))

    def ungated(self, denoiser: str) -> bool:
        """Whether the gated weight guides at as many steps as the learned one: it is that then."""
        gated, free = (self.guide(denoiser, m, 0) for m in ("learned, gated", "learned"))
        return evaluations(gated, self.plan.steps) == evaluations(free, self.plan.steps)

    def _report(self, denoiser: str, method: str) -> list[dict[str, Any]]:
        """A row a seed, on captions, noise and towers that nothing was chosen on."""
        rows, plan = list[dict[str, Any]](), self.plan
        if method == "learned, gated" and self.ungated(denoiser):
            return self[f"{plan.label}/{denoiser}/learned"]
        for seed in range(plan.seeds):
            row: dict[str, Any] = {}
            guide = self.guide(denoiser, method, seed)
            for split in ("report", "composed"):
                arena = self.reported(split)
                key = self.key(REPORT, int(split == "report"), seed)
                x0 = generate(key, self.denoiser(denoiser), guide, arena.cond, plan.steps)
                row[split] = arena.measure(x0)
            row["evaluations"] = evaluations(guide, plan.steps)
            if seed == 0:
                row |= self._diversity(denoiser, guide)
            rows.append(row)
        return rows

    def _on_the_line(self, denoiser: str, omega: float) -> dict[str, float]:
        """A constant from the same noise as the report's methods, the mean over its seeds."""
        arena, guide = self.reported("report"), gj.guidance(gj.cfg, jnp.float32(omega))
        rows = []
        for seed in range(self.plan.seeds):
            key = self.key(REPORT, 1, seed)
            x0 = generate(key, self.denoiser(denoiser), guide, arena.cond, self.plan.steps)
            found = arena.measure(x0)
            rows.append({name: found[name] for name in ("frechet", "clip score")})
        return {
            "omega": omega,
            **{name: float(np.mean([r[name] for r in rows])) for name in rows[0]},
        }

    def _diverse(self) -> Arena:
        """Some captions of the report, each several times on end."""
        return self._once(self._repeated, *self.plan.diverse)

    def _repeated(self, count: int, each: int) -> Arena:
        rows = np.linspace(0, min(self.plan.report, 461) - 1, count).astype(int)
        return Arena("report", tuple(towers.REPORT), self.weights, np.repeat(rows, each))

    def pictured(self, said: Sequence[str]) -> Arena:
        """Composed captions by name."""
        return self._once(self._named, tuple(said))

    def _named(self, said: tuple[str, ...]) -> Arena:
        known = captions.pictures("composed").captions
        rows = np.array([known.index(each) for each in said])
        return Arena("composed", tuple(towers.REPORT), self.weights, rows)

    def draw(self, denoiser: str, guide: gj.Guidance, arena: Arena) -> jax.Array:
        """A picture a caption, from noise of its own."""
        key = self.key(PICTURE)
        return generate(key, self.denoiser(denoiser), guide, arena.cond, self.plan.steps)

    def _diversity(self, denoiser: str, guide: gj.Guidance) -> dict[str, float]:
        """How far samples of one caption lie apart, and how strong guidance was on them."""
        arena = self._diverse()
        x0, strength = generate(
            self.key(DIVERSE), self.denoiser(denoiser), guide, arena.cond, self.plan.steps, True
        )
        found = arena.diversities(x0, self.plan.diverse[1])
        return {
            "diversity": float(np.mean(found)), "strength": float(np.mean(strength)),
            "diversities": found.astype(np.float64).round(5).tolist(),
        }  # fmt: skip

    def _sweep(self, denoiser: str, rule: str, omega: float) -> dict[str, Any]:
        """What a rule makes of an ω; from the same noise for all."""
        arena, diverse, network = self.reported("report"), self._diverse(), self.denoiser(denoiser)
        make = _sweep_program(rule, self.plan.steps)
        x0 = make(self.key(SWEEP), network, omega, arena.cond)
        row = {"omega": omega, **arena.measure(x0, self.plan.draws)}
        del row["frechet resampled"]
        x0 = make(self.key(DIVERSE), network, omega, diverse.cond)
        apart = diverse.diversities(x0, self.plan.diverse[1])
        row["diversity"] = float(np.mean(apart))
        row["error"]["diversity"] = float(np.std(apart, ddof=1) / np.sqrt(apart.size))
        return row

    def swept(self) -> dict[str, list[dict[str, Any]]]:
        """What is finished of the sweep: for each rule a row an ω."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name in self.functions:
            row = self.find(name) if name.startswith("sweep/") else None
            if row:
                found.setdefault(name.split("/")[2], []).append(row)
        return found

    def _schedule(self, denoiser: str, schedule: str) -> dict[str, Any]:
        """Diversity and quality of a schedule, and how far it goes in each stage of guidance.

        By step, or by perturbed time, a number a caption.
        """
        guide = gj.guidance(gj.cfg, SCHEDULES[schedule])
        arena, diverse, plan = self.reported("report"), self._diverse(), self.plan
        network = self.denoiser(denoiser)
        x0 = generate(self.key(SWEEP), network, guide, arena.cond, plan.steps)
        times = gj.uniform_times(plan.steps)
        noise = jax.random.normal(self.key(DIVERSE, 1), (len(diverse.captions), 32, 32, 3))
        found = gj.metrics.stage_diagnostics(
            self.key(DIVERSE, 2), network, noise, cond=diverse.cond, uncond=towers.NULL,
            guidance=guide, times=times, samples=plan.diverse[1], omega=MEAN, delta=0.05,
        )  # fmt: skip
        rounded = lambda a: np.asarray(a, np.float64).round(5).tolist()  # noqa: E731
        each = {
            "nearer": found.guided_distance / found.cond_distance,
            "norm_growth": found.norm_growth,
            "cosine": found.cosine,
            "spread_ratio": found.spread_ratio,
            "growth_ratio": found.growth_ratio,
        }
        return {
            "measured": arena.measure(x0),
            **self._diversity(denoiser, guide),
            "t": rounded(found.t),
            "s": rounded(found.s),
            "perturbed_t": rounded(found.perturbed_t),
            **{name: rounded(values) for name, values in each.items()},
        }


def _device() -> str:
    return jax.devices()[0].device_kind


@functools.cache
def _sweep_program(rule: str, steps: int) -> Any:
    return jax.jit(
        lambda key, denoise, omega, cond: generate(
            key, denoise, SWEEP_RULES[rule](omega), cond, steps
        )
    )
