"""Keras 3 on JAX: a model as a network and a pytree of its variables."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any


def _listed(x: Any, t: Any, cond: Any) -> Any:
    return [x, t] if cond is None else [x, t, cond]


@dataclasses.dataclass(frozen=True)
class _Network:
    """`stateless_call` of one model; equal for the same model, so that it compiles once."""

    model: Any
    inputs: Callable[[Any, Any, Any], Any]

    def __call__(self, params, x, t, cond):
        given = self.inputs(x, t, cond)
        given = given if isinstance(given, tuple) else (given,)
        output, _ = self.model.stateless_call(
            params["trainable"], params["non_trainable"], *given, training=False
        )
        return output


def network(
    model: Any, inputs: Callable[[Any, Any, Any], Any] | None = None
) -> tuple[Callable[..., Any], dict[str, list[Any]]]:
    """A Keras model as (network, params) for `gj.denoiser`, in eval mode.

        network, params = gj.interop.keras.network(model)
        denoise = gj.denoiser(network, process, prediction="eps", params=params)

    Calls `model.stateless_call(trainable, non_trainable, ..., training=False)`: dropout and batch
    norm do as in inference, and what they would update is dropped. The variables are a pytree of
    traced arrays; the model's own stay as they are.

    Args:
        model: A built Keras 3 model, with the backend "jax": functional, sequential or subclassed.
        inputs: `inputs(x, t, cond)`, what the model is called with: a tuple is its positional
            arguments, anything else its one argument. By default the list [x, t, cond], as
            functional models take it, without cond where that is None.

    Returns:
        `network(params, x, t, cond)`, and params, {"trainable": [...], "non_trainable": [...]}.

    Raises:
        ValueError: If the model has no `stateless_call`, isn't built, or Keras has another backend.

    Example:
        >>> class Model:  # a stand-in: what is used of a Keras model
        ...     built, trainable_variables, non_trainable_variables = True, [2.0], []
        ...     def stateless_call(self, trainable, non_trainable, inputs, training):
        ...         return trainable[0] * inputs[0], non_trainable
        >>> fn, params = network(Model())
        >>> fn(params, 3.0, 0.5, None)
        6.0

    Source: `keras.Layer.stateless_call`, https://keras.io/api/layers/base_layer.
    """
    if not hasattr(model, "stateless_call"):
        raise ValueError(
            f"expected a Keras 3 model, which has stateless_call; got {type(model).__name__}."
        )
    if not getattr(model, "built", True):
        raise ValueError(
            "the Keras model isn't built, and has no variables yet: call it once, or "
            "model.build(...)."
        )
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(model, keras.Layer) and keras.config.backend() != "jax":
        raise ValueError(
            f"Keras runs on {keras.config.backend()!r}; expected 'jax': set KERAS_BACKEND=jax in "
            "the environment before keras is imported."
        )
    values = lambda variables: [getattr(v, "value", v) for v in variables]  # noqa: E731
    params = {
        "trainable": values(model.trainable_variables),
        "non_trainable": values(model.non_trainable_variables),
    }
    return _Network(model, inputs or _listed), params
