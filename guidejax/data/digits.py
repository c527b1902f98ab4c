"""The 1,797 handwritten 8x8 digits of scikit-learn as a TFDS dataset: nothing to download."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# A class gives this many images to each held-out split, so both hold every class equally often:
# what a sampler asked for classes drawn uniformly should be compared with.
HELD_OUT_PER_CLASS = 40

_DESCRIPTION = """\
1,797 grey 8x8 images of handwritten digits, 174 to 183 of each: the copy of the test set of UCI's
"Optical Recognition of Handwritten Digits" that ships inside scikit-learn.
"""
_CITATION = """\
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
"""


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read the digits from scikit-learn and check them.

    The file's 17 grey levels 0..16 become round(level * 255 / 16), so that the dataset is an
    ordinary 8-bit image to every tool; round(pixel * 16 / 255) gives the levels back.

    Returns:
      Images (1797, 8, 8, 1), uint8 in 0..255, and labels (1797,), int64 in 0..9, in file order.

    Raises:
      ValueError: a shape, pixel or label of the file is not what it should be.
      ImportError: scikit-learn is missing.

    Example:
      >>> images, labels = read_digits()
      >>> images.shape, int(images.max())
      ((1797, 8, 8, 1), 255)
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            'the digits ship inside scikit-learn, which is missing: pip install "guidejax[data]"'
        ) from error
    data = datasets.load_digits()
    levels, labels = np.asarray(data.images), np.asarray(data.target)
    where = "sklearn.datasets.load_digits()"
    if levels.ndim != 3 or levels.shape[1:] != (8, 8) or labels.shape != levels.shape[:1]:
        raise ValueError(
            f"{where}: images {levels.shape} and labels {labels.shape}; "
            "expected (n, 8, 8) and (n,)."
        )
    # NaN fails both comparisons, hence the negation.
    bad = np.flatnonzero(~np.all((levels >= 0) & (levels <= 16), axis=(1, 2)))
    if bad.size:
        raise ValueError(
            f"{where}: image {bad[0]} holds NaN or a pixel outside 0..16; expected levels 0..16."
        )
    bad = np.flatnonzero(~((labels >= 0) & (labels <= 9)))
    if bad.size:
        raise ValueError(
            f"{where}: image {bad[0]} has label {labels[bad[0]]}; expected a label in 0..9."
        )
    images = np.rint(levels * (255 / 16)).astype(np.uint8)[..., None]
    return images, labels.astype(np.int64)


def split_digits(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Which images each split holds, as sorted indices into the file: stratified, fixed for good.

    Every class is permuted by `RandomState(0)`, whose stream NumPy has frozen, class 0 first; the
    first 40 images go to test, the next 40 to validation, the others to train.

    Args:
      labels: (n,), integer.

    Returns:
      Indices of "train" (997 of the 1797), "validation" (400) and "test" (400).

    Raises:
      ValueError: a class has too few images to leave any for train.

    Example:
      >>> labels = read_digits()[1]
      >>> {name: len(rows) for name, rows in split_digits(labels).items()}
      {'train': 997, 'validation': 400, 'test': 400}
    """
    random = np.random.RandomState(0)
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for label in range(10):
        rows = random.permutation(np.flatnonzero(labels == label))
        if len(rows) <= 2 * HELD_OUT_PER_CLASS:
            raise ValueError(
                f"class {label} has {len(rows)} images; expected more than the "
                f"{2 * HELD_OUT_PER_CLASS} that validation and test hold out."
            )
        parts["test"].append(rows[:HELD_OUT_PER_CLASS])
        parts["validation"].append(rows[HELD_OUT_PER_CLASS : 2 * HELD_OUT_PER_CLASS])
        parts["train"].append(rows[2 * HELD_OUT_PER_CLASS :])
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}


class Digits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the digits: `tfds.builder("digits")` once this module is imported.

    ==========  ======  =========  =======================================================
    split       images  per class  for
    ==========  ======  =========  =======================================================
    train       997     94 to 103  training the denoiser and classifiers, learning ω
    validation  400     40         selection: tuning constants, intervals, early stopping
    test        400     40         reporting, once
    ==========  ======  =========  =======================================================

    TFDS's slices work on each, as in `train[:50%]`. Features: "image", uint8 (8, 8, 1) in 0..255;
    "label", 0..9; "index", the image's place in scikit-learn's file.

    Prepare it with the array_record format, the one read without TensorFlow; `guidejax.data` does.

    Example:
      >>> builder = Digits(data_dir="data", file_format="array_record")
      >>> builder.download_and_prepare()
      >>> len(builder.as_data_source("train"))
      997
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "997 train, 400 validation, 400 test."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            homepage="https://archive.ics.uci.edu/dataset/80",
            supervised_keys=("image", "label"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "index": np.int64,
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager  # Nothing to download.
        images, labels = read_digits()
        return {
            name: self._generate_examples(images, labels, rows)
            for name, rows in split_digits(labels).items()
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[int, Any]]:
        from PIL import Image

        for row in rows.tolist():
            # A PIL image is encoded by PIL; of an array TFDS makes a PNG with TensorFlow.
            image = Image.fromarray(images[row, ..., 0])
            yield row, {"image": image, "label": int(labels[row]), "index": row}
