"""FLOPs of a compiled XLA program, loops counted as often as they run.

XLA's own cost analysis counts the body of a loop once. Here the text of the optimised program is
walked: a dot is 2 · output · contracted, an elementwise operation one an element of its output, a
reduction one an element of its input; a `while` is its body times the `known_trip_count` that XLA
wrote beside it, and of a conditional the dearer branch counts.
"""

from __future__ import annotations

import json
import math
import re

_ELEMENTWISE = {
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "power",
    "sqrt", "rsqrt", "cbrt", "exponential", "exponential-minus-one", "log", "log-plus-one",
    "logistic", "tanh", "sine", "cosine", "tan", "erf", "atan2", "remainder", "compare", "select",
    "clamp", "and", "or", "xor", "not", "shift-left", "shift-right-logical",
    "shift-right-arithmetic", "floor", "ceil", "round-nearest-even", "round-nearest-afz", "sign",
}  # fmt: skip
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"[a-z]+\d*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def _shape(text: str) -> list[int]:
    found = _SHAPE.search(text)
    return [int(n) for n in found[1].split(",") if n] if found else []


def count(text: str) -> float:
    """FLOPs of the program in `text`, as `compiled.as_text()` has it.

    Raises:
        ValueError: If a loop's number of trips is not known, or nothing could be read.
    """
    computations: dict[str, list[tuple[str, str, str, str]]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[1]
            computations[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current and (found := _LINE.match(line)):
            computations[current].append((found[1], found[2], found[3], found[4]))
    if not entry:
        raise ValueError("this is no text of an optimised XLA program.")
    known: dict[str, float] = {}

    def of(name: str) -> float:
        if name not in known:
            shapes = {out: _shape(kind) for out, kind, _, _ in computations[name]}
            known[name] = sum(
                one(out, kind, op, rest, shapes) for out, kind, op, rest in computations[name]
            )
        return known[name]

    def one(out: str, kind: str, op: str, rest: str, shapes: dict[str, list[int]]) -> float:
        size = math.prod(shapes[out])
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        if op in _ELEMENTWISE:
            return size
        if op == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
            contracted = [int(n) for n in axes[1].split(",") if n] if axes else []
            return 2 * size * math.prod(shapes[operands[0]][n] for n in contracted)
        if op == "custom-call":
            return _library(kind, rest, shapes, operands)
        if op in ("reduce", "reduce-window"):
            return math.prod(shapes[operands[0]])
        if op == "while":
            trips = _TRIPS.search(rest)
            if not trips:
                raise ValueError(f"XLA does not know how often the loop {out} runs.")
            return int(trips[1]) * sum(of(called) for called in _CALLED.findall(rest))
        if op == "conditional":
            return max(of(name) for name in _branches(rest))
        if op in ("fusion", "call", "async-start"):
            return sum(of(called) for called in _CALLED.findall(rest))
        return 0.0

    return of(entry)


def instructions(text: str) -> int:
    """Instructions of the program in `text`, those inside fusions too; each counts once."""
    return sum(bool(_LINE.match(line)) for line in text.splitlines())


def _branches(rest: str) -> list[str]:
    if several := re.search(r"branch_computations=\{([^}]*)\}", rest):
        return re.findall(r"%([\w.\-]+)", several[1])
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", rest)


def _library(kind: str, rest: str, shapes: dict[str, list[int]], operands: list[str]) -> float:
    """A matrix product that XLA handed to a library (cuBLAS)."""
    if "gemm" not in rest and "matmul" not in rest:
        return 0.0
    _, _, config = rest.partition("backend_config=")
    numbers = json.JSONDecoder().raw_decode(config)[0] if config.startswith("{") else {}
    numbers = numbers.get("gemm_backend_config", numbers).get("dot_dimension_numbers", {})
    contracted = [int(n) for n in numbers.get("lhs_contracting_dimensions", [])]
    return 2 * math.prod(_shape(kind)) * math.prod(shapes[operands[0]][n] for n in contracted)
