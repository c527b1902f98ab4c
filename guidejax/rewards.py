"""Rewards of images for objectives: how well they fit a text, by a public model's judgement.

    model = gj.models.clip.load("openai/clip-vit-base-patch32")
    reward = gj.rewards.clip_score(model, key="tokens")
    objective = gj.self_consistency(reward=reward, reward_weight=0.1)

Needs `pip install guidejax[models]` to read the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from guidejax._arrays import Array, batch_size, dot, unit, upcast
from guidejax.models._towers import images_only


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Judge:
    """A model and what it needs: `fixed` are texts' embeddings, where they are given beforehand."""

    model: Any
    fixed: Array | None
    decode: Any
    key: str = dataclasses.field(metadata={"static": True})
    remat: bool = dataclasses.field(metadata={"static": True})


def clip_score(
    model: Any,
    tokens: Any = None,
    *,
    key: str = "tokens",
    decode: Callable[[Any], Any] | None = None,
    remat: bool = True,
) -> jax.tree_util.Partial:
    """How well images fit a text: the cosine of CLIP's, or SigLIP's, two embeddings.

    R(x0, c) = ⟨f(x0), g(c)⟩ / (‖f(x0)‖ ‖g(c)‖), f and g the image and the text tower; the CLIPScore
    of the literature is 2.5 max(R, 0). Differentiable in x0; texts get no gradient.

    Args:
        model: What `gj.models.clip.load` or `gj.models.siglip.load` returned, with both towers.
        tokens: The text of all samples, where there is one: tokens (length,) or (1, length), or
            a string, which the model's tokenizer splits. Its embedding is computed here, once.
        key: Otherwise, where `cond`, a mapping, has the tokens (batch, length) of each sample; a
            `cond` that is an array holds the tokens itself. Floats (batch, dimension) are taken for
            the texts' embeddings, computed beforehand, which saves the text tower.
        decode: From x0 to images in [-1, 1], (batch, height, width, 3): the decoder of latents. A
            pytree keeps its arrays as leaves, as `jax.tree_util.Partial(vae.decode, params)` does.
        remat: Whether the decoder and the image tower run again in the backward pass rather than
            keep what they computed in between; the values are the same.

    Returns:
        `reward(x0, cond)`, (batch,) in [-1, 1] without units, float32 at least; a pytree whose
        leaves are the frozen parameters. 0, with gradient 0, where an embedding is 0.

    Raises:
        ValueError: For a model without either tower, a string without a tokenizer, several texts
            for all; when called, for x0 that isn't images, `cond` without tokens, and tokens of
            another batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from guidejax.models import clip
        >>> from guidejax.models.preprocess import Preprocess
        >>> config = clip.Config(
        ...     clip.TextConfig(8, 16, 1, 2, embedding=4, vocabulary=10, length=5, end=9),
        ...     clip.VisionConfig(8, 16, 1, 2, embedding=4, image_size=8, patch=4),
        ... )
        >>> params = {k: jnp.ones(s) for k, s in clip.shapes(config).items()}
        >>> model = clip.Clip(params, config, Preprocess(8))
        >>> reward = clip_score(model, key="caption")
        >>> cond = {"caption": jnp.array([[1, 9], [2, 9]])}
        >>> reward(jnp.zeros((2, 16, 16, 3)), cond).shape
        (2,)

    References:
        Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, 2021.
    """
    for tower, what in (("vision", "image"), ("text", "text")):
        if getattr(getattr(model, "config", None), tower, None) is None:
            raise ValueError(f"the model has no {what} tower; expected a CLIP or SigLIP with both.")
    fixed = None
    if tokens is not None:
        fixed = _embedding(model, _one_text(model, tokens))
        model = images_only(model)
    else:
        # It can't be compared by value, so that two loads of one model would be two programs.
        model = dataclasses.replace(model, tokenizer=None)
    if decode is not None and jax.tree_util.all_leaves([decode]):
        decode = jax.tree_util.Partial(decode)
    return jax.tree_util.Partial(_score, _Judge(model, fixed, decode, key, remat))


def _one_text(model: Any, tokens: Any) -> Array:
    if isinstance(tokens, str | Sequence) and all(isinstance(t, str) for t in tokens):
        if model.tokenizer is None:
            raise ValueError(
                "the model came without a tokenizer's files; give tokens instead of a string."
            )
        tokens = model.tokenizer(tokens)
    tokens = jnp.asarray(tokens)
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or tokens.shape[0] != 1:
        raise ValueError(
            f"tokens have shape {tokens.shape}; expected one text for all samples, (length,) or "
            "(1, length). Texts of each sample come with `cond`."
        )
    return tokens


def _embedding(model: Any, tokens: Any) -> Array:
    """Of texts, of length 1."""
    if jnp.issubdtype(jnp.result_type(tokens), jnp.floating):
        found = jnp.asarray(tokens)
        if found.ndim != 2:
            raise ValueError(
                f"texts' embeddings have shape {found.shape}; expected (batch, dimension)."
            )
    else:
        found = model.text(tokens).embedding
    if found is None:
        raise ValueError("the text tower has no projection; expected a CLIP with both towers.")
    return jax.lax.stop_gradient(unit(upcast(found)))


def _score(judge: _Judge, x0: Any, cond: Any) -> Array:
    text = judge.fixed
    if text is None:
        text = _embedding(judge.model, _tokens_of(cond, judge.key))
        if text.shape[0] != batch_size(x0):
            raise ValueError(
                f"there are tokens of {text.shape[0]} texts for {batch_size(x0)} samples; expected "
                "one text a sample."
            )

    def images(model, decode, x0):
        found = model.image(x0 if decode is None else decode(x0)).embedding
        if found is None:
            raise ValueError("the image tower has no projection; expected a CLIP with both towers.")
        if found.shape[1] != text.shape[1]:
            raise ValueError(
                f"texts' embeddings have {text.shape[1]} dimensions and images' {found.shape[1]}; "
                "expected those of one model."
            )
        return found

    if judge.remat:
        images = jax.checkpoint(images)
    return dot(unit(upcast(images(judge.model, judge.decode, x0))), text)


def _tokens_of(cond: Any, key: str) -> Any:
    if isinstance(cond, Mapping):
        if key not in cond:
            raise ValueError(
                f"`cond` has {', '.join(map(str, cond)) or 'nothing'}; expected the texts' tokens "
                f"under {key!r}: give `key`, or one text for all as `tokens`."
            )
        return cond[key]
    if cond is None:
        raise ValueError("`cond` is None; expected the texts' tokens, or one text as `tokens`.")
    return cond
