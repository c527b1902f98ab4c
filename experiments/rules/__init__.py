"""The gallery of rules and schedules, and the page docs/rules.md: `python -m experiments.rules`."""
