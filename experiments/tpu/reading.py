"""What a program is found to do, read from its text before and after XLA's passes."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8, "c64": 8}
COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
_RESULT = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
# They name arrays and move none; a loop's body and a branch are counted by themselves.
_NAMES = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id",
}  # fmt: skip
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")


def _bytes(result: str, main: bool = False) -> int:
    """Of all arrays that `result` names; of those in main memory alone."""
    total = 0
    for kind, dims, layout in _ARRAY.findall(result):
        if not (main and "S(1)" in layout):
            width = BYTES.get(kind, int(re.sub(r"\D", "", kind) or 32) // 8)
            total += width * math.prod(int(n) for n in dims.split(",") if n)
    return total


class Instruction(NamedTuple):
    """One line of a program's text: where it stands, its name, what it makes, how, of what."""

    where: str
    name: str
    result: str
    operation: str
    rest: str


def _instructions(text: str) -> list[Instruction]:
    found, current = [], ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[1]
        elif line.startswith("ENTRY"):
            current = "ENTRY"
        elif match := _RESULT.match(line):
            found.append(Instruction(current, *match.groups()))
    return found


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: how many, the bytes of their results on a device}; those in a loop count once.

    Of a pair `-start` and `-done` the second counts, whose result is the result.
    """
    found: dict[str, dict[str, int]] = {}
    for each in _instructions(text):
        name = each.operation.removesuffix("-done")
        if name in COLLECTIVES:
            kind = found.setdefault(name, {"count": 0, "bytes": 0})
            kind["count"] += 1
            kind["bytes"] += _bytes(each.result)
    return found


def memory_traffic(text: str) -> int:
    """Bytes read from and written to a TPU's main memory; what is in a loop counts once.

    XLA's "bytes accessed" also counts what moves within the chip, where arrays of the memory space
    1 lie: a weight that is fetched there ahead of its use counts thrice. Here it counts once.
    """
    every = _instructions(text)
    within = {name for i in every for name in _calls(i) if i.operation != "call"}
    loops = {name for i in every if i.operation in ("while", "conditional") for name in _calls(i)}
    results: dict[tuple[str, str], str] = {(i.where, i.name): i.result for i in every}
    total = 0
    for i in every:
        if i.where in within - loops or i.operation in _NAMES or i.operation.endswith("-start"):
            continue
        if i.operation.endswith("-done"):
            total += _bytes(i.result)
            continue
        operands = re.findall(r"%([\w.\-]+)", i.rest.split("), ")[0])
        for array in (i.result, *(results.get((i.where, name), "") for name in operands)):
            total += _bytes(array, main=True)
    return total


def cycles(text: str) -> int:
    """The compiler's own estimate of a TPU's time; what is in a loop counts once."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))


def _calls(i: Instruction) -> list[str]:
    """The computations that an instruction names."""
    one = re.findall(r"(?:calls|to_apply|body|condition|_computation)=%?([\w.\-]+)", i.rest)
    several = re.findall(r"branch_computations=\{([^}]*)\}", i.rest)
    return one + [name for names in several for name in re.findall(r"%([\w.\-]+)", names)]


def to_host(text: str) -> list[str]:
    """Instructions that speak to the host."""
    talk = re.compile(r"^(send|recv|infeed|outfeed)")
    return [
        f"{i.operation} {i.result}"
        for i in _instructions(text)
        if talk.match(i.operation) or "is_host_transfer=true" in i.rest or "callback" in i.rest
    ]


def narrow_sums(text: str) -> list[str]:
    """Sums that run in less than float32, of a compiled program."""
    every = _instructions(text)
    adds = {i.where for i in every if i.operation == "add"}
    found = []
    for i in every:
        sums = i.operation in ("reduce", "reduce-window") and adds & set(_calls(i))
        if sums and i.result.startswith(("bf16", "f16")):
            origin = re.search(r'op_name="([^"]*)"', i.rest)
            found.append(f"{i.operation} {i.result}: {origin[1] if origin else ''}")
    return found


def narrow_products(lowered: str) -> list[str]:
    """Products of float32 arrays that a TPU makes in bfloat16 passes, in StableHLO.

    A TPU rounds what it multiplies to bfloat16 unless it is told otherwise: precision HIGHEST.
    """
    found = []
    for line in lowered.splitlines():
        if not re.search(r"stablehlo\.(dot_general|convolution|dot)\b", line):
            continue
        signature = re.search(r": \((.*?)\) -> ", line)
        if signature and "xf32>" in signature[1] and "HIGHEST" not in line:
            found.append(f"product of {signature[1]}")
    return found


def read(lowered: str, compiled: Any) -> dict[str, Any]:
    """All of the above, with XLA's own figures."""
    text, cost, memory = compiled.as_text(), compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "traffic": memory_traffic(text),
        "cycles": cycles(text),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "collectives": collectives(text),
        "host": to_host(text),
        "narrow": narrow_products(lowered) + narrow_sums(text),
    }
