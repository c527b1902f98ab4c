"""What is true of every public metric; one is tested by being listed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax import metrics
from guidejax.metrics import (
    branch_angle,
    class_diversity,
    coverage,
    density,
    effective_omega,
    energy_distance,
    frechet_distance,
    frechet_from_moments,
    grouped_energy_distance,
    kernel_inception_distance,
    knn_radii,
    manifold_scores,
    mean_pairwise_distance,
    median_bandwidth,
    mmd_polynomial,
    mmd_rbf,
    moments,
    off_line_fraction,
    pairwise_distance_power,
    precision,
    recall,
    stage_diagnostics,
    vendi_from_kernel,
    vendi_score,
)

X, Y = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
BROKEN = X.copy()
BROKEN[2, 1] = np.nan
ROW, COLUMN = np.arange(6) == 2, np.arange(3) == 1
LABELS = np.array([0, 1, 0, 0, 1, 1])
OF_CLASS_0 = np.array([True, False])
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of one metric on x and y (6, 3).

    `broken` says which values of each result are NaN where x holds one at [2, 1]. The results are
    homogeneous of `degree` in (x, y); None where powers of them leave the dtype by definition.
    """

    metric: Callable[..., Any]
    call: Callable[[Any, Any], Any]
    degree: int | None
    broken: tuple[Any, ...] = (True,)
    how: str = ""


def cosines(x):
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x @ x.T


def correlated(value):
    """The 3 x 3 identity with `value` off the diagonal."""
    return jnp.eye(3, dtype=value.dtype).at[0, 1].set(value).at[1, 0].set(value)


def _network(x, t, cond):
    return jnp.tanh(x + cond[:, None])


BENDS = gj.denoiser(_network, gj.processes.rectified_flow())


def stages(x, y):
    """Two conditions of three samples; NaN spoils the first, and of μ̄ the element alone."""
    return stage_diagnostics(
        KEY, BENDS, x, cond=np.repeat(np.array([0.5, -1.0], np.float32), 3), uncond=2.0,
        guidance=gj.guidance(gj.cfg, 1.0), times=gj.uniform_times(3), samples=3, perturb=[1],
        modes=y[:2],
    )  # fmt: skip


CASES = [
    Case(energy_distance, energy_distance, 1),
    Case(
        energy_distance,
        lambda x, y: energy_distance(y, x, unbiased=False, method="gram", chunk=4),
        1,
        how="second",
    ),
    Case(
        grouped_energy_distance,
        lambda x, y: grouped_energy_distance(x, LABELS, y, LABELS, 2, method="gram"),
        1,
        (OF_CLASS_0,),
    ),
    Case(pairwise_distance_power, pairwise_distance_power, 1, (ROW[:, None],)),
    Case(
        pairwise_distance_power,
        lambda x, y: pairwise_distance_power(y, x, method="gram"),
        1,
        (ROW,),
        how="gram",
    ),
    Case(mean_pairwise_distance, lambda x, y: mean_pairwise_distance(x), 1),
    Case(class_diversity, lambda x, y: class_diversity(x, LABELS, 2), 1, (OF_CLASS_0,)),
    Case(vendi_score, lambda x, y: vendi_score(x), 0),
    Case(vendi_from_kernel, lambda x, y: vendi_from_kernel(cosines(x)), None),
    Case(moments, lambda x, y: moments(x), None, (COLUMN, COLUMN | COLUMN[:, None])),
    Case(frechet_distance, frechet_distance, None),
    Case(frechet_from_moments, lambda x, y: frechet_from_moments(*moments(x), *moments(y)), None),
    Case(
        frechet_from_moments,
        lambda x, y: frechet_from_moments(y[0], np.eye(3), y[1], correlated(x[2, 1])),
        None,
        how="off the diagonal",
    ),
    Case(effective_omega, lambda x, y: effective_omega(x, y, -x), 0, (ROW,)),
    Case(effective_omega, lambda x, y: effective_omega(x, y, y), 0, (ROW,), how="no difference"),
    Case(off_line_fraction, lambda x, y: off_line_fraction(x, y, 2 * y), 0, (ROW,)),
    Case(off_line_fraction, lambda x, y: off_line_fraction(y, -y, x), 0, (ROW,), how="uncond"),
    Case(branch_angle, branch_angle, 0, (ROW,)),
    Case(branch_angle, lambda x, y: branch_angle(0 * y, x), 0, (ROW,), how="beside 0"),
    Case(
        manifold_scores,
        lambda x, y: manifold_scores(x, y, 2, per_sample=True),
        0,
        (True, ROW, True, True),
    ),
    Case(
        manifold_scores,
        lambda x, y: manifold_scores(y, x, 2, per_sample=True, chunk=4),
        0,
        (ROW, True, ROW, True),
        how="fake",
    ),
    Case(precision, precision, 0),
    Case(recall, recall, 0),
    Case(density, lambda x, y: density(y, x), 0),
    Case(coverage, lambda x, y: coverage(y, x), 0),
    Case(knn_radii, lambda x, y: knn_radii(x), 1),
    Case(median_bandwidth, median_bandwidth, 1),
    Case(mmd_rbf, mmd_rbf, 0),
    Case(mmd_rbf, lambda x, y: mmd_rbf(y, y + 1, jnp.abs(x[:, 1])), None, how="bandwidths"),
    Case(mmd_polynomial, mmd_polynomial, None),
    Case(
        kernel_inception_distance,
        lambda x, y: kernel_inception_distance(KEY, x, y, 6, subsets=2),
        None,
    ),
    Case(
        stage_diagnostics,
        stages,
        None,
        # t, s, μ̄, ω; of steps; shares; when and what grew.
        (
            False,
            False,
            COLUMN & OF_CLASS_0[:, None],
            False,
            *[OF_CLASS_0] * 7,
            *[OF_CLASS_0[:, None]] * 2,
            False,
            *[OF_CLASS_0] * 3,
        ),
    ),
]


def by_name(case):
    return f"{case.metric.__name__} {case.how}".strip()


def test_every_metric_is_listed():
    public = {f for n, f in vars(metrics).items() if n[0] != "_" and callable(f)}
    assert {case.metric for case in CASES} == {f for f in public if not isinstance(f, type)}


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_nan_in_nan_out_at_any_magnitude(case):
    call = jax.jit(case.call)
    clean, broken = (jax.tree.leaves(call(x, Y)) for x in (X, BROKEN))
    for value, result, where in zip(clean, broken, case.broken, strict=True):
        assert np.all(np.isfinite(value))
        np.testing.assert_array_equal(np.isnan(result), np.broadcast_to(where, result.shape))
    # Squares of these vanish or overflow; these powers of two round nothing.
    for scale in (2.0**-100, 2.0**-70, 2.0**66) if case.degree is not None else ():
        scaled = jax.tree.leaves(call(X * np.float32(scale), Y * np.float32(scale)))
        for value, result in zip(clean, scaled, strict=True):
            np.testing.assert_allclose(result, value * scale**case.degree, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_dtypes_and_vmap(case):
    plain = jax.tree.leaves(jax.eval_shape(case.call, X, Y))
    assert {result.dtype for result in plain} == {jnp.dtype(jnp.float32)}
    halves = X.astype(jnp.bfloat16), Y.astype(jnp.bfloat16)
    assert jax.tree.leaves(jax.eval_shape(case.call, *halves)) == plain
    stacked = jax.tree.leaves(jax.eval_shape(jax.vmap(case.call), *np.zeros((2, 4, 6, 3))))
    assert [result.shape for result in stacked] == [(4, *result.shape) for result in plain]
    with jax.enable_x64(True):
        doubles = jax.tree.leaves(jax.eval_shape(case.call, X.astype(float), Y.astype(float)))
    assert {result.dtype for result in doubles} == {jnp.dtype(jnp.float64)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_vmap_is_one_at_a_time(case):
    x, y = np.random.default_rng(1).normal(size=(2, 3, 6, 3)).astype(np.float32)
    call = jax.jit(case.call)
    many = jax.jit(jax.vmap(case.call))(x, y)
    alone = [jax.tree.leaves(call(a, b)) for a, b in zip(x, y, strict=True)]
    for result, each in zip(jax.tree.leaves(many), zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(result, np.stack(each), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_a_known_nan_and_an_empty_batch_raise(case):
    with pytest.raises(ValueError, match="NaN"):
        case.call(BROKEN, Y)
    if case.how not in ("off the diagonal", "bandwidths"):  # those have no batch
        with pytest.raises(ValueError, match="empty"):
            case.call(X[:0], Y[:0])
