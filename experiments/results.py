"""docs/results.md: every claim of the three papers, beside what was measured here.

Run it as `python -m experiments.results`. It measures nothing itself: each line comes from results
that lie in the repository, and the command beside it makes them again.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from experiments import angle, mixtures
from experiments.angle import cells as angle_cells
from experiments.angle import page as angle_page
from experiments.angle.config import PLANS as ANGLE
from experiments.benchmarks.report import markdown_table
from experiments.claims import FAILS, HOLDS, NO_CLAIM, PARTLY, Claim, estimate
from experiments.digits import report as digits
from experiments.digits.__main__ import RESULTS as DIGITS_RESULTS
from experiments.digits.cells import Cells
from experiments.digits.config import PROTOCOLS as DIGITS
from experiments.digits.config import Name as DigitsName
from experiments.emoji import docs as emoji
from experiments.emoji import report as emoji_report
from experiments.mixtures import page as mixtures_page
from experiments.mixtures.config import PRESETS as MIXTURES
from experiments.stages import page as stages_page
from experiments.stages import summary as stages_summary

DOCS = pathlib.Path(__file__).parent.parent / "docs"
CPU = "two CPU cores"

PAPERS = {
    "learn": (
        "Learn to Guide Your Diffusion Model",
        "Galashov et al., [2510.00815](https://arxiv.org/abs/2510.00815): ω is learned, a function of the condition and of the times "
        "of a step.",
    ),
    "stages": (
        "Stage-wise Dynamics of Classifier-Free Guidance",
        "Jin, Shi and Gu, [2509.22007](https://arxiv.org/abs/2509.22007): direction shift, mode separation, concentration, and the "
        "schedule that follows.",
    ),
    "angle": (
        "Angle Domain Guidance",
        "Jin et al., [2506.11039](https://arxiv.org/abs/2506.11039): rotate instead of extrapolate, so that norms, hence colours, hold "
        "at high weights.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Where claims were put to the test.

    Attributes:
        on: What it was run on.
        page: The page that reports it, below docs/.
        command: What makes its numbers again.
        seeds: How many, and of what.
        machine: On which it was run.
        claims: Its claims by paper.
    """

    on: str
    page: str
    command: str
    seeds: str
    machine: str
    claims: dict[str, list[Claim]]


def of_the_bar(found: Iterable[dict[str, Any]], figure: str) -> list[Claim]:
    """Claims that this project set itself: {"claim", "value", "holds"} each, value an estimate."""
    made = []
    for each in found:
        verdict = HOLDS if each["holds"] else FAILS
        made.append(Claim(each["claim"], "asked here", estimate(each["value"]), verdict, figure))
    return made


def _angle() -> Run:
    plan = ANGLE["full"]
    known = json.loads((pathlib.Path(angle.__file__).parent / "results" / "full.json").read_text())
    cells = angle_cells.Cells(plan, pathlib.Path("nowhere"), print, known)
    command = "python -m experiments.angle --preset full --publish"
    missing = [name for name in cells.functions if name not in known]
    if missing:  # To ask for one would compute it.
        raise SystemExit(
            f"experiments/angle/results/full.json lacks {len(missing)} of "
            f"{len(cells.functions)} cells, {missing[0]} among them: {command} makes them."
        )
    return Run(
        "mixtures with exact denoisers", "angle.md", command,
        f"{len(plan.seeds)}; each rule's ω chosen on {len(plan.tuning_seeds)} others", CPU,
        {"angle": angle_page.claims(cells)},
    )  # fmt: skip


def _stages() -> Run:
    cells, preset = stages_page.published()
    return Run(
        "mixtures with exact denoisers", "stagewise.md",
        f"python -m experiments.stages --preset {preset} --publish",
        f"{cells.plan.seeds} of {cells.plan.samples:,} samples; nothing is tuned", CPU,
        {"stages": stages_summary.claims(cells)},
    )  # fmt: skip


def _mixtures() -> Run:
    path = pathlib.Path(mixtures.__file__).parent / "results" / "results.json"
    results = json.loads(path.read_text())
    preset = MIXTURES[results["preset"]]
    return Run(
        "mixtures, with exact and with wrong models", "mixtures.md",
        f"python -m experiments.mixtures --preset {results['preset']} --publish",
        f"{len(preset.reported)} mixtures; rates and constants chosen on {len(preset.tuned)} others", CPU,
        {"learn": mixtures_page.claims(results)},
    )  # fmt: skip


# The frozen protocols.
DIGITS_PRESETS: dict[DigitsName, str] = {"full": "", "mended": ", the mended method"}


def _digits(preset: DigitsName) -> Run:
    protocol = DIGITS[preset]
    cells = Cells(protocol, pathlib.Path("nowhere"), DIGITS_RESULTS / preset)
    found = digits.claims(cells) if cells.finished else []
    return Run(
        f"1,797 real digits, small denoisers{DIGITS_PRESETS[preset]}", "digits.md",
        f"python -m experiments.digits --preset {preset} --publish",
        f"{len(protocol.seeds)}, {protocol.each} on each of {protocol.folds} parts of the images",
        CPU, {"learn": of_the_bar(found, f"digits/{preset}/ratios.png")},
    )  # fmt: skip


def _emoji() -> Run:
    cells = emoji.published()
    made = emoji.claims(cells)
    found = [c for c in emoji_report.distinct(cells) if "ADG" not in c["claim"]]
    made["learn"] = of_the_bar(found, "emoji/grid.png")
    plan = cells.plan
    seeds = (
        f"{plan.seeds} of noise on each of {len(plan.early)} denoisers and on one trained for long; lines of a sweep "
        "are one run each"
    )
    return Run(
        "3,655 real colour pictures, a text-to-image model", "emoji.md",
        "python -m experiments.emoji --preset wide --publish", seeds, f"{emoji.machine(cells)}; {CPU}", made,
    )  # fmt: skip


# Claims that the README shows beside the digits', of each paper some that hold and some
# that don't, as it says them.
HEADLINES = {
    "Where the model is well trained, the learned ω stays near 0": "Mixtures: of a well-trained model the learned ω is about 0",
    "The learned ω lowers it too": "Mixtures: of an under-trained or wrong model it lowers the distance",
    "The learned ω has the lowest distance of all": "Mixtures: the learned ω has a lower distance than the best constant",
    "one mode is contracted to σ_y^(1 + ω), its mean and norm amplified as computed": "Stages: guidance contracts a mode as the closed form "
    "says",
    "the triangle keeps more diversity within modes than a constant of its mean": "Stages: a triangular schedule keeps more diversity "
    "within modes than a constant",
    "High weights": "Angles: ADG is robust at weights where CFG degrades, on mixtures",
    "The best weight": "Angles: at the best weight of each, ADG gains nothing over CFG, as a reader of the paper's table reports",
    "ADG is robust at high weights, where CFG degrades": "Emoji: ADG is robust at high weights on real pictures",
}

UNFINISHED = """A protocol that was frozen beforehand hasn't been run to its end, and nothing is summed up before: {}; [digits.md](digits.md)
says how far each is.
"""

RUNS: tuple[Callable[[], Run], ...] = (
    _mixtures, *(functools.partial(_digits, preset) for preset in DIGITS_PRESETS), _stages, _angle,
    _emoji,
)  # fmt: skip


def text() -> str:
    """The whole page."""
    runs = [make() for make in RUNS]
    count = collections.Counter(
        claim.verdict for run in runs for made in run.claims.values() for claim in made
    )
    parts = [
        f"""# The papers' claims, judged

Written by `python -m experiments.results` from results that lie in the repository. {
            count.total()
        } claims: {count[HOLDS]} hold, {count[PARTLY]} hold in part,
{count[FAILS]} don't; {
            count[NO_CLAIM]
        } are measured without anybody's claim. What doesn't hold stands here like the rest. Intervals are at 95%; how
each was measured, and what it doesn't show, is on the page that its line names. *Asked here* marks what this project asked of its own
methods, *derived here* and *guidejax* statements of ours. The full texts of the papers weren't at hand: claims, and the numbers of their
theorems and equations, come from abstracts, the authors' programs and other people's published summaries.

## Where they were tested

{
            markdown_table(
                ["on", "page", "command", "seeds", "machine"],
                [
                    [
                        run.on,
                        f"[{run.page.removesuffix('.md')}]({run.page})",
                        f"`{run.command}`",
                        run.seeds,
                        run.machine,
                    ]
                    for run in runs
                ],
            )
        }"""
    ]
    for paper, (title, about) in PAPERS.items():
        rows = [
            [
                claim.claim,
                claim.source,
                claim.measured,
                f"**{claim.verdict}**",
                f"[{run.page.removesuffix('.md')}]({run.page})"
                + (f", [figure]({claim.figure})" if claim.figure else ""),
            ]
            for run in runs
            for claim in run.claims.get(paper, [])
        ]
        table = markdown_table(["claim", "from", "measured", "verdict", "where"], rows)
        parts.append(f"\n## {title}\n\n{about}\n\n{table}")
    unfinished = [f"`{run.command}`" for run in runs if not any(run.claims.values())]
    parts.append(
        """
## What isn't judged

Nothing here was run on the papers' own models (SD3.5, ImageNet networks): their weights couldn't be downloaded. `python -m
experiments.evaluate` compares tuned and learned guidance on any of [the public models](models.md) for who has them.
"""
        + (UNFINISHED.format(", ".join(unfinished)) if unfinished else "")
    )
    return "\n".join(parts)


def headlines() -> str:
    """A line for the first two claims about learned weights on pictures, and of `HEADLINES`."""
    runs = [make() for make in RUNS]
    known = {
        claim.claim: (run, claim) for run in runs for made in run.claims.values() for claim in made
    }
    first = {}
    for preset, which in DIGITS_PRESETS.items():
        form = DIGITS[preset].learned[0]
        for claim in _digits(preset).claims["learn"][:2]:
            said = claim.claim.replace(f", {form} /", ", the learned weight /")
            first[claim.claim] = f"Digits{which}: {said}"
    for claim in _emoji().claims["learn"][:2]:
        said = claim.claim.replace("learned /", "the learned weight /")
        first[claim.claim] = f"Emoji: {said}"
    rows = []
    for name, said in {**first, **HEADLINES}.items():
        run, claim = known[name]
        link = f"[{run.page.removesuffix('.md')}](docs/{run.page}), `{run.command}`"
        rows.append([said, claim.measured, f"**{claim.verdict}**", link])
    return markdown_table(
        ["claim", "measured, with intervals, 95% unless said", "verdict", "page, command"], rows
    )


def readme(text: str) -> str:
    """The README with its lines of evidence made anew."""
    begin, end = "<!-- evidence: begin -->\n", "\n<!-- evidence: end -->"
    head, rest = text.split(begin)
    return head + begin + headlines() + end + rest.split(end)[1]


def main() -> None:
    """Write the page, and the README's part of it."""
    (DOCS / "results.md").write_text(text())
    path = DOCS.parent / "README.md"
    path.write_text(readme(path.read_text()))


if __name__ == "__main__":
    main()
