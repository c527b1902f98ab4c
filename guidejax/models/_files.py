"""Published weights: safetensors files, checked by their keys and shapes before any is read."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Params = dict[str, jax.Array]
Shapes = Mapping[str, tuple[int, ...]]
Rules = Mapping[str, PartitionSpec]

# How files of each family begin, to say what a wrong one is.
_FAMILIES = {
    "DiT or SiT": "blocks.*.adaLN_modulation.1.weight",
    "diffusers' DiT": "transformer_blocks.*.norm1.emb.class_embedder.embedding_table.weight",
    "Stable Diffusion's UNet": "down_blocks.*.resnets.*.time_emb_proj.weight",
    "Stable Diffusion's VAE": "decoder.up_blocks.*.resnets.*.conv1.weight",
    "one file of a whole Stable Diffusion": "model.diffusion_model.*",
    "SD3's transformer": "*transformer_blocks.*.attn.add_q_proj.weight",
    "a LoRA": "*lora*",
    "CLIP, both towers": "vision_model.*.self_attn.q_proj.weight",
    "CLIP's text tower": "text_model.*.self_attn.q_proj.weight",
    "an Inception v3": "Mixed_7c.branch_pool.conv.weight",
    "T5": "encoder.block.*.SelfAttention.q.weight",
}


def find(
    path_or_repo: str | os.PathLike[str],
    *,
    download: bool = False,
    only: Sequence[str] | None = None,
) -> pathlib.Path:
    """A file or folder of this machine, or a repository of the Hugging Face hub.

    Args:
        path_or_repo: A path that exists; or "owner/name", which is looked up among what the
            `huggingface_hub` package has downloaded already.
        download: Whether a repository may be downloaded.
        only: Patterns of the files that are wanted of it; all by default.

    Raises:
        FileNotFoundError: Where there is neither.
    """
    path = pathlib.Path(path_or_repo).expanduser()
    if path.exists():
        return path
    name = str(path_or_repo)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"there is no file or folder {name}.")
    try:
        import huggingface_hub
    except ImportError as error:
        raise FileNotFoundError(
            f"there is no folder {name}. To look it up on the Hugging Face hub, "
            "`pip install huggingface_hub`; or download its files and give their folder."
        ) from error
    try:
        found = huggingface_hub.snapshot_download(
            name, local_files_only=not download, allow_patterns=only and list(only)
        )
    except Exception as error:
        what = "couldn't be downloaded" if download else "hasn't been downloaded to this machine"
        how = "" if download else " With download=True it is fetched (mind its licence)."
        message = f"there is no folder {name}, and the repository {what}.{how}"
        raise FileNotFoundError(message) from error
    return pathlib.Path(found)


def json_of(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """A JSON file's contents; nothing where there is no such file."""
    file = folder / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class Tensors:
    """The tensors of one or many safetensors files: shapes at once, values when asked for.

    Attributes:
        path: What was opened.
        shapes: The shape of each tensor, by its key.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """`path`: a .safetensors file, an index of many, or a folder that holds either."""
        self.path = pathlib.Path(path)
        self._handles: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in _parts(self.path):
            handle = _open(file)
            for key in handle.keys():  # noqa: SIM118  # It isn't a dict.
                self._handles[key] = handle
                self.shapes[key] = tuple(handle.get_slice(key).get_shape())
        index = _index(self.path)
        missing = sorted(set(index) - set(self.shapes)) if index else []
        if missing:
            raise ValueError(
                f"{self.path} lacks {_some(missing)}, which its index says it has: a part was "
                "downloaded in half, or is of another model."
            )

    def __getitem__(self, key: str) -> Any:
        """A tensor, read when it is sliced, as `tensors[key][:2]`."""
        return self._handles[key].get_slice(key)

    def whole(self, key: str) -> np.ndarray:
        """All of a tensor."""
        return self._handles[key].get_tensor(key)


def _index(path: pathlib.Path) -> dict[str, str] | None:
    """Which file each tensor is in, where an index says so."""
    if path.is_dir():
        found = sorted(path.glob("*.safetensors.index.json"))
        if not found:
            return None
        path = found[0]
    if not path.name.endswith(".index.json"):
        return None
    return json.loads(path.read_text())["weight_map"]


def _single(folder: pathlib.Path) -> pathlib.Path | None:
    for name in ("diffusion_pytorch_model", "model", "*"):
        found = [f for f in sorted(folder.glob(f"{name}.safetensors")) if f.is_file()]
        if len(found) == 1:
            return found[0]
    return None


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files that make up a model."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}.")
    index = _index(path)
    if index is not None:
        folder = path if path.is_dir() else path.parent
        files = [folder / name for name in sorted(set(index.values()))]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {_some(missing)} of the {len(files)} files that its index names."
            )
        return files
    if path.is_dir():
        single = _single(path)
        if single is not None:
            return [single]
        pickles = [f.name for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        if pickles:
            raise ValueError(_pickled(path / sorted(pickles)[0]))
        raise FileNotFoundError(
            f"{path} holds no single .safetensors file and no .safetensors.index.json; "
            f"it holds {_some(sorted(f.name for f in path.iterdir()))}."
        )
    if path.suffix != ".safetensors":
        raise ValueError(_pickled(path))
    return [path]


def _pickled(path: pathlib.Path) -> str:
    return (
        f"{path} isn't a safetensors file. PyTorch's own files are pickles; where torch is "
        f"installed, `python -m guidejax.models.convert {path} {path.with_suffix('.safetensors')}` "
        "makes one that can be loaded."
    )


def _open(file: pathlib.Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            "published weights are read by the safetensors package: `pip install guidejax[models]`."
        ) from error
    try:
        return safe_open(file, framework="np")  # On the host: placed later, once.
    except SafetensorError as error:
        raise ValueError(
            f"{file} can't be read as safetensors ({error}): it was cut off or damaged, download "
            "it again."
        ) from error


def _some(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def looks_like(keys: Iterable[str]) -> str:
    """What family keys are of, in words, or some of the keys."""
    keys = list(keys)
    for family, pattern in _FAMILIES.items():
        if any(fnmatch.fnmatchcase(key, pattern) for key in keys):
            return f"its keys look like {family}"
    return f"its keys look like {_some(sorted(keys))}" if keys else "it is empty"


def check(
    what: str, where: Any, wanted: Shapes, found: Shapes, ignored: Sequence[str] = ()
) -> None:
    """Raise `ValueError` unless `found` has the keys and shapes of `wanted`.

    Args:
        what: The model, for the message.
        where: The file, for the message.
        wanted: Shapes by key.
        found: Likewise.
        ignored: Patterns of keys that may be there besides.
    """
    missing = sorted(set(wanted) - set(found))
    extra = sorted(
        key
        for key in set(found) - set(wanted)
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignored)
    )
    other = [
        f"{key} is {found[key]}, expected {wanted[key]}"
        for key in wanted
        if key in found and tuple(found[key]) != tuple(wanted[key])
    ]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of its {len(wanted)} keys are missing ({_some(missing)})")
    if other:
        parts.append(f"{len(other)} have another shape ({_some(other, 2)})")
    if extra:
        parts.append(f"{len(extra)} are unknown ({_some(extra)})")
    if parts:
        raise ValueError(f"{where} is not {what}: {'; '.join(parts)}; {looks_like(found)}.")


@dataclasses.dataclass(frozen=True)
class From:
    """Where a tensor comes from: tensors of a file, joined along their first axis.

    Attributes:
        keys: The tensors' keys.
        shape: The shape of the joined tensor there, where it is another than the array's.
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...] | None = None


Layout = Mapping[str, From]


def placement(key: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> NamedSharding:
    r"""How a tensor is split over a mesh: by the first rule whose pattern its key has.

    Args:
        key: The tensor's key.
        shape: Its shape.
        mesh: The devices.
        rules: Regular expressions, searched for in the key; axis names that the mesh lacks are
            left out, and axes that its devices don't divide are left whole.

    Example:
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> rules = {r"fc1\.weight": PartitionSpec("model", None)}
        >>> tuple(placement("blocks.0.mlp.fc1.weight", (8, 4), mesh, rules).spec)
        ('model', None)
    """
    for pattern, spec in rules.items():
        if re.search(pattern, key):
            kept = (_kept(names, size, mesh) for names, size in zip(spec, shape, strict=False))
            return NamedSharding(mesh, PartitionSpec(*kept))
    return NamedSharding(mesh, PartitionSpec())


def _kept(names: Any, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """What splits an axis of this size: those of the names that the mesh has."""
    names = names if isinstance(names, tuple) else (names,)
    found = tuple(name for name in names if name in mesh.shape)
    if not found or size % math.prod(mesh.shape[name] for name in found):
        return None
    return found if len(found) > 1 else found[0]


def read(
    tensors: Tensors,
    shapes: Shapes,
    layout: Layout,
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    progress: Callable[[str], None] | None = None,
) -> Params:
    """The tensors of a layout as arrays; on a mesh each device's host reads no more than its part.

    Args:
        tensors: The file.
        shapes: Shape of each array, by key.
        layout: Where each comes from.
        dtype: Of the arrays; their values are rounded to it.
        mesh: The devices, where there are many.
        rules: How arrays are split over them, see `placement`; all are whole by default.
        progress: Called with each key as it is read.
    """
    params: Params = {}
    for key, shape in shapes.items():
        part = functools.partial(_part, tensors, layout[key], tuple(shape), dtype)
        if mesh is None:
            params[key] = jnp.asarray(part(None))
        else:
            sharding = placement(key, tuple(shape), mesh, rules or {})
            params[key] = jax.make_array_from_callback(tuple(shape), sharding, part)
        if progress:
            progress(key)
    return params


def _part(
    tensors: Tensors, source: From, shape: tuple[int, ...], dtype: Any, where: Any
) -> np.ndarray:
    """A part of an array, or all of it where `where` is None; no more is read than it needs."""
    if len(source.keys) == 1 and source.shape is None and shape and where is not None:
        return tensors[source.keys[0]][where].astype(dtype)
    wholes = [tensors.whole(key) for key in source.keys]
    joined = wholes[0] if len(wholes) == 1 else np.concatenate(wholes)
    array = joined.reshape(shape).astype(dtype)
    return array if where is None else array[where]


def sources(shapes: Shapes, layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shapes that a file's tensors must have, by their keys there."""
    found = {}
    for key, shape in shapes.items():
        count = len(layout[key].keys)
        whole = layout[key].shape or shape
        for source in layout[key].keys:
            found[source] = (whole[0] // count, *whole[1:]) if whole else whole
    return found


def plain(shapes: Shapes) -> Layout:
    """The layout of a file that names its tensors as we do."""
    return {key: From((key,)) for key in shapes}
