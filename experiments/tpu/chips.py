"""What a chip can do, as its maker says, and the roofline's time of a program.

TPUs: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm. H100 SXM: NVIDIA's data sheet,
dense bfloat16; of NVLink's 900 GB/s half goes each way.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """FLOPs a second in bfloat16, bytes a second to its memory and to other chips, its memory."""

    name: str
    flops: float
    memory_rate: float
    link_rate: float
    memory: float


CHIPS = {
    "v5e": Chip("TPU v5e", 197e12, 819e9, 200e9, 16 * 2**30),
    "v6e": Chip("TPU v6e", 918e12, 1640e9, 448e9, 32 * 2**30),
    "v5p": Chip("TPU v5p", 459e12, 2765e9, 600e9, 95 * 2**30),
    "h100": Chip("H100 SXM", 989e12, 3350e9, 450e9, 80e9),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology's name, `v5e:2x4`."""
    return CHIPS[topology.split(":")[0]]


def seconds(chip: Chip, flops: float, moved: float, sent: float = 0.0) -> dict[str, float]:
    """Time of each resource alone: the longest is the roofline's.

    Args:
        chip: The chip.
        flops: FLOPs of the program.
        moved: Bytes that it reads and writes.
        sent: Bytes of its collectives' results. A ring sends each nearly twice: once reduced, once
            handed on.
    """
    return {
        "FLOPs": flops / chip.flops,
        "memory": moved / chip.memory_rate,
        "links": 2 * sent / chip.link_rate,
    }
