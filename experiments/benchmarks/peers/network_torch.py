"""`experiments.benchmarks.network` in PyTorch, on the same arrays."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from experiments.benchmarks.problem import Problem


class Velocity(torch.nn.Module):
    """v(x, t, label): x is (batch, image, image, channels), t and labels are (batch,)."""

    def __init__(self, problem: Problem, device: str):
        super().__init__()
        self.size = problem.size
        self.dtype = getattr(torch, problem.size.dtype)
        for name, value in problem.params.items():
            tensor = torch.tensor(value, dtype=self.dtype, device=device)
            if name not in ("position", "label"):
                tensor = tensor.T.contiguous()  # as `linear` has it: (out, in)
            self.register_buffer(name, tensor)

    def _dense(self, x: Any, name: str) -> Any:
        return functional.linear(x, getattr(self, name))

    def _norm(self, x: Any) -> Any:
        return functional.layer_norm(x, (self.size.width,), eps=1e-6)

    def forward(self, x: Any, t: Any, labels: Any) -> Any:
        """The velocity, in the dtype of x."""
        size, dense = self.size, self._dense
        p, n = size.patch, size.image // size.patch
        tokens = x.to(self.dtype).reshape(-1, n, p, n, p, size.channels).transpose(2, 3)
        h = dense(tokens.reshape(len(x), n * n, -1), "patch") + self.position
        half = size.width // 2
        rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=x.device) / half)
        angles = 1000 * t.float()[:, None] * rates
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(self.dtype)
        c = dense(functional.silu(dense(waves, "time_in")), "time_out")
        c = functional.silu(c + self.label[labels])[:, None]
        for i in range(size.depth):
            modulation = dense(c, f"modulation_{i}").chunk(6, -1)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
            qkv = dense(self._norm(h) * (1 + scale_a) + shift_a, f"qkv_{i}")
            qkv = qkv.reshape(*qkv.shape[:2], 3, size.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*qkv).transpose(1, 2)
            h = h + gate_a * dense(mixed.reshape(h.shape), f"mix_{i}")
            up = dense(self._norm(h) * (1 + scale_m) + shift_m, f"up_{i}")
            h = h + gate_m * dense(functional.gelu(up, approximate="tanh"), f"down_{i}")
        shift, scale = dense(c, "final_modulation").chunk(2, -1)
        out = dense(self._norm(h) * (1 + scale) + shift, "final")
        out = out.reshape(-1, n, n, p, p, size.channels).transpose(2, 3)
        return out.reshape(x.shape).to(x.dtype)
