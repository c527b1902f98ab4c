"""What the originals of DiT, SiT, REPA and LightningDiT make of random weights.

    python dit.py OUT NAME=CHECKOUT ...

Run where torch, timm and diffusers are. The originals aren't packaged: DiT, SiT, REPA and
LightningDiT name checkouts of facebookresearch/DiT, willisma/SiT, sihyun-yu/REPA and
hustvl/LightningDiT. diffusers' DiT needs none.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import types
from typing import Any

import common
import numpy as np
import torch

SMALL = {"hidden_size": 48, "depth": 2, "num_heads": 4}
SIDE, CLASSES = 8, 5


def module(path: pathlib.Path, name: str) -> types.ModuleType:
    """A file of a checkout as a module."""
    sys.path.insert(0, str(path.parent.parent if path.parent.name == "models" else path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} isn't a Python file.")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    sys.path.pop(0)
    for each in [key for key in sys.modules if key == "models" or key.startswith("models.")]:
        del sys.modules[each]  # The next checkout has its own.
    return found


def case(out: pathlib.Path, name: str, net: Any, channels: int, about: dict[str, Any]) -> None:
    """Save inputs, output and input gradient of a network."""
    shapes = common.fill(net.eval())
    random = np.random.RandomState(0)
    x = random.standard_normal((3, channels, SIDE, SIDE)).astype(np.float32)
    t = np.array([0.1, 0.5, 0.9], np.float32) * about.get("time", 1)
    y = np.array([0, 2, CLASSES])
    inputs = torch.from_numpy(x).requires_grad_()
    result = net(inputs, torch.from_numpy(t), torch.from_numpy(y))
    result = getattr(result, "sample", result)
    result = result[0] if isinstance(result, tuple) else result
    result = result[:, :channels]
    result.square().sum().backward()
    last = lambda a: a.detach().numpy().transpose(0, 2, 3, 1)  # noqa: E731
    arrays = {"x": x.transpose(0, 2, 3, 1), "t": t, "y": y, "output": last(result)}
    arrays["gradient"] = inputs.grad.numpy().transpose(0, 2, 3, 1)
    about |= {"torch": torch.__version__, "shapes": shapes}
    common.save(out, name, arrays, about)


def sampling(out: pathlib.Path, net: Any) -> None:
    """Save what 20 Euler steps from noise make of SiT, guided in 3 of 4 channels as published."""
    random = np.random.RandomState(1)
    noise = random.standard_normal((2, 4, SIDE, SIDE)).astype(np.float32)
    y, scale, steps = torch.tensor([0, 2, CLASSES, CLASSES]), 2.5, 20
    x = torch.from_numpy(np.concatenate([noise, noise]))
    with torch.no_grad():
        for step in range(steps):
            t = torch.full((4,), step / steps)
            x = x + net.forward_with_cfg(x, t, y, scale) / steps
    last = lambda a: np.asarray(a).transpose(0, 2, 3, 1)  # noqa: E731
    arrays = {"noise": last(noise), "y": y.numpy(), "output": last(x[:2])}
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    about = {"shapes": shapes, "scale": scale, "steps": steps, "torch": torch.__version__}
    common.save(out, "dit-SiT-sampling", arrays, about)


def main(out: pathlib.Path, checkouts: dict[str, pathlib.Path]) -> None:
    """Write a case for each original that is there."""
    layouts = {}
    common_args = {"input_size": SIDE, "num_classes": CLASSES}
    for name, file, entry, options, channels in (
        ("DiT", "models.py", "DiT", {"learn_sigma": True}, 4),
        ("SiT", "models.py", "SiT", {"learn_sigma": True}, 4),
        ("REPA", "models/sit.py", "SiT",
         {"qk_norm": False, "encoder_depth": 1, "projector_dim": 16, "z_dims": [8],
          "decoder_hidden_size": 48}, 4),
        ("LightningDiT", "models/lightningdit.py", "LightningDiT",
         {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True}, 6),
    ):  # fmt: skip
        if name not in checkouts:
            continue
        # Compiling takes longer than the network.
        torch.compile = lambda function=None, **_: function or (lambda each: each)
        source = module(checkouts[name] / file, f"original_{name}")
        make = getattr(source, entry)
        net = make(**SMALL, **common_args, patch_size=2, in_channels=channels, **options)
        case(out, f"dit-{name}", net, channels, {"time": 999 if name == "DiT" else 1})
        if name == "SiT":
            sampling(out, net)
        for size, build in getattr(source, f"{entry}_models").items():
            if name == "REPA" and "-S/" in size:
                continue  # Its last layer is too wide: it was never trained.
            extra = dict(options)
            if name == "LightningDiT":
                extra |= {"input_size": 16, "in_channels": 32}
            if name == "REPA":
                extra = {"qk_norm": False}
            with torch.device("meta"):
                big = build(**extra)
            found = {k: tuple(v.shape) for k, v in big.state_dict().items()}
            found = {k: v for k, v in found.items() if not k.startswith("projectors.")}
            layouts[size.replace("SiT", "REPA") if name == "REPA" else size] = common.layout(found)
    from diffusers import DiTTransformer2DModel, __version__

    net = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, num_layers=2, sample_size=SIDE,
        out_channels=8, num_embeds_ada_norm=CLASSES, norm_eps=1e-6,
    )  # fmt: skip
    embedder = net.transformer_blocks[0].norm1.emb
    # diffusers spaces the time's frequencies by 1/127 where the original, whose weights these are,
    # does by 1/128.
    embedder.time_proj.downscale_freq_shift = 0
    for block in net.transformer_blocks:  # A copy of a trained DiT has one in all blocks.
        block.norm1.emb = embedder
    case(out, "dit-diffusers", net, 4, {"time": 999, "diffusers": __version__})
    common.save(out, "dit-layouts", {}, {"layouts": layouts})


if __name__ == "__main__":
    main(
        pathlib.Path(sys.argv[1]),
        {name: pathlib.Path(path) for name, path in (each.split("=") for each in sys.argv[2:])},
    )
