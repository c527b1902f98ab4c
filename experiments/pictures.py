"""A user's pictures, prepared once: x0 of a checkpoint and what each picture is of, on disk."""

from __future__ import annotations

import itertools
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.checkpoints import Checkpoint, fingerprint, same

LOG = logging.getLogger("experiments.pictures")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Bytes of UTF-8 of what a picture is of; longer captions are cut.
LENGTH = 400
# Of the pictures in the order of seed 0: what is tuned or learned on, and what is reported on.
HALVES = {"tune": slice(0, None, 2), "report": slice(1, None, 2)}


def said(folder: pathlib.Path) -> dict[pathlib.Path, str]:
    """What each picture of a folder is of.

    By the first that is there: `metadata.jsonl` with "file_name" and "text" a line; a .txt file
    beside each picture; or the name of the subfolder that it lies in, a class.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
    listed = folder / "metadata.jsonl"
    if listed.is_file():
        rows = [json.loads(line) for line in listed.read_text().splitlines() if line.strip()]
        texts = {folder / row["file_name"]: str(row["text"]) for row in rows}
    else:
        beside = {p: p.with_suffix(".txt") for p in paths if p.with_suffix(".txt").is_file()}
        texts = {p: file.read_text().strip() for p, file in beside.items()}
        if not texts:
            texts = {p: p.parent.name for p in paths if p.parent != folder}
    missing = [p.name for p in paths if p not in texts]
    if missing:
        raise SystemExit(
            f"nothing says what {len(missing)} of the {len(paths)} pictures in {folder} are of, "
            f"{missing[0]} among them: give a metadata.jsonl, .txt files, or a subfolder a class."
        )
    return {path: texts[path] for path in paths}


def read(path: pathlib.Path, pixels: int) -> np.ndarray:
    """The central square of a picture at a size, in [-1, 1]."""
    import PIL.Image

    with PIL.Image.open(path) as file:
        image = file.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((pixels, pixels), PIL.Image.Resampling.BICUBIC)
        return np.asarray(image, np.float32) / 127.5 - 1


def examples(
    data: str, found: Checkpoint, seed: int | None = None
) -> Iterator[tuple[np.ndarray, str]]:
    """Pictures in [-1, 1] with what they are of: a folder's, or a dataset's of TFDS.

    In order, or in one that `seed` gives.
    """
    folder = pathlib.Path(data).expanduser()
    if (folder / "fields.json").is_file():
        raise SystemExit(f"{folder} holds prepared latents; give the pictures themselves.")
    if folder.is_dir():
        rows = list(said(folder).items())
        if seed is not None:
            rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        for path, text in rows:
            yield read(path, found.pixels), text
        return
    import guidejax.data

    key, encode = ("caption", _as_bytes) if found.kind == "prompts" else ("label", None)
    images = guidejax.data.Images(data, label_key=key, encode=encode, image_size=found.pixels)
    batches = guidejax.data.load(
        images, batch_size=8, seed=seed or 0, shuffle=seed is not None, epochs=1,
        drop_remainder=False,
    )  # fmt: skip
    for batch in batches:
        for x0, cond in zip(batch["x0"], batch["cond"], strict=True):
            text = bytes(cond).rstrip(b"\0").decode() if encode else str(int(cond))
            yield np.broadcast_to(x0, (*x0.shape[:2], 3)), text


def tuning_half(data: str, found: Checkpoint, count: int) -> Iterator[tuple[np.ndarray, str]]:
    """Of the first `count` pictures those that `experiments.evaluate` tunes on."""
    half = HALVES["tune"]
    return itertools.islice(examples(data, found, 0), half.start, count, half.step)


def source(data: str) -> str:
    """What tells a folder's files, or a dataset, from others."""
    folder = pathlib.Path(data).expanduser()
    return fingerprint(folder) if folder.is_dir() else data


def _noted(latents: pathlib.Path) -> dict[str, Any]:
    """What `prepare` noted of a folder of latents, nothing where it noted nothing."""
    path = latents.with_suffix(".json")
    there = json.loads(path.read_text()) if path.is_file() else None
    return there if isinstance(there, dict) and "data" in there else {}


def learned_on(weight: pathlib.Path, data: str, count: int) -> str:
    """On which pictures a weight was learned, in words; stops where it is all of `data`.

    Args:
        weight: The folder of a weight that `experiments.learn` has learned.
        data: Half of it is reported on.
        count: The half of how many pictures.
    """
    there = _noted(weight / "latents")
    if not there:
        return f"of {weight} it isn't noted on which pictures it was learned"
    if there["data"] != source(data):
        return f"{weight} was learned on other data"
    if there.get("half_of") is None:
        raise SystemExit(
            f"{weight} was learned on all of {data}, half of which is reported on. Learn on the "
            f"other half alone, python -m experiments.learn --data {data} --half-of {count} --out "
            f"{weight}-half with the other flags as they were, or give --data of other pictures."
        )
    return f"{weight} was learned on the half of {there['half_of']} pictures that is tuned on"


def _as_bytes(text: Any) -> np.ndarray:
    text = text if isinstance(text, str) else str(text)
    cut = text.encode()[:LENGTH].decode(errors="ignore").encode()
    return np.frombuffer(cut.ljust(LENGTH, b"\0"), np.uint8)


def prepare(
    data: str, found: Checkpoint, where: pathlib.Path, batch: int = 8, half_of: int | None = None
) -> pathlib.Path:
    """x0 and captions of pictures, written to `where` once; a later run finds them there.

    Args:
        data: A folder of pictures, a dataset of TFDS, or a folder that this function wrote.
        found: The checkpoint, whose VAE makes x0 of pictures where it has one.
        where: Where to write.
        batch: Pictures that are encoded at a time.
        half_of: Of so many pictures take the half that `experiments.evaluate` tunes on; all by
            default.
    """
    import guidejax.data

    given = pathlib.Path(data).expanduser()
    shape = found.noise(jax.random.key(0), 1).shape[1:]
    if (given / "fields.json").is_file():
        fields = json.loads((given / "fields.json").read_text())["fields"]
        shapes = {"/".join(field["path"]): tuple(field["shape"]) for field in fields}
        if "said" not in shapes or shapes.get("x0") != shape:
            raise SystemExit(f"{given} holds {shapes}; expected x0 of shape {shape}, and said.")
        if half_of is not None:
            raise SystemExit(
                f"{given} holds latents, which were prepared of all or of half already: give "
                "--half-of with the pictures themselves."
            )
        if noted := _noted(given):  # Beside the weight it tells on which pictures that is learned.
            same(where.with_suffix(".json"), {"half_of": None, **noted})
        return given
    same(
        where.with_suffix(".json"),
        {"data": source(data), "model": found.told, "half_of": half_of},
    )
    if (where / "fields.json").is_file():
        return where
    encode = jax.jit(lambda encode, x: encode(x)) if found.encode is not None else None
    if encode is None and shape != (found.pixels, found.pixels, 3):
        raise SystemExit(
            f"this model makes latents of shape {shape}, not pictures: give the VAE that turns "
            "pictures into them, --model.vae."
        )

    def batches() -> Iterator[dict[str, Any]]:
        rows: list[tuple[np.ndarray, str]] = []
        rest = examples(data, found) if half_of is None else tuning_half(data, found, half_of)
        for count, row in enumerate(rest):
            rows.append(row)
            if len(rows) == batch:
                yield made(rows)
                rows = []
            if count % 100 == 0:
                LOG.info("preparing: %d pictures", count + 1)
        if rows:
            yield made(rows)

    def made(rows: list[tuple[np.ndarray, str]]) -> dict[str, Any]:
        x = np.stack([picture for picture, _ in rows])
        filled = np.concatenate([x, np.repeat(x[-1:], batch - len(x), axis=0)])
        x0 = filled if encode is None else np.asarray(encode(found.encode, filled))
        return {
            "x0": np.asarray(x0[: len(x)], np.float32),
            "said": np.stack([_as_bytes(text) for _, text in rows]),
        }

    count = guidejax.data.write_examples(where, batches())
    LOG.info("prepared %d pictures in %s", count, where)
    return where


def texts(rows: np.ndarray) -> list[str]:
    """What pictures are of."""
    return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(rows, np.uint8)]


def some(where: pathlib.Path, count: int) -> list[str]:
    """What some of the prepared pictures are of, each once."""
    import guidejax.data

    rows = guidejax.data.load_examples(where, batch_size=1, shuffle=False, epochs=1)
    first = itertools.islice(rows, 50 * count)
    return sorted({text for row in first for text in texts(row["said"])})[:count]


class Batches:
    """Endless batches {"x0", "cond"} of what was prepared, for `fit`; go on from where they stood.

    Texts become conditions as a batch is drawn: written out they would take a hundred times the
    room of the latents.
    """

    def __init__(
        self, where: pathlib.Path, found: Checkpoint, size: int, seed: int, add: Any = None
    ):
        """`add` makes what else a condition holds of the texts, such as the reward's tokens."""
        import guidejax.data

        self._data = guidejax.data.load_examples(where, batch_size=size, seed=seed)
        self._found, self._add = found, add

    def __iter__(self) -> _Iterator:
        return _Iterator(iter(self._data), self._found, self._add)


class _Iterator:
    def __init__(self, rows: Any, found: Checkpoint, add: Any):
        self._rows, self._found, self._add = rows, found, add

    def __iter__(self) -> _Iterator:
        return self

    def __next__(self) -> dict[str, Any]:
        row = next(self._rows)
        return {"x0": row["x0"], "cond": conditions(self._found, texts(row["said"]), self._add)}

    def get_state(self) -> Any:
        return self._rows.get_state()

    def set_state(self, state: Any) -> None:
        self._rows.set_state(state)


class Repeated:
    """Each example of batches several times on end, as a rollout's groups want them."""

    def __init__(self, batches: Any, each: int):
        """`each` is how often."""
        self._batches, self._each = batches, each

    def __iter__(self) -> _Repeats:
        return _Repeats(iter(self._batches), self._each)


class _Repeats:
    def __init__(self, rows: Any, each: int):
        self._rows, self._each = rows, each

    def __iter__(self) -> _Repeats:
        return self

    def __next__(self) -> Any:
        return jax.tree.map(lambda leaf: np.repeat(leaf, self._each, axis=0), next(self._rows))

    def get_state(self) -> Any:
        return self._rows.get_state()

    def set_state(self, state: Any) -> None:
        self._rows.set_state(state)


def conditions(found: Checkpoint, said: Sequence[str], add: Any = None) -> Any:
    """Conditions of texts, with what `add` makes of them beside."""
    cond = found.condition(list(said))
    return jax.tree.map(np.asarray, cond if add is None else {**cond, **add(list(said))})


def null(found: Checkpoint, add: Any = None) -> Any:
    """The null condition with as many parts as `conditions` has."""
    if add is None:
        return found.uncond
    return {**found.uncond, **jax.tree.map(jnp.zeros_like, add([""]))}
