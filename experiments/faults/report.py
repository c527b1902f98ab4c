"""docs/reliability.md, from the results alone."""

from __future__ import annotations

from typing import Any

from experiments.faults import victim


def page(results: dict[str, Any], steps: int, command: str) -> str:
    """docs/reliability.md."""
    rows = []
    for name, found in results.items():
        if name.startswith("SIG"):
            which, count = name.split("-")
            moments = ", ".join(f"{n} {where}" for where, n in sorted(found["moments"].items()))
            codes = ", ".join(f"{n} × {code}" for code, n in sorted(found["codes"].items()))
            many = sum(found["moments"].values())
            rows.append(
                f"| {which}, {count} process{'es' * (count > '1')} | {many} "
                f"({moments}) | {codes} | {'yes' if found['identical'] else '**no**'} | "
                f"{found['lost']} |"
            )
    damage = "\n".join(f"| {what} | {n} |" for what, n in sorted(results["damages"].items()))
    lost, full, moved = (results[name] for name in ("lost host", "full disk", "devices"))
    return f"""# What a run survives

Written by the command below; `docs/reliability.json` holds every number. Real processes of a run of {steps} updates, saved every
{victim.SAVE_EVERY}, on a CPU; several of them joined by `jax.distributed`.

```bash
{command}
```

## Killed and told to end

One run each, begun again after every signal, which falls at start (before the first update), in training or in saving (while a
checkpoint is half written). Identical: φ and `metrics.jsonl` are those of a run that nothing happened to, bit for bit. Lost: signals
after which a process hung, or, of SIGTERM, the newest checkpoint was older than the last update logged.

| signal | how many | exit statuses | identical in the end | lost |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

## Damage

{sum(results["damages"].values())} alterations of a file in the newest of two checkpoints, and in one of ten cases in both: a bit, sixteen bytes, the tail, all bytes 0, the
file or its folder gone.

| what came of it | how many |
| --- | --- |
{damage}

## Other devices

A quarter of the updates each on 8 devices, 1, 4, and two processes of 4: φ differs from that of one device by at most {moved["difference"]:.1e}, of
numbers up to {moved["size"]:.2g}.

## A host lost, a disk full

* One of two processes killed: the other ended after {lost["seconds"]:.0f} s with status {lost["status"]} (JAX's heartbeat, 30 s here); begun again, the run came to
  {"the same, bit for bit" if lost["identical"] else "**another end**"}.
* Files that can't grow: status {full["status"]}, "{full["said"]}"; begun again with room, it came to {"the same, bit for bit" if full["identical"] else "**another end**"}.
"""
