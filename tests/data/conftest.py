"""Datasets prepared locally in TFDS's own format, under the names of the catalogue."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow_datasets as tfds

from .fakes import encode, pictures, write


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A data_dir with the digits in it."""
    from guidejax import data

    path = tmp_path_factory.mktemp("digits")
    data.prepare("digits", data_dir=path)
    return path


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory):
    """A data_dir with small stand-ins for datasets of the catalogue."""
    path, f = tmp_path_factory.mktemp("catalogue"), tfds.features
    for name, shape, classes, version in [
        ("mnist", (28, 28, 1), 10, "3.0.1"),
        ("cifar10", (32, 32, 3), 10, "3.0.2"),
    ]:
        images = pictures(shape, 53)
        write(
            path,
            name,
            {"image": f.Image(shape=shape), "label": f.ClassLabel(num_classes=classes)},
            {"train": [{"image": encode(x), "label": i % classes} for i, x in enumerate(images)]},
            version=version,
        )
    write(
        path,
        "celeb_a",
        {
            "image": f.Image(shape=(218, 178, 3)),
            "attributes": f.FeaturesDict({"Male": np.bool_, "Young": np.bool_}),
        },
        {
            "train": [
                {"image": encode(x), "attributes": {"Male": i % 2 == 0, "Young": i == 0}}
                for i, x in enumerate(pictures((218, 178, 3), 4))
            ]
        },
        version="2.1.0",
    )
    write(
        path,
        "imagenet_resized",
        {"image": f.Image(shape=(64, 64, 3)), "label": f.ClassLabel(num_classes=1000)},
        {
            "train": [
                {"image": encode(x), "label": 333 * i}
                for i, x in enumerate(pictures((64, 64, 3), 4))
            ]
        },
        config="64x64",
        version="0.1.0",
    )
    return path
