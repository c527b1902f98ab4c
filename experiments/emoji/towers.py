"""Train towers for the emoji and their captions, and a classifier of what names carry.

    python -m experiments.emoji.towers

Contrastive pairs as in CLIP (Radford et al. 2103.00020): on the training split, pictures shifted
and noised, a third of the captions replaced by Unicode's keywords. `towers.jsonl` has how well each
finds the caption of a picture, and the picture of a caption, among those that nothing is learned
from. A tower that is written already isn't trained again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from experiments.emoji import captions, storage
from experiments.models import ConvTower, PatchTower, TextTower

EMBED = 64
CHUNK = 50  # Steps of one program.
VOCABULARY = 2033


@dataclasses.dataclass(frozen=True)
class Pair:
    """A tower for pictures and one for captions."""

    image: Any
    text: TextTower


def _text(**sizes: Any) -> TextTower:
    return TextTower(VOCABULARY, EMBED, **sizes)


# Whose words condition the denoiser and ω; the reward; one more to learn and to tune on ...
SEEN: dict[str, Pair] = {
    "prompt": Pair(ConvTower(EMBED, (32, 64, 96)), _text(width=64)),
    "reward": Pair(ConvTower(EMBED, (48, 96, 96), 96, "gelu"), _text(width=48, depth=0)),
    "tuning": Pair(PatchTower(EMBED, patch=8, width=80), _text(width=32, depth=0)),
}
# ... and two of other shapes for the report alone.
REPORT: dict[str, Pair] = {
    "report-conv": Pair(ConvTower(EMBED, (24, 48, 96, 128), 128, "relu"), _text(width=48, depth=0)),
    "report-patch": Pair(PatchTower(EMBED, patch=4, width=96, depth=3), _text(width=48)),
}
PAIRS = SEEN | REPORT
ATTRIBUTES = "attributes"
CLASSIFIER = ConvTower(sum(captions.ATTRIBUTES.values()), (40, 80, 120), 128, "relu")


@dataclasses.dataclass(frozen=True)
class Config:
    """Train towers for the emoji."""

    names: tuple[str, ...] = (*PAIRS, ATTRIBUTES)
    """Which of them."""
    steps: int = 3_000
    """Of each tower."""
    batch: int = 256
    """Pairs a step."""
    learning_rate: float = 2e-3
    """Of AdamW; it falls to 0 along a cosine."""
    out: pathlib.Path = storage.WEIGHTS
    """Where the towers go."""


def split_logits(logits: jax.Array) -> dict[str, jax.Array]:
    """Logits of each attribute, by its name."""
    ends = np.cumsum(list(captions.ATTRIBUTES.values()))[:-1]
    return dict(zip(captions.ATTRIBUTES, jnp.split(logits, ends, axis=-1), strict=True))


def unit(x: jax.Array) -> jax.Array:
    """Rows of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def augment(key: jax.Array, x0: jax.Array) -> jax.Array:
    """Pictures moved by up to 2 pixels, and noised by up to 0.3."""
    move, level, what = jax.random.split(key, 3)
    padded = jnp.pad(x0, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    start = jax.random.randint(move, (x0.shape[0], 2), 0, 5)
    cut = lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), x0.shape[1:])  # noqa: E731
    moved = jax.vmap(cut)(padded, start)
    noise = jax.random.uniform(level, (x0.shape[0], 1, 1, 1), maxval=0.3)
    return moved + noise * jax.random.normal(what, x0.shape)


def contrast(
    pair: Pair, params: Any, key: jax.Array, x0: jax.Array, tokens: jax.Array
) -> jax.Array:
    """The mean of both cross-entropies: which caption is a picture's, which picture a caption's."""
    how, drop, drop_2 = jax.random.split(key, 3)
    _, ours = pair.image.apply(
        params["image"], augment(how, x0), train=True, rngs={"dropout": drop}
    )
    _, said = pair.text.apply(params["text"], tokens, train=True, rngs={"dropout": drop_2})
    scale = jnp.exp(jnp.minimum(params["scale"], jnp.log(50.0)))
    logits = scale * unit(ours) @ unit(said).T
    # The same keywords may stand for several pictures.
    same = jnp.all(tokens[:, None] == tokens[None], axis=-1)
    target = same / same.sum(axis=1, keepdims=True)
    sides = (optax.softmax_cross_entropy(each, target).mean() for each in (logits, logits.T))
    return 0.5 * jnp.sum(jnp.stack(list(sides)))


def classification(
    params: Any, key: jax.Array, x0: jax.Array, truth: Mapping[str, jax.Array]
) -> jax.Array:
    """The cross-entropies of the attributes, added up."""
    how, drop = jax.random.split(key)
    _, logits = CLASSIFIER.apply(params, augment(how, x0), train=True, rngs={"dropout": drop})
    found = split_logits(logits)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return jnp.sum(jnp.stack([entropy(found[name], truth[name]).mean() for name in truth]))


def _optimizer(config: Config) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(200, config.steps // 10), config.steps
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.1))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _train(loss, config, state, key, x0, facts):
    """`CHUNK` steps of a tower; facts are (captions, keywords), or attributes."""
    moves = _optimizer(config)

    def step(state, key):
        params, moments = state
        which, form, how = jax.random.split(key, 3)
        rows = jax.random.randint(which, (config.batch,), 0, x0.shape[0])
        given = jax.tree.map(lambda a: a[rows], facts)
        if isinstance(given, tuple):
            given = jnp.where(jax.random.bernoulli(form, 1 / 3, (config.batch, 1)), *given[::-1])
        value, gradient = jax.value_and_grad(loss)(params, how, x0[rows], given)
        updates, moments = moves.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    state, values = jax.lax.scan(step, state, jax.random.split(key, CHUNK))
    return state, values.mean()


def texts(split: captions.Split) -> tuple[list[str], list[str]]:
    """(captions, keywords) of a split, each as one text."""
    found = captions.pictures(split)
    return found.captions, [" ".join(each) for each in found.keywords]


@dataclasses.dataclass(frozen=True)
class Towers:
    """A trained pair; a pytree whose functions can be called under jit."""

    image: jax.tree_util.Partial
    text: jax.tree_util.Partial

    def score(self, x0: jax.Array, tokens: jax.Array) -> jax.Array:
        """The CLIP score: cosine of a picture's embedding and its caption's, (batch,)."""
        return jnp.sum(unit(self.image(x0)[1]) * unit(self.text(tokens)[1]), axis=-1)


jax.tree_util.register_dataclass(Towers)


@functools.cache
def _apply(net: Any) -> Any:
    return lambda params, x: net.apply(params, x)


def towers(name: str, params: Any) -> Towers:
    """The pair of that name with its parameters."""
    pair = PAIRS[name]
    return Towers(
        jax.tree_util.Partial(_apply(pair.image), params["image"]),
        jax.tree_util.Partial(_apply(pair.text), params["text"]),
    )


def load(name: str, folder: pathlib.Path = storage.WEIGHTS) -> Towers:
    """A trained pair: `.image(x0)` and `.text(tokens)` give (features, embedding) each."""
    return towers(name, storage.read(folder / f"tower-{name}.safetensors")[0])


def load_classifier(folder: pathlib.Path = storage.WEIGHTS) -> jax.tree_util.Partial:
    """The trained classifier: a function of pictures to the logits of each attribute, by name."""
    params, _ = storage.read(folder / f"tower-{ATTRIBUTES}.safetensors")
    return jax.tree_util.Partial(_classify, params)


def _classify(params: Any, x0: jax.Array) -> dict[str, jax.Array]:
    return split_logits(CLASSIFIER.apply(params, x0)[1])


# Unicode's groups as a guidance may tell them apart; all others are the last.
GROUPS = {"People & Body": 0, "Smileys & Emotion": 1, "Flags": 2}
GROUP_COUNT = 4


def prompts(
    said: Sequence[str],
    folder: pathlib.Path = storage.WEIGHTS,
    groups: Sequence[str] | None = None,
) -> dict[str, jax.Array]:
    """Captions as conditions: "words" for denoiser and ω, "tokens" for the reward, "group".

    Words are (n, LENGTH, features), as the prompt tower sees them; a row of zeros is no word, and
    all zeros is the unconditional condition, `NULL`. Groups are Unicode's, by their names.
    """
    tokens = captions.tokens(said)
    parts = np.split(tokens, range(512, len(tokens), 512))
    words = jnp.concatenate([_prompt(folder)(part)[0] for part in parts])
    group = [GROUPS.get(name, GROUP_COUNT - 1) for name in groups or [""] * len(tokens)]
    return {"words": words, "tokens": jnp.asarray(tokens), "group": jnp.asarray(group)}


NULL = {"words": 0.0, "tokens": 0, "group": 0}


@functools.cache
def _prompt(folder: pathlib.Path) -> Any:
    return jax.jit(load("prompt", folder).text)


def pooled(cond: Mapping[str, jax.Array]) -> jax.Array:
    """The mean of a condition's words: (n, features), 0 where there are none."""
    words = cond["words"]
    known = jnp.any(words != 0, axis=-1)
    return words.sum(axis=1) / jnp.maximum(known.sum(axis=1, keepdims=True), 1)


def retrieval(pair: Towers, split: captions.Split) -> dict[str, float]:
    """Shares of a split's captions and pictures that are found as the first, and among five."""
    found = captions.pictures(split)
    ours = unit(jax.jit(pair.image)(jnp.asarray(found.x0))[1])
    said = unit(jax.jit(pair.text)(captions.tokens(found.captions))[1])
    scores = np.asarray(ours @ said.T)
    numbers: dict[str, float] = {"of": len(found.captions)}
    for what, each in (("caption", scores), ("picture", scores.T)):
        rank = (each > np.diag(each)[:, None]).sum(axis=1)
        numbers |= {f"{what} first": float((rank == 0).mean())}
        numbers |= {f"{what} in five": float((rank < 5).mean())}
    return numbers


def accuracy(classify: Any, split: captions.Split) -> dict[str, float]:
    """Share of a split's pictures whose attributes are told right, of each attribute."""
    found = captions.pictures(split)
    logits = jax.jit(classify)(jnp.asarray(found.x0))
    return {
        name: float(np.mean(np.argmax(logits[name], axis=-1) == truth))
        for name, truth in found.attributes.items()
    }


def main(config: Config) -> None:
    """Train the towers that aren't there yet."""
    if config.steps % CHUNK:
        raise SystemExit(f"--steps must be a multiple of {CHUNK}.")
    if len(captions.vocabulary()) != VOCABULARY:
        raise SystemExit(f"the emoji have {len(captions.vocabulary())} words, not {VOCABULARY}.")
    found = captions.pictures("train")
    x0 = jnp.asarray(found.x0)
    said = tuple(jnp.asarray(captions.tokens(each)) for each in texts("train"))
    facts: dict[str, Any] = dict.fromkeys(PAIRS, said)
    facts[ATTRIBUTES] = {k: jnp.asarray(v) for k, v in found.attributes.items()}
    for index, name in enumerate(facts):
        path = config.out / f"tower-{name}.safetensors"
        if name not in config.names or path.exists():
            continue
        begin, begin_2, run = jax.random.split(jax.random.key(index), 3)
        if name == ATTRIBUTES:
            loss: Any = classification
            params = CLASSIFIER.init(begin, x0[:1])
        else:
            pair = PAIRS[name]
            loss = functools.partial(contrast, pair)
            params = {
                "image": pair.image.init(begin, x0[:1]),
                "text": pair.text.init(begin_2, facts[name][0][:1]),
                "scale": jnp.log(10.0),
            }
        state, begun = (params, _optimizer(config).init(params)), time.monotonic()
        value = jnp.nan
        for chunk in track(range(config.steps // CHUNK), f"training {name}"):
            key = jax.random.fold_in(run, chunk)
            state, value = _train(loss, config, state, key, x0, facts[name])
        line: dict[str, Any] = {"tower": name, "loss": round(float(value), 4)}
        line["seconds"] = round(time.monotonic() - begun, 1)
        for split in ("train", "select", "report", "composed"):
            if name == ATTRIBUTES:
                line[split] = accuracy(jax.tree_util.Partial(_classify, state[0]), split)
            else:
                line[split] = retrieval(towers(name, state[0]), split)
        storage.save(path, state[0], {"tower": name, "steps": config.steps})
        with (config.out / "towers.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
