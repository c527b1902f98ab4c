"""The learned weight ω^φ(c, s, t): a small network of log-SNRs and, if asked, of what is there."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidejax._arrays import Array, flat, is_concrete, norm
from guidejax._geometry import angle
from guidejax.weights.base import Step, Weight

# The knee of a range: how far from an end its slope begins to fall, as a share of its scale.
KNEE = 0.01


@dataclasses.dataclass(frozen=True)
class Range:
    """Where an output of `OmegaNet` may lie, and where it starts.

    Attributes:
        init: The value before any training, within the ends.
        lo: The lower end, None for none.
        hi: The upper end, None for none.

    Raises:
        ValueError: If `init` is not between the ends.
    """

    init: float
    lo: float | None = None
    hi: float | None = None

    def __post_init__(self):
        low = -math.inf if self.lo is None else self.lo
        high = math.inf if self.hi is None else self.hi
        if not low < self.init < high:
            raise ValueError(f"expected lo < init < hi, got {self.lo}, {self.init}, {self.hi}.")

    def bias(self) -> float:
        """The z that `value` takes to `init`."""
        if self.lo is not None and self.hi is not None:
            share = (self.init - self.lo) / (self.hi - self.lo)
            return math.log(share / (1 - share))
        if self.lo is None and self.hi is None:
            return self.init
        end = self.lo if self.lo is not None else self.hi
        gap = abs(self.init - end)  # type: ignore[operator]
        z = gap - KNEE / (4 * gap)
        return z if self.lo is not None else -z

    def value(self, z: Array) -> Array:
        """Any z as a number of the range, rising: a sigmoid between two ends, else `positive`."""
        if self.lo is not None and self.hi is not None:
            return self.lo + (self.hi - self.lo) * jax.nn.sigmoid(z)
        if self.lo is not None:
            return self.lo + positive(z)
        return z if self.hi is None else self.hi - positive(-z)


def positive(z: Array) -> Array:
    """(z + √(z² + b))/2, b = 0.01: z where that is large, b/(4 |z|) where it is negative.

    Unlike softplus it neither slows an ω near 0.05, where many a good weight lies, nor dies where
    z has become negative: its slope falls as 1/z², not exponentially.
    """
    root = jnp.sqrt(z**2 + KNEE)
    # z + root of a negative z is a difference of equals; the same without it:
    return 0.5 * jnp.where(z >= 0, z + root, KNEE / (root + jnp.abs(z)))


# Ranges of the numbers that are most often learned.
RANGES = {
    "omega": Range(1.0, lo=0.0),
    "eta": Range(0.5, lo=0.0, hi=1.0),  # `apg`
    "low": Range(0.5, lo=0.0),  # `fdg`
    "max_angle": Range(math.pi / 3, lo=0.0, hi=math.pi / 2),  # `adg`
    "phi": Range(0.5, lo=0.0, hi=1.0),  # `rescale`
}


def _branches(step: Step) -> tuple[Array, Array]:
    """x̂0 of "cond" and of "uncond", or of the first other branch: (batch, d) each."""
    found = step.needs("predictions", "an OmegaNet that sees the predictions")
    names = [name for name in found if name != "cond"]
    other = "uncond" if "uncond" in names or not names else names[0]
    return flat(found["cond"]), flat(found.get(other, found["cond"]))


def _log_rms(x: Array) -> Array:
    """log of the root mean square of each sample, from −5 up: (batch,)."""
    return jnp.log(norm(x) / x.shape[1] ** 0.5 + math.exp(-5.0))


def _angle(step: Step) -> Array:
    return angle(*_branches(step))[:, None]


def _norms(step: Step) -> Array:
    cond, uncond = _branches(step)
    return jnp.stack([_log_rms(cond), _log_rms(uncond)], axis=-1)


def _delta(step: Step) -> Array:
    cond, uncond = _branches(step)
    return _log_rms(cond - uncond)[:, None]


def _state(step: Step) -> Array:
    return _log_rms(flat(step.needs("x", "an OmegaNet that sees x_t")))[:, None]


# What a weight may see of a step, by name: functions of a `Step` to (batch, features).
SIGHTS: dict[str, Callable[[Step], Array]] = {
    "angle": _angle,
    "norms": _norms,
    "delta": _delta,
    "state": _state,
}


@dataclasses.dataclass(frozen=True)
class OmegaNet:
    """ω^φ(c, s, t), and any other numbers of a rule, by one network: an `(init, weights)` pair.

    Galashov et al. 2510.00815, §3: log-SNR features of both times through a two-layer encoder,
    the condition added, a residual MLP, one output a number, kept within its `Range`. The paper
    ends in a ReLU, which gets no gradient once it is negative everywhere; ω here is
    (z + √(z² + 0.01))/2, which always moves. The last layer starts at zero, so that training begins
    at constants.

    Attributes:
        num_classes: Number of classes where the condition is class ids (batch,); else None.
        cond_dim: Length of the condition where it is an embedding (batch, cond_dim); else None.
            Both None: the times alone.
        hidden: Width.
        depth: Residual layers after the encoder.
        init_omega: ω before any training, positive.
        outputs: The numbers it gives, by the names of the rule's: a tuple of names, "omega" among
            them or not, or a mapping of names to `Range`s. Known names have their own ranges:
            omega and FDG's low are positive, APG's eta and rescale's phi lie in (0, 1), ADG's
            max_angle in (0, π/2).
        sees: What it sees of the step beside c, s and t, of each sample: "angle" between the
            predictions, "norms" of both, "delta" of their difference, "state" of x_t, each norm as
            the log of a root mean square; or functions of a `Step` to (batch, features). Such a
            weight is evaluated in the sampler's loop.
        cond: What of the network's condition it sees: a function, `lambda c: c["pooled"]`; None is
            all of it.

    Raises:
        ValueError: If both `num_classes` and `cond_dim` are given, a size is not positive, or an
            output or a sight is unknown.

    Example:
        >>> from guidejax.processes import rectified_flow
        >>> net = OmegaNet(num_classes=10)
        >>> phi = net.init(jax.random.key(0))
        >>> omega = net.weight(phi)(0.4, 0.5, jnp.arange(3), process=rectified_flow())
        >>> omega.shape, round(float(omega[0]), 4)
        ((3,), 1.0)
        >>> sorted(OmegaNet(cond_dim=8, outputs=("omega", "eta")).init(jax.random.key(0)))[:1]
        ['Dense_0']
    """

    num_classes: int | None = None
    cond_dim: int | None = None
    hidden: int = 64
    depth: int = 3
    init_omega: float = 1.0
    outputs: Any = ("omega",)
    sees: tuple[Any, ...] = ()
    cond: Callable[[Any], Any] | None = None

    def __post_init__(self):
        if self.num_classes is not None and self.cond_dim is not None:
            raise ValueError("give OmegaNet `num_classes` or `cond_dim`, not both.")
        for name in ("num_classes", "cond_dim", "hidden"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"OmegaNet expects a positive {name}, got {size}.")
        if not self.init_omega > 0:
            raise ValueError(f"OmegaNet expects init_omega > 0, got {self.init_omega}.")
        outputs = {self.outputs: None} if isinstance(self.outputs, str) else self.outputs
        if not isinstance(outputs, Mapping):
            outputs = {each if isinstance(each, str) else each[0]: each for each in outputs}
        ranges = {}
        for name, given in outputs.items():
            if isinstance(given, tuple) and len(given) == 2 and given[0] == name:
                given = given[1]  # Of another network's `outputs`.
            if not (given is None or given == name or isinstance(given, Range)):
                raise ValueError(
                    f"OmegaNet's output {name!r} is given {given!r}; expected a range, "
                    "gj.weights.Range(init, lo, hi), or None for its usual one."
                )
            if not isinstance(given, Range):
                if name not in RANGES:
                    raise ValueError(
                        f"OmegaNet knows no range for the output {name!r}; give "
                        f"outputs={{{name!r}: gj.weights.Range(init, lo, hi)}}."
                    )
                given = RANGES[name]
                if name == "omega":
                    given = dataclasses.replace(given, init=self.init_omega)
            ranges[name] = given
        # Hashable, so that equal networks share a compiled program.
        object.__setattr__(self, "outputs", tuple(ranges.items()))
        sees = (self.sees,) if isinstance(self.sees, str) or callable(self.sees) else self.sees
        for sight in sees:
            if not callable(sight) and sight not in SIGHTS:
                raise ValueError(
                    f"OmegaNet can't see {sight!r}; expected one of {', '.join(SIGHTS)}, or a "
                    "function of a Step."
                )
        object.__setattr__(self, "sees", tuple(sees))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> OmegaNet:
        """The network of the settings that a checkpoint holds."""
        settings = dict(settings)
        outputs = {
            name: Range(**{k: v for k, v in each.items() if k != "kind"})
            for name, each in settings.pop("outputs")
        }
        return cls(**{**settings, "outputs": outputs, "sees": tuple(settings["sees"])})

    @property
    def _module(self) -> Any:
        biases = tuple(each.bias() for _, each in self.outputs)
        return _mlp()(self.num_classes, self.cond_dim, self.hidden, self.depth, biases)

    def _sight(self, step: Step) -> Array | None:
        if not self.sees:
            return None
        looks = [SIGHTS[s] if isinstance(s, str) else s for s in self.sees]
        return jnp.concatenate([jnp.asarray(look(step)) for look in looks], axis=-1)

    def _sight_width(self) -> int:
        """Features that it sees, found on a state of one number."""
        one = jnp.ones((1, 1))
        predictions = {"cond": one, "uncond": one}
        step = Step(0.0, 1.0, None, None, None, one, predictions)
        return 0 if not self.sees else self._sight(step).shape[-1]  # type: ignore[union-attr]

    def init(self, key: Array) -> Any:
        """Fresh parameters φ."""
        cond = None
        if self.num_classes is not None:
            cond = jnp.zeros((1,), jnp.int32)
        elif self.cond_dim is not None:
            cond = jnp.zeros((1, self.cond_dim))
        width = 3 + self._sight_width()
        return self._module.init(key, jnp.zeros((1, width)), cond)["params"]

    def apply(self, phi: Any, step: Step) -> Array:
        """Every output at a step: (batch, outputs), or (outputs,) where nothing is batched."""
        process = step.needs("process", "a learned weight")
        times = (step.needs("s", "a learned weight"), step.needs("t", "a learned weight"))
        s, t = jnp.broadcast_arrays(*(jnp.asarray(time, jnp.result_type(float)) for time in times))
        # λ is +∞ at t = 0 and −∞ at t = 1; ±10 is where nothing is left to tell apart.
        low, high = (jnp.clip(process.log_snr(time), -10, 10) for time in (t, s))
        features = jnp.stack([low / 5, high / 5, (high - low) / 5], axis=-1)
        cond = self._seen(step.cond)
        seen = self._sight(step)
        if cond is not None or seen is not None:
            batch = (cond if cond is not None else seen).shape[0]  # type: ignore[union-attr]
            features = jnp.broadcast_to(features, (batch, features.shape[-1]))
        if seen is not None:
            features = jnp.concatenate([features, seen.astype(features.dtype)], axis=-1)
        z = self._module.apply({"params": phi}, features, cond)
        values = [each.value(z[..., i]) for i, (_, each) in enumerate(self.outputs)]
        return jnp.stack(values, axis=-1)

    def _seen(self, cond: Any) -> Array | None:
        if self.num_classes is None and self.cond_dim is None:
            return None
        if cond is None:
            self.check(None)
        return jnp.asarray(cond if self.cond is None else self.cond(cond))

    def weights(self, phi: Any) -> dict[str, Any]:
        """Every output as a `Weight`, by name: `gj.guidance(gj.apg, **net.weights(phi))`."""
        sees = bool(self.sees)
        return {
            name: Weight(phi, _Output(self, index), None, sees)
            for index, (name, _) in enumerate(self.outputs)
        }

    def weight(self, phi: Any) -> Weight:
        """ω as a `Weight`, to be used wherever a number is.

        Raises:
            ValueError: If none of `outputs` is "omega".
        """
        found = self.weights(phi)
        if "omega" not in found:
            raise ValueError(
                f"this OmegaNet gives {', '.join(found)} and no omega: "
                "gj.guidance(rule, omega=..., **net.weights(phi))."
            )
        return found["omega"]

    def check(self, cond: Any, who: str = "OmegaNet") -> None:
        """Raise `ValueError` where `cond` is not what this network was built for."""
        if self.num_classes is None and self.cond_dim is None:
            return
        if cond is None:
            raise ValueError(f"{who}: this OmegaNet depends on the condition; got cond=None.")
        if self.cond is not None:
            cond = self.cond(cond)
        shape = np.shape(cond)
        if self.cond_dim is None:
            check_labels(cond, self.num_classes, who)
        elif len(shape) != 2 or shape[1] != self.cond_dim:
            raise ValueError(
                f"{who}: OmegaNet(cond_dim={self.cond_dim}) expects cond of shape "
                f"(batch, {self.cond_dim}), got {shape}. To see a part of it: OmegaNet(cond=...)."
            )


@dataclasses.dataclass(frozen=True)
class _Output:
    """One of a network's outputs, as the function of a `Weight`."""

    net: OmegaNet
    index: int

    def __call__(self, phi: Any, step: Step) -> Array:
        return self.net.apply(phi, step)[..., self.index]

    def check(self, cond: Any, who: str = "OmegaNet") -> None:
        self.net.check(cond, who)


_MLP: Any = None


def _mlp() -> Any:
    """The module's class, made when it is first needed: Flax takes a second to import."""
    global _MLP
    if _MLP is not None:
        return _MLP
    from flax import linen as nn

    class MLP(nn.Module):
        num_classes: int | None
        cond_dim: int | None
        hidden: int
        depth: int
        biases: tuple[float, ...]

        @nn.compact
        def __call__(self, features: Array, cond: Array | None) -> Array:
            # A TPU multiplies float32 arrays in bfloat16 unless it is told not to.
            dense = functools.partial(nn.Dense, precision="highest")
            h = dense(self.hidden)(nn.silu(dense(self.hidden)(features)))
            if self.num_classes is not None:
                # A one-hot product, not a gather: nn.Embed raises on a label array that is sharded
                # over an explicit mesh.
                one_hot = jax.nn.one_hot(cond, self.num_classes, dtype=features.dtype)
                table = dense(self.hidden, use_bias=False, kernel_init=nn.initializers.normal(1.0))
                # A label that isn't known when this is traced, and is no class, has no ω.
                known = jnp.any(one_hot != 0, axis=-1, keepdims=True)
                h = h + jnp.where(known, table(one_hot), jnp.nan)
            elif cond is not None:
                projected = nn.silu(dense(self.hidden)(cond.astype(features.dtype)))
                h = h + dense(self.hidden)(projected)
            for _ in range(self.depth):
                h = h + dense(self.hidden)(nn.silu(nn.LayerNorm()(h)))
            out = dense(
                len(self.biases),
                kernel_init=nn.initializers.zeros,
                bias_init=lambda key, shape, dtype: jnp.asarray(self.biases, dtype),
            )
            return out(nn.silu(nn.LayerNorm()(h)))

    _MLP = MLP
    return MLP


def check_labels(cond: Any, num_classes: int | None, who: str) -> None:
    """Raise `ValueError` unless `cond` is class ids (batch,) in [0, num_classes)."""
    if len(np.shape(cond)) != 1 or not jnp.issubdtype(jnp.asarray(cond).dtype, jnp.integer):
        raise ValueError(
            f"{who} expects integer class ids of shape (batch,), got shape {np.shape(cond)} and "
            f"dtype {jnp.asarray(cond).dtype}."
        )
    if (
        num_classes is not None
        and is_concrete(cond)
        and getattr(cond, "is_fully_addressable", True)
    ):
        labels = np.asarray(cond)
        if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
            bad = labels[(labels < 0) | (labels >= num_classes)][0]
            raise ValueError(
                f"{who}: label {bad} is out of range; expected 0 to {num_classes - 1} "
                f"(num_classes={num_classes})."
            )
