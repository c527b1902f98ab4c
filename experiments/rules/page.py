"""docs/rules.md, made from the declarations of the rules and schedules."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import guidejax as gj
from experiments.rules.config import DENOISER_STEPS, WEAK_STEPS, setting
from guidejax.rules import REGISTRY, Rule
from guidejax.weights import SCHEDULES, Schedule

FAMILIES = {
    "linear": "Linear",
    "projection": "Projection",
    "rotation": "Rotation",
    "magnitude": "Magnitude: ω from the size of the difference",
    "rescaling": "Rescaling, after another rule",
    "thresholding": "Thresholding, after another rule",
    "frequency": "Frequency",
    "stateful": "Stateful",
    "feedback_guidance": "Feedback",
    "corrections": "Corrections",
    "logits": "Logits",
}

# Exported beside the rules: makers of rules, of their numbers and branches, and what goes with
# the solver's step.
HELPERS = (
    "chain", "compose", "stack", "rule", "make_rule", "input_gradient", "recfg_table",
    "feedback_numbers", "cfgpp_omega", "fkc_log_weight", "effective_sample_size",
    "systematic_resample",
)  # fmt: skip

INTRODUCTION = """\
# Rules and schedules

<!-- Made by `python -m experiments.rules` from the rules' declarations; edit that, not this. -->

A rule combines the conditional prediction c with others, the unconditional u first of all. ω is the
excess over the conditional model: ω = 0 is c, and other people's scale w is ω + 1
(`gj.from_scale`). By hand a rule takes arrays in its own space; `gj.guidance` converts from whatever
the network predicts, and back. Every number of a rule may be a schedule of (s, t, c).

```python
x0 = gj.adg(cond, uncond, 4.0)                                    # by hand, in anybody's loop
guidance = gj.guidance(gj.apg, omega=4.0, eta=0.2)                # bound, for gj.sample
guidance = gj.guidance(gj.chain(gj.cfg, gj.rescale(0.7)), omega=gj.interval(6.0, lo=0.2, hi=0.8))
guidance = gj.guidance(gj.autoguidance, omega=1.0)                # a branch with its own network:
x0 = gj.sample(..., guidance=guidance, branches={"weak": (weak_denoise, labels)})
skip = gj.add_perturbation.on(perturbed="skip")                   # a branch under another name
guidance = gj.guidance(gj.chain(gj.cfg, gj.add_perturbation(2.0), skip(1.0)), omega=3.0)
```
"""

CHOICE = """\
## Which to choose when

Start with `cfg` and an `interval`: it costs less than a constant ω and is the baseline to beat.
Then go by what is wrong.

| what you see, or have | try | because |
|---|---|---|
| nothing yet, any model | `cfg`, ω from 0.5 up, with `interval` | linear, the same in every space; outside the interval it makes one pass |
| burnt colours, too much contrast | `adg`, `apg`, or `rescale(0.7)` after any rule | they bound or restore the norm that extrapolation inflates |
| the same, on a flow model | `norm_cap`, `cfg_zero` with `zero_init` | defined on the velocity; `cfg_zero` fits u before it subtracts it |
| values out of range, pixel space | `dynamic_threshold`, `threshold` | they act on x̂0 in the range of the data; not for latents |
| good detail but poor variety and colour | `fdg`, `fresca` | low frequencies get less ω than high ones |
| samples collapse onto few modes | a schedule: `interval`, `low_contraction`, `clamp_linear`; or less ω | variety is lost by guiding early or where modes contract; no rule brings it back |
| a smaller or earlier checkpoint | `autoguidance`, `mixed_autoguidance` | moves away from errors, not from other classes, so that variety stays |
| no unconditional model at all | `perturbation` | the disturbed network stands in for u |
| guidance and a perturbation together | `stacked`, `chain(..., add_perturbation)` | each with its own ω or schedule, paid for only where it is not 0 |
| something to avoid | `negative_prompt`, `perp_neg` if it undoes the prompt | `perp_neg` removes only what is orthogonal to the prompt; `timed_negative` holds it back at first |
| several conditions at once | `compose_and`, `compose_not`, `nested`, `compose(...)` | a branch each, with its own weight |
| one ω doesn't suit all samples | `feedback`, `mambo_g`, `pmc`, or a learned `gj.OmegaNet` | ω from each sample's own predictions |
| twice the cost is too much | `interval`, `cutoff`, `compress` | the passes are left out of the program, not masked |
| tokens: discrete diffusion, language models | `logits_cfg` | CFG on log-probabilities, normalised |

Two warnings. A rule that is not of space "any" is another rule in another space: tuned values do not
carry over from a tool that applies it to the raw output. And ω is not comparable between rules: compare
at the best ω of each, on a measure that no method was tuned on, as `experiments.digits` does.
"""

READING = """\
## How to read the pictures

Each was drawn by one rule from the same noise. Left, a 2-D mixture with exact denoisers: the arm that
points up is the class c (orange: its density), all three arms are u (grey outline), 32 DDIM steps. The
paths are at the middle ω; "distance" is the energy distance of 600 samples to the class, for which
chance gives about 0.005. The mean norm of x_t is beside that of noised data (thick). Right, the digits
of a small under-trained denoiser at a weight below, at and far above what one would use. Two numbers
are few for rules that take statistics of a whole image (`rescale`, `ep_cfg`, `fdg`, `fresca`, `higs`,
`mimic`, `token_norm`, the thresholds): look at their digits.

Branches on the mixture: {mixture}.

Branches on the digits: {digits}.

![Where every rule takes the same noise](rules/overview.png)
"""

# What the branches are, here so that the page needs no network.
BRANCHES = {
    "mixture": {
        "negative": "the class to its right",
        "other": "the tips of all arms",
        "partial": "the class and the one to its right",
        "weak": "the class, blurred",
        "perturbed": "one Gaussian with the mean and variance of the class",
        "gradient": "`input_gradient` of the denoiser",
    },
    "digits": {
        "negative": "the digit it is most easily taken for",
        "other": "the same",
        "partial": "the mean of the predictions for the two digits",
        "weak": f"the same network after {WEAK_STEPS} training steps instead of {DENOISER_STEPS}",
        "perturbed": "the network with its last residual block left out",
        "gradient": "`input_gradient` of the denoiser",
    },
}


def text() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        CHOICE,
        "## All rules\n\nPasses are network evaluations besides the conditional one. "
        "“g” marks a rule that refines the result of the one before it in a `chain`. A rule not "
        "off at ω = 0 isn't the conditional model there, or takes no ω.\n",
        _table(
            ("rule", "formula", "space", "passes", "state", "off at 0", "paper"),
            (_rule_row(rule) for rule in REGISTRY.values()),
        ),
        "## All schedules\n\nEach is a `Weight`: it stands wherever a number does. Weights add, "
        "multiply and `.clip`; `interval(...) * net.weight(phi)` restricts a learned one. Pictures: "
        "ω from t = 1 to 0 with the numbers of the declaration.\n\n"
        "![Every schedule](rules/schedules.png)\n",
        _table(
            ("schedule", "formula", "keeps", "acts on", "defaults", "source"),
            (_schedule_row(facts) for facts in SCHEDULES.values()),
        ),
        "## Beside the rules\n",
        _table(("name", "what it does"), (_helper_row(name) for name in HELPERS)),
        READING.format(**{where: _branches(known) for where, known in BRANCHES.items()}),
    ]
    families = {rule.fn.__module__.rsplit(".", 1)[-1] for rule in REGISTRY.values()}
    for family in [*FAMILIES, *sorted(families - FAMILIES.keys())]:
        members = [r for r in REGISTRY.values() if r.fn.__module__.endswith(f".{family}")]
        if members:
            parts.append(f"## {FAMILIES.get(family, family)}\n")
            parts.extend(map(_section, members))
    return "\n".join(parts)


def headline(fn: Any) -> str:
    """The first line of a docstring, joined where it wraps, without its full stop."""
    paragraph = inspect.cleandoc(fn.__doc__ or "").split("\n\n")[0]
    return " ".join(paragraph.split()).rstrip(".")


def _branches(known: dict[str, str]) -> str:
    return ", ".join(f"“{name}” is {what}" for name, what in known.items())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
                     for line in lines) + "\n"  # fmt: skip


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value}" if isinstance(value, (int, type(None))) else repr(value)


def defaults(fn: Any) -> str:
    """The numbers of a rule or schedule that have defaults, as code."""
    found = inspect.signature(fn).parameters.values()
    shown = [f"{p.name}={_number(p.default)}" for p in found if p.default is not p.empty]
    return f"`{', '.join(shown)}`" if shown else "–"


def passes(rule: Rule) -> str:
    """How many branches besides the conditional one, and which."""
    others = [name for name in rule.branches if name != "cond"]
    return f"{len(others)}: {', '.join(others)}" if others else "0"


def arxiv(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(
        r"(?:arXiv )?(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", text
    )  # fmt: skip


def _rule_row(rule: Rule) -> tuple[str, ...]:
    mark = " (g)" if rule.refines else ""
    return (
        f"[`{rule.name}`](#{rule.name}){mark}", headline(rule.fn), rule.space, passes(rule),
        "yes" if rule.init is not None else "–",
        "yes" if rule.exact_at_zero and "omega" in rule.takes else "–", arxiv(rule.paper),
    )  # fmt: skip


def _schedule_row(facts: Schedule) -> tuple[str, ...]:
    acts = {"excess": "ω", "total": "ω + 1", "either": "ω, or ω + 1"}[facts.acts_on]
    return (
        f"`{facts.name}`", headline(facts.make), facts.keeps or "–", acts, defaults(facts.make),
        arxiv(facts.source),
    )  # fmt: skip


def _helper_row(name: str) -> tuple[str, str]:
    return f"`{name}`", headline(getattr(gj, name))


def _section(rule: Rule) -> str:
    takes = ", ".join([*rule.takes, *(f"{n}=..." for n in rule.defaults)])
    facts = [
        f"space {rule.space}",
        f"passes {passes(rule)}",
        *(["carries state"] if rule.init is not None else []),
        f"defaults {defaults(rule.fn)}",
        arxiv(rule.paper),
    ]
    note = "" if rule.space == "log_prob" else setting(rule.name).note
    return (
        f"### {rule.name}\n\n{headline(rule.fn)}.\n\n`{rule.name}({takes})`: "
        f"{'; '.join(facts)}.\n\n![{rule.name}](rules/{rule.name}.png)\n"
        + (f"\n{note}\n" if note else "")
    )
