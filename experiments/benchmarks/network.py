"""The network of every JAX contender: a DiT on a dict of arrays; it predicts the velocity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.problem import Size


def _norm(x: Any) -> Any:
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def velocity(size: Size, params: dict[str, Any], x: Any, t: Any, labels: Any) -> Any:
    """v(x, t, label): x is (batch, image, image, channels), t and labels are (batch,)."""
    p, n = size.patch, size.image // size.patch
    tokens = x.astype(size.dtype).reshape(-1, n, p, n, p, size.channels).swapaxes(2, 3)
    h = tokens.reshape(len(x), n * n, -1) @ params["patch"] + params["position"]
    rates = jnp.exp(-jnp.log(10_000.0) * jnp.arange(size.width // 2) / (size.width // 2))
    angles = 1000 * t.astype(jnp.float32)[:, None] * rates
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1).astype(size.dtype)
    c = jax.nn.silu(waves @ params["time_in"]) @ params["time_out"]
    c = jax.nn.silu(c + params["label"][labels])[:, None]
    for i in range(size.depth):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(
            c @ params[f"modulation_{i}"], 6, -1
        )
        qkv = (_norm(h) * (1 + scale_a) + shift_a) @ params[f"qkv_{i}"]
        q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, size.heads, -1), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(h.shape)
        h = h + gate_a * (mixed @ params[f"mix_{i}"])
        up = (_norm(h) * (1 + scale_m) + shift_m) @ params[f"up_{i}"]
        h = h + gate_m * (jax.nn.gelu(up) @ params[f"down_{i}"])
    shift, scale = jnp.split(c @ params["final_modulation"], 2, -1)
    out = (_norm(h) * (1 + scale) + shift) @ params["final"]
    out = out.reshape(-1, n, n, p, p, size.channels).swapaxes(2, 3)
    return out.reshape(x.shape).astype(x.dtype)
