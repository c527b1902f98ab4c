"""Class-conditional mixtures and their exact denoisers, ready for `guidejax.sample`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, is_concrete
from guidejax._denoisers import Denoiser
from guidejax.analytic._mixture import Mixture, draw, posterior
from guidejax.processes import Process


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassMixture:
    """p(x | y) = Σ_k w_k|y N_k for labels y, and the unconditional model for the null label.

    Made by `by_class` and `with_unconditional`. The labels are 0, ..., C − 1 and the null label
    is C, `null`; a condition of None is the null label everywhere.

    Attributes:
        components: All the Gaussians, of which each label has its share.
        table: log w_k|y, (C + 1, K), the last row that of the null label; −∞ for no share.
    """

    components: Mixture
    table: Array

    @property
    def null(self) -> int:
        """The null label C: the unconditional model."""
        return self.table.shape[0] - 1

    def rows(self, cond: Any, batch: int) -> Array:
        """Log-weights of each sample, (batch, K); NaN comes of a traced label out of range.

        Raises:
            ValueError: If a label that is known now is out of range or `cond` is not (batch,).
        """
        if cond is None:
            return jnp.broadcast_to(self.table[-1], (batch, self.table.shape[1]))
        if jnp.shape(cond) != (batch,):
            raise ValueError(f"expected ({batch},) labels, got shape {jnp.shape(cond)}.")
        if is_concrete(cond) and getattr(cond, "is_fully_addressable", True):
            labels = np.asarray(cond)
            known = np.isin(labels, np.arange(self.null + 1))
            if not np.all(known):
                raise ValueError(
                    f"labels must be 0 to {self.null}, {self.null} being the null label; "
                    f"got {labels[~known][0]}."
                )
        # A comparison, not a gather, which raises on labels sharded over an explicit mesh.
        chosen = jnp.asarray(cond)[:, None, None] == jnp.arange(self.null + 1)[None, :, None]
        return jnp.max(jnp.where(chosen, self.table, -jnp.inf), axis=1)

    def denoise(self, x: Array, t: Array, cond: Any, process: Process) -> Array:
        """E[x0 | x_t = x, y], the shape of `x`; see `Mixture.denoise`.

        Args:
            x: x_t, (batch, ...).
            t: Time, scalar or (batch,).
            cond: Labels y, (batch,), or None.
            process: The noising process.
        """
        return posterior(self.components, self.rows(cond, x.shape[0]), x, t, process)[1]

    def score(self, x: Array, t: Array, cond: Any, process: Process) -> Array:
        """∇ log p_t(x | y), the shape of `x`."""
        return posterior(self.components, self.rows(cond, x.shape[0]), x, t, process)[2]

    def log_prob(self, x: Array, t: Array, cond: Any, process: Process) -> Array:
        """log p_t(x | y), (batch,)."""
        return posterior(self.components, self.rows(cond, x.shape[0]), x, t, process)[3]

    def sample(self, key: Array, cond: Array) -> Array:
        """One sample of the data for each label: (batch,) -> (batch, d)."""
        return draw(self.components, key, self.rows(cond, jnp.shape(cond)[0]))


def by_class(components: Mixture, labels: Any) -> ClassMixture:
    """The classes of a mixture's components; the unconditional model is the whole mixture.

    Args:
        components: The mixture of all classes.
        labels: The class of each component, (K,) integers from 0.

    Raises:
        ValueError: If there is not one label a component, or a class has none.

    Example:
        >>> from guidejax.analytic import mixture
        >>> from guidejax.processes import rectified_flow
        >>> model = by_class(mixture([[-2.0], [2.0]], stds=0.5), [0, 1])
        >>> x = jnp.array([[1.0], [1.0], [1.0]])
        >>> model.denoise(x, 1.0, jnp.array([0, 1, model.null]), rectified_flow()).tolist()
        [[-2.0], [2.0], [0.0]]
    """
    labels = np.asarray(labels)
    count = components.means.shape[0]
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected ({count},) integer labels, got {labels}.")
    missing = sorted(set(range(int(labels.max()) + 1)) - set(labels.tolist()))
    if missing or labels.min() < 0:
        raise ValueError(f"expected classes 0 to {labels.max()}, each with a component; {labels}.")
    member = labels[None, :] == np.arange(labels.max() + 1)[:, None]
    member = np.concatenate([member, np.ones((1, count), bool)])
    return ClassMixture(components, jnp.where(member, components.log_weights, -jnp.inf))


def with_unconditional(classes: Sequence[Mixture], unconditional: Mixture) -> ClassMixture:
    """One mixture a class, and an unconditional model that need not be their sum.

    What guidance does where the unconditional model is another's: the stage-wise paper's setting
    (`stagewise`), a weak model, a base model before fine-tuning.

    Raises:
        ValueError: If dimensions differ, or only some of the mixtures have full covariances.

    Example:
        >>> from guidejax.analytic import gaussian
        >>> model = with_unconditional([gaussian([3.0], 0.5)], gaussian([0.0], 1.0))
        >>> model.null, model.sample(jax.random.key(0), jnp.array([0, 1])).shape
        (1, (2, 1))
    """
    parts = [*classes, unconditional]
    if len({part.means.shape[1] for part in parts}) != 1:
        raise ValueError(f"dimensions differ: {[part.means.shape[1] for part in parts]}.")
    if len({part.basis is None for part in parts}) != 1:
        raise ValueError("give `covariances` for all the mixtures or for none.")
    owner = np.concatenate([np.full(part.means.shape[0], i) for i, part in enumerate(parts)])
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    own = owner[None, :] == np.arange(len(parts))[:, None]
    return ClassMixture(together, jnp.where(own, together.log_weights, -jnp.inf))


def _network(params: Any, x: Array, t: Array, cond: Any) -> Array:
    model, process = params
    if isinstance(model, Mixture):
        return model.denoise(x, t, process)
    return model.denoise(x, t, cond, process)


def denoiser(model: Mixture | ClassMixture, process: Process) -> Denoiser:
    """The exact denoiser of a mixture, as `guidejax.sample` takes it.

    A `Mixture` has no classes: its denoiser takes any condition and ignores it. The mixture's
    numbers are traced: another mixture of the same size doesn't recompile.

    Example:
        >>> import guidejax as gj
        >>> from guidejax.analytic import mixture
        >>> process = gj.processes.rectified_flow()
        >>> model = by_class(mixture([[-2.0], [2.0]], stds=0.1), [0, 1])
        >>> x = gj.sample(jax.random.key(0), denoiser(model, process),
        ...               jax.random.normal(jax.random.key(1), (4, 1)), cond=jnp.ones(4, int),
        ...               uncond=model.null, guidance=gj.guidance(gj.cfg, omega=1.0),
        ...               times=gj.uniform_times(20))
        >>> bool((jnp.abs(x - 2) < 0.5).all())
        True
    """
    return Denoiser((model, process), process, None, _network, "x0")
