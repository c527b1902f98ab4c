"""Find or prepare a TFDS dataset by name, and read it: one checked example at a time."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from guidejax.data.digits import Digits
from guidejax.data.emoji import Emoji

# Datasets of this library: their import is what makes TFDS know them.
OURS = {"digits": Digits, "emoji": Emoji}

# A split whose decoded images fit in here stays in memory once read: decoding small PNGs takes
# longer than a step of a small network.
_CACHE_BYTES = 2**28

# As many images tell whether they fill their range.
_TELLING = 8

Key = str | Sequence[str]
PathLike = str | os.PathLike[str]


def prepare(name: str, *, data_dir: PathLike | None = None) -> str:
    """Make a TFDS dataset ready to be read, and say where it is.

    What is on disk already is used as it is, in any version; otherwise the dataset is built (from
    scikit-learn for "digits", from a font for "emoji", by a download for the catalogue) in the
    array_record format, under a temporary name that becomes the real one at the end: a killed run
    leaves nothing half done, and of two that race one wins. Most builders of the catalogue need
    TensorFlow for this step; reading what they built doesn't.

    Args:
      name: the dataset's name as TFDS writes it, "digits", "emoji/64", "mnist",
        "imagenet_resized/64x64", "cifar10:3.0.2".
      data_dir: where datasets live. Default: `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

    Returns:
      The directory of the prepared dataset, as `tfds.builder_from_directory` takes it.

    Raises:
      ValueError: TFDS knows no such dataset, configuration or version.
      FileNotFoundError: the dataset is not there and cannot be made here, as without a network;
        the message has TFDS's reason and says how to bring it. TFDS tries a dead network for
        minutes before it gives up.

    Example:
      >>> prepare("digits", data_dir="data")
      'data/digits/1.0.0'
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"dataset name {name!r}; expected a TFDS name such as 'digits', 'mnist'.")
    data_dir = None if data_dir is None else os.path.expanduser(os.fspath(data_dir))
    ours = name.split("/")[0].split(":")[0] in OURS
    if not ours:  # Their version is this library's: an older one on disk won't do.
        try:
            found = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
            return os.fspath(found.data_path)
        except tfds.core.DatasetNotFoundError:
            pass
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = [*tfds.list_builders(with_community_datasets=False), *OURS]
        close = difflib.get_close_matches(name.split("/")[0].split(":")[0], known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
        raise ValueError(
            f"unknown dataset {name!r}: TFDS has no builder of that name, and none is prepared "
            f"under {_searched(data_dir)}{hint}"
        ) from error
    except AssertionError as error:  # What TFDS raises for a version that it doesn't have.
        raise ValueError(f"dataset {name!r}: {error}") from error

    if not builder.data_path.exists():
        try:
            # The public bucket holds TFRecords only, which need TensorFlow.
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=config)
        except Exception as error:
            if builder.data_path.exists():
                pass  # Another process was faster.
            elif isinstance(error, ValueError) or ours:
                raise  # About the data itself, or where it is to go; or it says what to do.
            else:
                raise FileNotFoundError(_cannot_prepare(name, builder, _reason(error))) from error
    return os.fspath(builder.data_path)


@dataclasses.dataclass(frozen=True)
class Info:
    """What a split holds.

    Attributes:
      name: the dataset with its version, "digits/1.0.0".
      split: the split, as it was asked for.
      num_examples: how many examples the split holds.
      image_shape: (height, width, channels) of x0.
      num_classes: cond is in 0..num_classes - 1; None where the dataset doesn't say, or where
        cond is what `encode` made.
      class_names: a name for each class, where the dataset has them.
    """

    name: str
    split: str
    num_examples: int
    image_shape: tuple[int, int, int]
    num_classes: int | None
    class_names: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Images:
    """The labelled images of a split: which dataset, and which of its features become x0 and cond.

    x0 = 2 (pixel - low) / (high - low) - 1, in float32. Nothing is read, or prepared, before it is
    asked for; what is wrong is raised then.

    Attributes:
      name: "digits", "emoji", or a dataset of the TFDS catalogue or of your own: "mnist",
        "cifar10", "celeb_a", "imagenet_resized/64x64". Prepared first if it is not on disk, see
        `prepare`.
      split: a split, or a slice of it in TFDS's notation: "train", "train[:50%]".
      data_dir: where datasets live. Default: `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      label_key: the feature that becomes cond: a class, an integer or a bool; "attributes/Male"
        reads a nested one; None for none, cond is then 0.
      image_key: the feature that becomes x0.
      encode: a function from what is under `label_key`, of any kind, to cond: a tokenizer, from a
        caption to token ids. It returns an array of one shape and dtype; text comes to it as str.
        A module's function, not a lambda, where `load` has a `worker_count`.
      image_size: crop the central square and resize it to this many pixels (uint8 images).
      image_range: (low, high), the pixel values that become -1 and 1. Default: 0 and 255 for
        uint8, 0 and 65535 for uint16, 0 and 1 for floats.

    Example:
      >>> test = Images("digits", "test")
      >>> test.info().num_examples
      400
      >>> test.arrays()["x0"].shape
      (400, 8, 8, 1)

      With captions, of a dataset that has them:

      >>> captioned = Images("emoji", label_key="caption", encode=tokenize)  # doctest: +SKIP
    """

    name: str
    split: str = "train"
    _: dataclasses.KW_ONLY
    data_dir: PathLike | None = None
    label_key: Key | None = "label"
    image_key: Key = "image"
    encode: Callable[[Any], Any] | None = None
    image_size: int | None = None
    image_range: tuple[float, float] | None = None

    def info(self) -> Info:
        """What the split holds, without reading it: its size, image shape and classes.

        Raises:
          ValueError: a dataset, a split, a feature or an option is not what it should be.
          FileNotFoundError: the dataset is not there and can't be prepared here.
        """
        return Source(self).info

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole split in memory, in the order on disk: for small data.

        Returns:
          {"x0": float32 (n, H, W, C) in [-1, 1], "cond": int32 (n,), or (n, ...) of `encode`}.

        Raises:
          ValueError: as `info`; also for an image or a label that is not what it should be.
          FileNotFoundError: the dataset is not there and can't be prepared here.
        """
        source = Source(self)
        return source.rows(np.arange(len(source)))


class Source:
    """Random access to the checked examples of a split, as `Images` describes it.

    Holds no open file until it is read, so it travels to a worker process.
    """

    def __init__(self, images: Images | str):
        """Prepares the dataset where it must be, and checks all but the examples."""
        images = images if isinstance(images, Images) else Images(images)
        split, image_size = images.split, images.image_size
        self._path = prepare(images.name, data_dir=images.data_dir)
        builder = tfds.builder_from_directory(self._path)
        where = f"dataset {builder.info.full_name!r} in {self._path}"
        _check_format(builder, where)
        builder = self._builder()
        num_examples = _split_size(builder, split, where)
        self.where = f"dataset {builder.info.full_name!r}, split {split!r}"

        features = builder.info.features
        self._image_key, self._label_key = _path(images.image_key), _path(images.label_key or ())
        shape, dtype = _image_spec(_feature(features, self._image_key, where), where)
        self._size = _image_size(image_size, dtype, where)
        if image_size is not None:
            shape = (image_size, image_size, shape[2])
        if None in shape:
            raise ValueError(
                f"{where}: images have shape {shape}, which differs from one to the next and "
                "can't be batched; expected a fixed shape. Pass image_size= to crop and resize."
            )
        self._low, self._high = _image_range(images.image_range, dtype)
        # Until images are seen: some datasets store 0 and 1 as bytes.
        self._doubtful = images.image_range is None and np.issubdtype(dtype, np.integer)
        num_classes: int | None = 1  # Without labels every cond is 0.
        names = None
        if images.encode is not None and not self._label_key:
            raise ValueError(
                f"{where}: encode= needs the feature that it is to encode: label_key=."
            )
        if self._label_key:
            label = _feature(features, self._label_key, where)
            if images.encode is None:
                num_classes, names = _label_spec(label, "/".join(self._label_key), where)
            else:
                num_classes = None
        full_name = builder.info.full_name
        self.info = Info(full_name, split, num_examples, shape, num_classes, names)
        self._reader: Any = None
        self._cache: Any = None
        self._encode = images.encode
        self._cond = np.zeros((), np.int32)  # One like all.
        if self._encode is not None:
            first = self._open([self._label_key])(0)
            self._cond = self._encoded(_get(first, self._label_key), 0)

    def __len__(self) -> int:
        return self.info.num_examples

    def __repr__(self) -> str:
        return f"Source({self.info.name!r}, split={self.info.split!r})"

    @property
    def identity(self) -> dict[str, Any]:
        """What two sources of the same examples share, in JSON types."""
        return {
            "dataset": self.info.name,
            "split": self.info.split,
            "examples": self.info.num_examples,
            "label_key": "/".join(self._label_key),
            "image_key": "/".join(self._image_key),
            "image_size": self._size,
            "image_range": [self._low, self._high],
            "encode": None if self._encode is None else _fingerprint(self._cond),
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_cache": None}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, (n,), stacked: {"x0": (n, H, W, C), "cond": (n, ...)}."""
        if self.info.num_examples * math.prod(self.info.image_shape) * 4 <= _CACHE_BYTES:
            x0, cond = self._remember(indices)
            return self._checked(x0[indices], cond[indices])
        x0 = np.empty((len(indices), *self.info.image_shape), np.float32)
        cond = self._conditions(len(indices))
        for row, index in enumerate(indices.tolist()):
            x0[row], cond[row] = self._read(index)
        return self._checked(x0, cond)

    def _checked(self, x0: np.ndarray, cond: np.ndarray) -> dict[str, np.ndarray]:
        """The examples, if the first few images tell that they fill their range."""
        if self._doubtful and len(x0) >= _TELLING:
            most = round(float((x0.max() + 1) / 2 * (self._high - self._low) + self._low))
            if most <= (self._high + 1) / 256:
                white = next(bits for bits in (1, 255, 1023, 4095) if most <= bits)
                raise ValueError(
                    f"{self.where}: the largest value of {len(x0)} images is {most}, where "
                    f"{self._high:g} would be white; expected images that fill that range. Pass "
                    f"image_range=(0, {white}) if they are stored so, and (0, {self._high:g}) if "
                    "these are dark indeed."
                )
            self._doubtful = False
        return {"x0": x0, "cond": cond}

    def _remember(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._cache is None:
            size = len(self)
            x0 = np.empty((size, *self.info.image_shape), np.float32)
            self._cache = x0, self._conditions(size), np.zeros(size, bool)
        x0, cond, known = self._cache
        for index in indices[~known[indices]].tolist():
            # Threads that race here write the same values; `known` comes last.
            x0[index], cond[index] = self._read(index)
            known[index] = True
        return x0, cond

    def _conditions(self, count: int) -> np.ndarray:
        return np.zeros((count, *self._cond.shape), self._cond.dtype)

    def _read(self, index: int) -> tuple[np.ndarray, Any]:
        if self._reader is None:
            keys = [self._image_key] + ([self._label_key] if self._label_key else [])
            self._reader = self._open(keys)
        example = self._reader(index)
        label = _get(example, self._label_key) if self._label_key else 0
        return self._image(_get(example, self._image_key), index), self._label(label, index)

    def labels(self) -> np.ndarray:
        """A label for every condition of the split, (n,) int, without decoding an image.

        Where conditions are encoded, equal ones share a number.
        """
        found = self._conditions(len(self))
        if not self._label_key:
            return found
        reader = self._open([self._label_key])
        for i in range(len(self)):
            found[i] = self._label(_get(reader(i), self._label_key), i)
        if self._encode is None:
            return found
        return np.unique(found.reshape(len(self), -1), axis=0, return_inverse=True)[1].reshape(-1)

    def _builder(self) -> Any:
        return tfds.builder_from_directory(self._path, file_format="array_record")

    def _open(self, keys: Iterable[tuple[str, ...]]) -> Callable[[int], Any]:
        # Only the keys that are asked for: decoding what nobody reads can cost, or fail. TFDS's own
        # PartialDecoding needs TensorFlow; a smaller FeaturesDict over the raw bytes doesn't.
        builder = self._builder()
        raw = builder.as_data_source(
            self.info.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        wanted: dict[str, Any] = {}
        for key in keys:
            inner = wanted
            for part in key[:-1]:
                inner = inner.setdefault(part, {})
            inner[key[-1]] = _get(builder.info.features, key)
        features = tfds.features.FeaturesDict(wanted)
        return lambda index: features.deserialize_example_np(raw[index])

    def _encoded(self, value: Any, index: int) -> np.ndarray:
        assert self._encode is not None
        try:
            return np.asarray(self._encode(_as_text(value)))
        except Exception as error:
            raise ValueError(
                f"{self.where}, example {index}: encode raised {type(error).__name__}: {error}"
            ) from error

    def _label(self, label: Any, index: int) -> Any:
        if self._encode is not None:
            found, wanted = self._encoded(label, index), self._cond
            if (found.shape, found.dtype) != (wanted.shape, wanted.dtype) or found.dtype == object:
                raise ValueError(
                    f"{self.where}, example {index}: encode returned {found.dtype} of shape "
                    f"{found.shape}; expected an array like the first example's, {wanted.dtype} of "
                    f"shape {wanted.shape}."
                )
            return found
        last = self.info.num_classes
        if not 0 <= int(label) < (last or 2**31):
            among = f"0..{last - 1}" if last else "0..2147483647"
            raise ValueError(
                f"{self.where}, example {index}: label {int(label)}; expected a label in {among}."
            )
        return int(label)

    def _image(self, image: Any, index: int) -> np.ndarray:
        image = np.asarray(image)
        if image.ndim == 2:
            image = image[..., None]
        if image.shape[2] == 1:  # A grey JPEG among colour ones; TensorFlow's decoder does this.
            image = np.repeat(image, self.info.image_shape[2], axis=2)
        low, high = self._low, self._high
        # NaN fails both comparisons, hence the negation.
        if not (image.min() >= low and image.max() <= high):
            raise ValueError(
                f"{self.where}, example {index}: the image holds NaN or values outside "
                f"[{low:g}, {high:g}] (it spans {image.min()} to {image.max()}); expected finite "
                "values in that range. Pass image_range= if the data has another."
            )
        if self._size is not None:
            image = _crop_and_resize(image, self._size)
        if image.shape != self.info.image_shape:
            raise ValueError(
                f"{self.where}, example {index}: image of shape {image.shape}; "
                f"expected {self.info.image_shape}."
            )
        return ((image.astype(np.float32) - low) / np.float32((high - low) / 2) - 1).astype(
            np.float32
        )


def _fingerprint(array: np.ndarray) -> str:
    """What tells an array from others, in a line."""
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype}{list(array.shape)} {digest[:16]}"


def _as_text(value: Any) -> Any:
    """Text as str, lists of it as lists; anything else as it is."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_as_text(part) for part in value.tolist()]
    return value


def _searched(data_dir: str | None) -> str:
    if data_dir is not None:
        return repr(data_dir)
    return repr(os.environ.get("TFDS_DATA_DIR", os.path.expanduser("~/tensorflow_datasets")))


def _cannot_prepare(name: str, builder: Any, reason: str) -> str:
    root = os.fspath(builder.data_dir_root)
    return (
        f"dataset {name!r} is not prepared in {os.fspath(builder.data_path)}, and can't be "
        f"prepared here: {reason}.\n"
        "On a machine with a network and TensorFlow (only this step may need it) run\n"
        f"    python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
        "data_dir='DIR', file_format='array_record').download_and_prepare()\"\n"
        f"then copy DIR/{builder.name} to {os.path.join(root, builder.name)}, or leave it where "
        "it is and pass data_dir='DIR' (or set TFDS_DATA_DIR=DIR)."
    )


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:  # TFDS wraps what a builder raises, and puts the example in front.
        if isinstance(cause, ImportError) and cause.name == "tensorflow":
            return "TFDS's builder for it needs TensorFlow, which is not installed"
        cause = cause.__cause__
    text = str(error)
    return f"{type(error).__name__}: {text if len(text) < 500 else '... ' + text[-500:]}"


def _check_format(builder: Any, where: str) -> None:
    formats = sorted(format.value for format in builder.info.available_file_formats())
    if "array_record" not in formats:
        raise ValueError(
            f"{where}: prepared as {', '.join(formats) or 'no known format'}; expected "
            "array_record, which is read without TensorFlow. Prepare it again, under another "
            f"data_dir, with tfds.builder({builder.name!r}, file_format='array_record', "
            "data_dir=...).download_and_prepare()."
        )


def _split_size(builder: Any, split: str, where: str) -> int:
    known = {name: info.num_examples for name, info in builder.info.splits.items()}
    listed = ", ".join(f"{name} ({count})" for name, count in known.items())
    if not isinstance(split, str):
        raise ValueError(f"{where}: split {split!r}; expected a string, one of {listed}.")
    try:
        size = builder.info.splits[split].num_examples
        files = [] if size == 0 else builder.info.splits[split].filepaths
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{where}: no split {split!r}; expected one of {listed}, or a slice such as "
            f"'{next(iter(known), 'train')}[:50%]'."
        ) from error
    if size == 0:
        raise ValueError(
            f"{where}: split {split!r} is empty; expected at least one example from {listed}."
        )
    for file in files:
        if not os.path.exists(file):
            raise ValueError(
                f"{where}: split {split!r} lacks its file {os.fspath(file)}; expected a whole "
                "dataset. Delete the directory and prepare it again."
            )
    return int(size)


def _path(key: Key) -> tuple[str, ...]:
    return tuple(key.split("/")) if isinstance(key, str) else tuple(key)


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def _feature(features: Any, path: tuple[str, ...], where: str) -> Any:
    try:
        return _get(features, path)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where}: no feature {'/'.join(path)!r}; expected one of "
            f"{', '.join(_names(features))}. Choose with label_key= or image_key=."
        ) from error


def _names(features: Any, prefix: str = "") -> list[str]:
    if isinstance(features, tfds.features.FeaturesDict):
        return [n for key in sorted(features) for n in _names(features[key], f"{prefix}{key}/")]
    return [prefix.rstrip("/")]


def _image_spec(feature: Any, where: str) -> tuple[Any, np.dtype]:
    shape, dtype = getattr(feature, "shape", None), getattr(feature, "np_dtype", None)
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        dtype = np.dtype(object)
    known = dtype in (np.uint8, np.uint16) or np.issubdtype(dtype, np.floating)
    if not isinstance(shape, tuple) or len(shape) != 3 or not known:
        raise ValueError(
            f"{where}: the image feature is {feature!r}; expected shape (height, width, channels) "
            "of uint8, uint16 or a float dtype."
        )
    return shape, dtype


def _label_spec(feature: Any, key: str, where: str) -> tuple[int | None, tuple[str, ...] | None]:
    if isinstance(feature, tfds.features.ClassLabel):
        names = feature.names
        return feature.num_classes, tuple(names) if names else None
    shape, dtype = getattr(feature, "shape", None), getattr(feature, "np_dtype", None)
    if shape == () and dtype is not None and np.issubdtype(dtype, np.bool_):
        return 2, None
    if shape == () and dtype is not None and np.issubdtype(dtype, np.integer):
        return None, None
    raise ValueError(
        f"{where}: feature {key!r} is {feature!r}; expected a scalar class, integer or bool for "
        "cond. Choose another with label_key=, say what becomes of it with encode=, or pass "
        "label_key=None for data without labels."
    )


def _image_size(size: int | None, dtype: np.dtype, where: str) -> int | None:
    if size is None:
        return None
    if int(size) != size or size < 1:
        raise ValueError(f"image_size {size!r}; expected a positive number of pixels.")
    if dtype != np.uint8:
        raise ValueError(f"{where}: image_size needs uint8 images, these are {dtype}.")
    return int(size)


def _image_range(given: tuple[float, float] | None, dtype: np.dtype) -> tuple[float, float]:
    if given is None:
        return (
            (0.0, 1.0) if np.issubdtype(dtype, np.floating) else (0.0, float(np.iinfo(dtype).max))
        )
    low, high = map(float, given)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"image_range {given!r}; expected finite (low, high) with low < high.")
    return low, high


def _crop_and_resize(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of a uint8 image, by area averaging down to `size` or bicubically up."""
    from PIL import Image

    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    method = Image.Resampling.BOX if size <= side else Image.Resampling.BICUBIC
    planes = [
        np.asarray(Image.fromarray(square[..., c]).resize((size, size), method))
        for c in range(channels)
    ]
    return np.stack(planes, axis=-1)
