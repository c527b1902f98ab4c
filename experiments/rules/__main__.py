"""The gallery of rules: every rule on one mixture and on the digits, and docs/rules.md.

python -m experiments.rules                  # minutes on two cores
python -m experiments.rules --text           # the page alone, from the rules' declarations
python -m experiments.rules --only adg apg   # draw these again
"""

from __future__ import annotations

import sys

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.rules import page
from experiments.rules.config import Config, setting, spatial
from guidejax.rules import RULES


def main(config: Config) -> None:
    """Draw what is asked for and write the page."""
    names = [*RULES, "overview", "schedules"]
    unknown = sorted(set(config.only) - set(names))
    if unknown:
        raise SystemExit(f"no rule {', '.join(unknown)}; expected {', '.join(names)}.")
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "rules.md").write_text(page.text())
    if not config.text:
        draw(config, list(config.only) or names)


def draw(config: Config, names: list[str]) -> None:
    """The pictures by name."""
    from experiments.rules import figures, mixture
    from experiments.rules.digits import Digits

    folder = config.out / "rules"
    console = Console(file=sys.stderr, soft_wrap=not sys.stderr.isatty())
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("gallery", total=len(names))
        note = lambda text: progress.update(task, description=text)  # noqa: E731
        chosen = [name for name in spatial() if name in names]
        digits = Digits(config.data_dir, note) if chosen else None
        for name in chosen:
            note(name)
            assert digits is not None
            figures.rule(mixture.run(name), digits.run(name), folder / f"{name}.png")
            progress.advance(task)
        if "logits_cfg" in names:
            figures.logits(folder / "logits_cfg.png")
            progress.advance(task)
        if "schedules" in names:
            note("schedules")
            figures.schedules(folder / "schedules.png")
            progress.advance(task)
        if "overview" in names:
            note("overview")
            ends = {
                "data": (np.nan, mixture.truth()),
                "conditional": (np.nan, mixture.run("cfg", (0.0,))[0].path[-1]),
                "unconditional": (np.nan, mixture.run("cfg", (-1.0,))[0].path[-1]),
            }
            for name in spatial():
                drawn = mixture.run(name, (setting(name).mixture[1],))[0]
                ends[name] = (drawn.omega, drawn.path[-1])
            figures.overview(ends, folder / "overview.png")
            progress.advance(task)
    size = sum(path.stat().st_size for path in folder.glob("*.png"))
    console.print(f"{folder}: {len(list(folder.glob('*.png')))} pictures, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
