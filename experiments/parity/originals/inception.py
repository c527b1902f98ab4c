"""The Inception of Fréchet inception distances as torch-fidelity runs it.

Run where torch and torch-fidelity are:

    python inception.py OUT
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import sys

import common
import numpy as np
import torch
from torch_fidelity import feature_extractor_inceptionv3 as original
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x as resize,
)

# Height and width of the pictures: enlarged, and made smaller along both axes.
SIZES = {"up": (24, 33), "down": (480, 353)}
# Of the picture whose gradient is compared, and what it is resized to, in place of 299.
SLOPE, SMALL = (24, 144), 96
VERSIONS = {
    "torch": torch.__version__,
    "torch-fidelity": importlib.metadata.version("torch-fidelity"),
}


class Random(original.FeatureExtractorInceptionV3):
    """The network with random weights in place of those that it would download."""

    def load_state_dict(self, *_, **__):
        """Scales that keep what passes the ReLUs of order one."""
        common.fill(self)
        with torch.no_grad():
            for key, tensor in self.state_dict().items():
                if key.endswith("running_var"):
                    tensor.add_(0.5)


def network() -> Random:
    """Its features, also of pixels that aren't whole numbers, so that they have a gradient."""
    original.load_state_dict_from_url = lambda *_, **__: {}
    original.vassert = lambda *_: None
    return Random("inception", ["2048"])


def case(out: pathlib.Path, model: Random) -> None:
    """Features and resized pixels."""
    arrays: dict[str, np.ndarray] = {}
    for name, shape in SIZES.items():
        x = torch.from_numpy(common.pictures(*shape)).permute(0, 3, 1, 2)
        with torch.no_grad():
            features = model(x)[0]
            resized = resize(x.float(), size=(299, 299), align_corners=False)
        arrays |= {
            f"{name}_features": features.numpy(),
            f"{name}_resized": resized.permute(0, 2, 3, 1)[:, ::13, ::13].numpy(),
        }
    common.save(out, "inception", arrays, {"sizes": SIZES, **VERSIONS})


def slope(out: pathlib.Path, model: Random) -> None:
    """What the features say of pictures in [-1, 1].

    In float64, and resized to fewer pixels for the time that takes: of the millions of ReLUs and
    maxima some are so near their kinks that float32 decides them by how sums are ordered, and
    PyTorch's own gradient in float32 is off by 1% of the largest.
    """
    model.INPUT_IMAGE_SIZE, model.feature_extractor_internal_dtype = SMALL, torch.float64
    model.double()
    pixels = torch.from_numpy(common.pictures(*SLOPE)[:1]).permute(0, 3, 1, 2)
    inputs = pixels.double().requires_grad_()
    features = model(inputs)[0]
    weights = np.random.RandomState(1).standard_normal(tuple(features.shape))
    (features * torch.from_numpy(weights)).sum().backward()
    # Of pixels in [0, 255]; those of [-1, 1] are 127.5 times as wide.
    gradient = 127.5 * inputs.grad.permute(0, 2, 3, 1).numpy()
    arrays = {"features": features.detach().numpy(), "gradient": gradient.astype(np.float32)}
    about = {"shape": SLOPE, "resized": SMALL, **VERSIONS}
    common.save(out, "inception-gradient", arrays, about)


def layouts(out: pathlib.Path, model: Random) -> None:
    """Keys and shapes, without the counters of batches, which nothing reads."""
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    found = {"2015-12-05": common.layout(shapes)}
    common.save(out, "inception-layouts", {}, {"layouts": found, **VERSIONS})


if __name__ == "__main__":
    folder, inception = pathlib.Path(sys.argv[1]), network()
    case(folder, inception)
    layouts(folder, inception)
    slope(folder, inception)
