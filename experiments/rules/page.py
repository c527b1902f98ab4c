"""docs/rules.md, made from the declarations of the rules and schedules."""

from __future__ import annotations

import inspect
import itertools
import operator
import re
import sys
from collections.abc import Iterable
from typing import Any

import guidejax as gj
from experiments.rules.config import DENOISER_STEPS, WEAK_STEPS, setting
from guidejax.rules import RULES, Rule
from guidejax.schedules import SCHEDULES, Schedule

# Files of rules in the order to read them in; any other comes after.
READING = (
    "linear", "projection", "rotation", "magnitude", "rescaling", "thresholding", "frequency",
    "stateful", "feedback_guidance", "corrections", "data_consistency", "logits",
)  # fmt: skip

# Exported beside the rules: makers of rules, of their numbers and branches, and what goes with
# the solver's step.
HELPERS = (
    "chain", "rules.compose", "rules.stack", "rules.rule", "rules.make_rule",
    "rules.input_gradient", "rules.recfg_table", "rules.feedback_numbers", "schedules.cfgpp_omega",
    "particles.fkc_log_weight", "particles.effective_sample_size", "particles.systematic_resample",
)  # fmt: skip

INTRODUCTION = """\
# Rules and schedules

<!-- Made by `python -m experiments.rules` from the declarations; edit those, or its page.py. -->

A rule combines the conditional prediction c with others, the unconditional u first of all. ω is
the excess over the conditional model: ω = 0 is c, and other people's scale w is ω + 1
(`gj.from_scale`). By hand a rule takes arrays in its own space; `gj.guidance` converts from
whatever the network predicts, and back. Every number of a rule may be a schedule of (s, t, c).

```python
import jax
import jax.numpy as jnp
import guidejax as gj

cond, uncond = jnp.ones((2, 3)), jnp.zeros((2, 3))  # two predictions of a network
x0 = gj.adg(cond, uncond, 4.0)  # by hand, in anybody's loop

guidance = gj.guidance(gj.apg, omega=4.0, eta=0.2)  # bound, for gj.sample
refined = gj.chain(gj.cfg, gj.rescale.bind(phi=0.7))  # one rule after another
guidance = gj.guidance(refined, omega=gj.interval(6.0, lo=0.2, hi=0.8))

disturb = gj.rules.add_perturbation
skip = disturb.on(perturbed="skip")  # the same rule again, on a branch of another name
twice = gj.chain(gj.cfg, disturb.bind(perturbed_omega=2.0), skip.bind(perturbed_omega=1.0))
guidance = gj.guidance(twice, omega=3.0)


def network(gain, x, t, label):
    return jnp.tanh(gain * x)


process = gj.processes.rectified_flow()
denoise, weak = (gj.denoiser(network, process, params=gain) for gain in (0.9, 0.5))
x0 = gj.sample(
    jax.random.key(0),
    denoise,
    jnp.ones((2, 3)),
    guidance=gj.guidance(gj.autoguidance, omega=1.0),
    conditions={"weak": weak},  # a branch with a network of its own
    times=gj.uniform_times(8),
)
```
"""

CHOICE = (
    ("nothing yet, any model", "`cfg`, ω from 0.5 up, with `interval`",
     "linear, the same in every space; outside the interval a step is one pass"),
    ("burnt colours, too much contrast", "`adg`, `apg`, or `rescale` after any rule",
     "they bound or restore the norm that extrapolation inflates"),
    ("the same, on a flow model", "`norm_cap`; `cfg_zero`, and `zero_init` after it",
     "defined on the velocity; `cfg_zero` fits u to c before it subtracts it"),
    ("values out of range, in pixel space", "`dynamic_threshold`, `threshold`",
     "they act on x̂0 in the range of the data; not for latents"),
    ("good detail, but poor variety and colour", "`fdg`, `fdg_projected`",
     "low frequencies, which set colour and layout, get less ω than high ones"),
    ("samples collapse onto few modes",
     "less ω, or guidance late: `clamp_linear`, `interval`",
     "which mode a sample goes to is settled early"),
    ("samples of one kind too alike", "`least_contraction`, `low_contraction`",
     "they contract a mode less at the same mean ω; weak modes they don't keep "
     "([stage-wise](stagewise.md))"),
    ("a smaller model or an earlier checkpoint", "`autoguidance`, `mixed_autoguidance`",
     "away from the weak model's errors, not from other classes, so that variety stays"),
    ("no unconditional model", "`perturbation`", "the disturbed network stands in for u"),
    ("CFG and a perturbation together", "`stacked`, `chain(..., add_perturbation)`",
     "each with its own ω or schedule; a step pays for a branch where its weight isn't 0"),
    ("something to avoid", "`negative_prompt`; `perp_neg` where that undoes the prompt",
     "`perp_neg` takes away only what is orthogonal to the prompt; `timed_negative` waits"),
    ("several conditions at once", "`compose_and`, `compose_not`, `nested`, `compose(...)`",
     "a branch each, each with its own weight"),
    ("one ω doesn't suit all samples",
     "`feedback`, `mambo_g`, `pmc`, or a learned `gj.OmegaNet`",
     "ω from each sample's own predictions, or from its condition and time"),
    ("twice the cost is too much", "`interval`, `cutoff`, `compress`",
     "the passes aren't made; see [fewer passes](how-to/fewer-passes.md)"),
    ("flat, over-smooth samples with few steps", "`higs`, `tsr`, `epsilon_scaling`",
     "no pass more: they sharpen or rescale what is there"),
    ("tokens: discrete diffusion, language models", "`logits_cfg`",
     "CFG on log-probabilities, normalised"),
)  # fmt: skip

WARNINGS = """\
Two warnings. A rule whose space isn't "any" is another rule in another space: tuned values don't
carry over from a tool that applies it to the raw output. And ω isn't comparable between rules:
compare at the best ω of each, on a measure that no method was tuned on, as `experiments.digits`
does.
"""

RULES_TEXT = """\
## All rules

Passes are network evaluations besides the conditional one. “After another” marks a rule that
refines the result of the one before it in a `chain`. “Off at 0” says whether ω = 0 is the
conditional model, bit for bit.
"""

SCHEDULES_TEXT = """\
## All schedules

Each is a `Weight`: it stands wherever a number does. Weights add, multiply and `.clip`;
`interval(1.0, ...) * net.weight(phi)` restricts a learned one. “Keeps” says what the first number
is of ω, its mean over time or its peak. In the picture, ω from t = 1 to 0 for the numbers of the
declaration.

![Every schedule](rules/schedules.png)
"""

READING_TEXT = """\
## How to read the pictures

Every rule starts from the same noise. Left, a 2-D mixture with exact denoisers: the arm that points
up is the class c (orange, its density), the three arms together are u (grey outline); 32 DDIM
steps. The paths are at the middle ω; “distance” is the energy distance of 600 samples to the
class, 0 at best. The mean norm of x_t stands beside that of noised data (thick). Right, the digits
of a small under-trained denoiser, from a mild ω to far too much. A rule that refines another comes
after `cfg`, at the ω that is printed. Two numbers are few for rules that take statistics of a whole
image (`rescale`, `ep_cfg`, `fdg`, `fresca`, `higs`, `mimic`, `token_norm`, the thresholds): look at
their digits.

Branches on the mixture: {mixture}.

Branches on the digits: {digits}.

![Where every rule takes the same noise](rules/overview.png)
"""

# What the branches are, here so that the page needs no network.
BRANCHES = {
    "mixture": {
        "negative": "the right-hand tip of every arm",
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


def ordered() -> list[Rule]:
    """Every rule, family by family."""
    place = {name: index for index, name in enumerate(READING)}
    return sorted(RULES.values(), key=lambda rule: place.get(family(rule), len(place)))


def family(rule: Rule) -> str:
    """The file that a rule is in."""
    return rule.fn.__module__.rsplit(".", 1)[-1]


def heading(rule: Rule) -> str:
    """What its file says of itself in its first line."""
    return headline(sys.modules[rule.fn.__module__])


def text() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        "## Which to choose when\n",
        _table(("what you see, or have", "try", "because"), CHOICE),
        WARNINGS,
        RULES_TEXT,
        _table(
            (
                "rule",
                "formula",
                "space",
                "further passes",
                "state",
                "off at 0",
                "defaults",
                "paper",
            ),
            map(_rule_row, ordered()),
        ),
        SCHEDULES_TEXT,
        _table(
            ("schedule", "formula", "keeps", "acts on", "defaults", "source"),
            map(_schedule_row, SCHEDULES.values()),
        ),
        "## Beside the rules\n",
        _table(("name", "what it is"), map(_helper_row, HELPERS)),
        READING_TEXT.format(**{where: _branches(known) for where, known in BRANCHES.items()}),
    ]
    for _, members in itertools.groupby(ordered(), family):
        rules = list(members)
        parts.append(f"## {heading(rules[0])}\n")
        parts.extend(map(_section, rules))
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
    return re.sub(r"(?:arXiv )?(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", text)


def _rule_row(rule: Rule) -> tuple[str, ...]:
    mark = ", after another" if rule.refines else ""
    return (
        f"[`{rule.name}`](#{rule.name}){mark}",
        headline(rule.fn),
        rule.space,
        passes(rule),
        "yes" if rule.init is not None else "–",
        off_at_zero(rule),
        defaults(rule.fn),
        arxiv(rule.paper),
    )


def off_at_zero(rule: Rule) -> str:
    """Whether ω = 0 is the conditional model; a rule without ω has no say."""
    if "omega" not in rule.takes:
        return "–"
    return "yes" if rule.exact_at_zero else "no"


def _schedule_row(facts: Schedule) -> tuple[str, ...]:
    acts = {"excess": "ω", "total": "ω + 1", "either": "ω, or ω + 1"}[facts.acts_on]
    return (
        f"`{facts.name}`", headline(facts.make), facts.keeps or "–", acts, defaults(facts.make),
        arxiv(facts.source),
    )  # fmt: skip


def _helper_row(name: str) -> tuple[str, str]:
    return f"`gj.{name}`", headline(operator.attrgetter(name)(gj))


def _section(rule: Rule) -> str:
    takes = ", ".join([*rule.takes, *(f"{n}=..." for n in rule.defaults)])
    note = "" if rule.space == "log_prob" else setting(rule.name).note
    return (
        f"### {rule.name}\n\n{headline(rule.fn)}.\n\n`{rule.name}({takes})` · space {rule.space} · "
        f"further passes {passes(rule)}{' · carries state' if rule.init is not None else ''}\n\n"
        f"![{rule.name}](rules/{rule.name}.png)\n" + (f"\n{note}\n" if note else "")
    )
