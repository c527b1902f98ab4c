"""The objectives against loops in NumPy, and Algorithm 1's times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import guidejax as gj
from guidejax import objectives
from guidejax.objectives import _self_consistency
from tests.learning.common import KEY, NET, PROCESS, TIMES_ONLY

N, M = 3, 3
SHAPE = (2, 2)
COND = jnp.array([0, 1, 1])
BATCH = objectives.Batch(
    jax.random.normal(jax.random.key(3), (N, *SHAPE)),
    COND,
    {"uncond": jnp.full((N,), 2, jnp.int32)},
)
KEYS = jax.random.split(KEY, N)
OMEGA = {0: 0.8, 1: -0.4}  # By class.


def network(x, t, cond):
    """Not linear, and unlike for each label."""
    gain = 0.3 + 0.2 * cond.astype(x.dtype)
    return jnp.tanh(x) * (gain + t)[:, None, None]


denoise = gj.denoiser(network, PROCESS)


def denoise_np(x, t, label):
    return np.tanh(x) * (0.3 + 0.2 * label + t)


class Record:
    """Every random array that an objective draws, and the times it asks ω for."""

    def __init__(self, monkeypatch):
        self.noise, self.times = [], []

        def draw(key, x, normal=_self_consistency.normal_like):
            self.noise.append(normal(key, x))
            return self.noise[-1]

        monkeypatch.setattr(_self_consistency, "normal_like", draw)

    def omega(self, s, t, cond):
        self.times.append((np.asarray(s, float), np.asarray(t, float)))
        return jnp.where(cond == 0, OMEGA[0], OMEGA[1])

    def particles(self, churn):
        """(moved, true, guided), each (N, M, 4), by the paper's formulas in float64."""
        (s, t), out = self.times[-1], ([], [], [])
        true, noise, fresh = (np.asarray(e, float).reshape(N, M, *SHAPE) for e in self.noise[-3:])
        for i in range(N):
            x0, label = np.asarray(BATCH.x0[i], float), int(COND[i])
            r = lambda a, b, s=s[i], t=t[i]: ((1 - t) / (1 - s)) ** a * (s / t) ** b
            e2 = churn**2
            for j in range(M):
                x = (1 - t[i]) * x0 + t[i] * noise[i, j]
                cond, uncond = denoise_np(x, t[i], label), denoise_np(x, t[i], 2)
                guided = cond + OMEGA[label] * (cond - uncond)
                mean = (e2 * r(1, 2) + (1 - e2) * r(0, 1)) * x
                mean += (1 - s[i]) * (1 - e2 * r(2, 2) - (1 - e2) * r(1, 1)) * guided
                variance = s[i] ** 2 * (1 - (e2 * r(1, 1) + 1 - e2) ** 2)
                out[0].append(mean + np.sqrt(max(variance, 0)) * fresh[i, j])
                out[1].append((1 - s[i]) * x0 + s[i] * true[i, j])
                out[2].append(guided)
        return tuple(np.reshape(part, (N, M, -1)) for part in out)


def run(objective, record, batch=BATCH, keys=KEYS):
    guide = gj.guidance(gj.cfg, omega=record.omega)
    return np.asarray(objective(keys, guide, denoise, batch))


@pytest.mark.parametrize("beta", [0.7, 1.75])
@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("churn", [0.0, 0.6, 1.0])
def test_self_consistency_is_equation_22(monkeypatch, beta, lam, churn):
    record = Record(monkeypatch)
    objective = objectives.self_consistency(beta, M, lam, churn=churn)
    found = run(objective, record)
    moved, true, _ = record.particles(churn)
    expected = np.zeros(N)
    for i in range(N):
        for j in range(M):
            for k in range(M):
                expected[i] += np.linalg.norm(moved[i, j] - true[i, k]) ** beta / M**2
                if j != k:
                    own = np.linalg.norm(moved[i, j] - moved[i, k]) ** beta
                    expected[i] -= lam / 2 * own / (M * (M - 1))
    assert found.shape == (N,)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_l2_is_equation_21(monkeypatch, churn):
    record = Record(monkeypatch)
    found = run(objectives.l2(particles=M, churn=churn), record)
    moved, true, _ = record.particles(churn)
    expected = [
        np.mean([np.sum((a - b) ** 2) for a in moved[i] for b in true[i]]) for i in range(N)
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.slow
def test_l2_takes_one_particle():
    guide = gj.guidance(gj.cfg, omega=1.0)
    loss = objectives.l2()(KEYS, guide, denoise, BATCH)
    assert loss.shape == (N,)
    assert np.all(np.isfinite(loss))


def test_reward_is_of_the_one_step_prediction_and_lowers_the_loss(monkeypatch):
    record, seen = Record(monkeypatch), []

    def reward(x0, cond):
        seen.append((x0, cond))
        return jnp.sum(x0**2, axis=(1, 2)) + cond

    plain = run(objectives.self_consistency(particles=M), record)
    rewarded = run(
        objectives.self_consistency(particles=M, reward=reward, reward_weight=0.7), record
    )
    _, _, guided = record.particles(1.0)
    [(x0, cond)] = seen
    np.testing.assert_allclose(x0.reshape(N, M, -1), guided, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(cond, np.repeat(COND, M))
    expected = [np.mean([np.sum(g**2) + c for g in guided[i]]) for i, c in enumerate(COND)]
    np.testing.assert_allclose(rewarded, plain - 0.7 * np.asarray(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [objectives.self_consistency, objectives.rollout])
def test_a_reward_of_another_shape_is_refused(make):
    guide = gj.guidance(gj.cfg, omega=1.0)
    objective = make(particles=N, reward=lambda x0, cond: jnp.mean(x0), reward_weight=1.0)
    with pytest.raises(ValueError, match="the reward returned shape"):
        objective(KEYS, guide, denoise, BATCH)


@pytest.mark.slow
def test_each_loss_is_of_its_own_example():
    """A part of the batch, in another order, with the keys that go with it."""
    guide, objective = gj.guidance(gj.cfg, omega=0.5), objectives.self_consistency(particles=M)
    whole = objective(KEYS, guide, denoise, BATCH)
    part = jnp.array([2, 0])
    some = objective(KEYS[part], guide, denoise, jax.tree.map(lambda a: a[part], BATCH))
    np.testing.assert_allclose(some, whole[part], rtol=1e-6)


@pytest.mark.slow
def test_state_of_several_arrays():
    """The norm is over all of a sample: cut in two it is the same sample."""
    x0 = jnp.concatenate([BATCH.x0, BATCH.x0], axis=-1)
    halves = lambda x: {"a": x[..., :2], "b": x[..., 2:]}
    still = lambda x, t, cond: jax.tree.map(jnp.zeros_like, x)
    loss = lambda x0: objectives.l2(400, s_min=0.2, t_max=0.3)(
        KEYS, gj.guidance(gj.cfg, omega=1.0), gj.denoiser(still, PROCESS), BATCH._replace(x0=x0)
    )
    two, one = loss(halves(x0)), loss(x0)
    assert two.shape == one.shape == (N,)
    # Other noise, of which the mean over particles depends little.
    np.testing.assert_allclose(two, one, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "cond"),
    [
        (NET, COND),
        (gj.OmegaNet(cond_dim=3, hidden=8, depth=1), jax.random.normal(KEY, (N, 3))),
        (TIMES_ONLY, COND),
    ],
)
def test_omega_with_a_condition_and_without(net, cond):
    """The loss at φ is that at the ω which φ gives at the times drawn; and it moves φ."""
    objective = objectives.self_consistency(particles=2)
    level = lambda x, t, c: x * (1 + jnp.mean(c.reshape(c.shape[0], -1), 1)[:, None, None])
    batch = objectives.Batch(BATCH.x0, cond, {"uncond": jnp.zeros_like(cond)})
    phi = jax.tree.map(lambda a: a + 0.1, net.init(KEY))  # Away from where it ignores its input.

    def loss(omega):
        return objective(KEYS, gj.guidance(gj.cfg, omega=omega), gj.denoiser(level, PROCESS), batch)

    s, t = objective.times(jax.vmap(lambda k: jax.random.fold_in(k, 0))(KEYS))
    omega = net.weight(phi)(s, t, cond, process=PROCESS)
    assert omega.shape == (N,)
    np.testing.assert_allclose(loss(net.weight(phi)), loss(omega), rtol=1e-6)
    gradient = jax.grad(lambda phi: jnp.mean(loss(net.weight(phi))))(phi)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient)) > 1e-4


@pytest.mark.slow
def test_an_omega_of_each_channel():
    """(1, 1, channels), one for all samples: the loss is that of the same ω for each of them."""
    objective = objectives.self_consistency(particles=2)
    level = lambda x, t, c: 0.5 * x
    omega = jnp.linspace(0.0, 2.0, BATCH.x0.shape[-1]).reshape(*[1] * (BATCH.x0.ndim - 1), -1)
    loss = lambda omega: objective(
        KEYS, gj.guidance(gj.cfg, omega=omega), gj.denoiser(level, PROCESS), BATCH
    )
    each = jnp.broadcast_to(omega, (N, *omega.shape[1:]))
    np.testing.assert_allclose(loss(omega), loss(each), rtol=1e-6)


def test_times_of_algorithm_1():
    objective = objectives.self_consistency(min_gap=0.1, s_min=0.05, t_max=0.95)
    n = 20_000
    s, t = (np.asarray(a, float) for a in objective.times(jax.random.split(KEY, n)))
    eps = 1e-6
    assert s.min() >= 0.05 - eps
    assert t.max() <= np.float32(0.95)
    assert (t - s).min() >= 0.1 - eps
    # s ~ U[S_min, 1 − ζ − δ]; given s, t − s ~ U[δ, 1 − ζ − s].
    assert stats.kstest((s - 0.05) / 0.8, "uniform").pvalue > 1e-3
    gap = (t - s - 0.1) / (0.95 - s - 0.1)
    assert stats.kstest(gap, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(s, gap)[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.slow
@pytest.mark.parametrize(("s", "t"), [(0.4, 0.5), (0.1, 0.3), (0.3, 0.7)])
def test_one_pair_of_times(s, t):
    """t − s rounds above t_max − s_min at (0.1, 0.3)."""
    objective = objectives.l2(s_min=s, min_gap=t - s if s != 0.1 else 0.2, t_max=t)
    found = objective.times(jax.random.split(KEY, 50))
    np.testing.assert_allclose(found[0], s, atol=1e-6)
    np.testing.assert_allclose(found[1], t, atol=1e-6)


# Rollout.

GROUPS, SIZE = 2, 3


def groups():
    cond = jnp.repeat(jnp.arange(GROUPS), SIZE)
    x0 = jax.random.normal(jax.random.key(7), (GROUPS * SIZE, 2))
    return objectives.Batch(x0, cond, {"uncond": jnp.full_like(cond, GROUPS)})


def energy(x, y, beta, lam):
    """One group's distance, pair by pair."""
    d = lambda a, b: np.linalg.norm(a - b) ** beta
    n = len(x)
    cross = sum(d(a, b) for a in x for b in y) / n**2
    own = sum(d(z[j], z[k]) for z in (x, y) for j in range(n) for k in range(n) if j != k)
    return cross - lam / 2 * own / (n * (n - 1))


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "lam"), [(1.0, 1.0), (1.5, 0.4), (2.0, 0.7)])
def test_rollout_is_the_energy_distance_of_each_group_and_feature(beta, lam):
    batch, seen = groups(), []
    half = lambda x0: x0[:, :1] / 2
    scaled = objectives.unit_spread(objectives.pixels, batch.x0)

    def reward(x0, cond):
        seen.append(np.asarray(x0, float))
        return 0.1 * jnp.arange(x0.shape[0], dtype=jnp.float32)

    wave = lambda x, t, c: jnp.sin(x) + c[:, None]
    objective = objectives.rollout(
        (half, scaled), SIZE, 4, beta=beta, lam=lam, reward=reward, reward_weight=2.0
    )
    keys = jax.random.split(KEY, GROUPS * SIZE)
    losses = objective(keys, gj.guidance(gj.cfg, omega=0.7), gj.denoiser(wave, PROCESS), batch)
    assert losses.shape == (GROUPS * SIZE,)

    real, [ours] = np.asarray(batch.x0, float), seen
    n = len(real)
    spread = sum(np.linalg.norm(a - b) for a in real for b in real) / (n * (n - 1))
    expected = []
    for g in range(GROUPS):
        rows = slice(g * SIZE, (g + 1) * SIZE)
        a, b = ours[rows], real[rows]
        first = energy(a[:, :1] / 2, b[:, :1] / 2, beta, lam)
        expected.append((first + energy(a / spread, b / spread, beta, lam)) / 2)
    found = np.asarray(losses + 0.2 * jnp.arange(GROUPS * SIZE)).reshape(GROUPS, SIZE)
    np.testing.assert_allclose(found.mean(1), expected, rtol=1e-5)


def test_rollout_samples_under_guidance():
    """A denoiser that knows the answer ends at the guided answer, cond + ω (cond − uncond)."""
    batch, seen = groups(), []
    reward = lambda x0, cond: seen.append(x0) or jnp.zeros(x0.shape[0])
    constant = lambda x, t, c: jnp.broadcast_to(c[:, None].astype(x.dtype), x.shape)
    objective = objectives.rollout(particles=SIZE, steps=3, reward=reward, reward_weight=1.0)
    keys = jax.random.split(KEY, GROUPS * SIZE)
    losses = objective(keys, gj.guidance(gj.cfg, omega=0.5), gj.denoiser(constant, PROCESS), batch)
    answer = np.where(batch.cond == 0, 0 + 0.5 * (0 - 2), 1 + 0.5 * (1 - 2))
    np.testing.assert_allclose(seen[0], np.tile(answer[:, None], (1, 2)), atol=1e-6)
    # Of a set at one point the distance is E‖x − y‖ − E‖y − y'‖ / 2.
    real = np.asarray(batch.x0, float).reshape(GROUPS, SIZE, 2)
    expected = [energy(np.full((SIZE, 2), answer[SIZE * g]), real[g], 1, 1) for g in range(GROUPS)]
    np.testing.assert_allclose(losses.reshape(GROUPS, SIZE).mean(1), expected, rtol=1e-5)


def test_rollout_wants_whole_groups():
    objective = objectives.rollout(particles=4, steps=2)
    with pytest.raises(ValueError, match="no multiple"):
        objective(KEYS, gj.guidance(gj.cfg, omega=1.0), denoise, BATCH)


@pytest.mark.slow
def test_unit_spread():
    x0 = jax.random.normal(KEY, (7, 3, 2)) * 5
    scaled = objectives.unit_spread(objectives.pixels, x0)
    values = np.asarray(scaled(x0), float)
    distances = [np.linalg.norm(a - b) for i, a in enumerate(values) for b in values[:i]]
    np.testing.assert_allclose(np.mean(distances), 1, rtol=1e-5)
    np.testing.assert_allclose(values[1] / values[0], x0[1].ravel() / x0[0].ravel(), rtol=1e-4)
    assert len(jax.tree.leaves(scaled)) == 1  # Its scale is traced, not compiled in.
    with pytest.raises(ValueError, match="constant over 7"):
        objectives.unit_spread(lambda x0: jnp.ones((7, 2)), x0)


# What they refuse.


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0}, {"beta": 2.5}, {"beta": float("nan")}, {"lam": -0.1}, {"lam": 1.1},
        {"particles": 1}, {"particles": 0, "lam": 0.0}, {"churn": 1.5}, {"min_gap": 0.0},
        {"s_min": -0.1}, {"t_max": 1.1}, {"s_min": 0.5, "min_gap": 0.5}, {"reward_weight": 1.0},
        {"reward": lambda x0, cond: x0}, {"reward": lambda x0, cond: x0, "reward_weight": -1.0},
    ],
)  # fmt: skip
def test_self_consistency_refuses(options):
    with pytest.raises(ValueError, match=r"expected|give"):
        objectives.self_consistency(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"features": ()}, {"particles": 1}, {"beta": 2.5}, {"lam": 2.0}, {"remat": "all"},
        {"times": [0.0, 1.0]}, {"times": [1.2, 0.0]}, {"times": [1.0, float("nan")]},
        {"times": [1.0]}, {"reward_weight": 1.0},
    ],
)  # fmt: skip
def test_rollout_refuses(options):
    with pytest.raises(ValueError, match=r"expects|expected|give"):
        objectives.rollout(**options)


def test_self_consistency_refuses_a_rule_of_other_branches():
    rule = lambda cond, weak, omega: cond + omega * (cond - weak)
    guide = gj.guidance(rule, omega=1.0)
    with pytest.raises(ValueError, match="weak"):
        objectives.self_consistency()(KEYS, guide, denoise, BATCH)


def test_a_blind_start_is_refused():
    """Where α = 0 a noise prediction says nothing of x0, and the loss would be NaN."""
    blind = gj.denoiser(network, gj.processes.cosine(), "eps")
    for objective in (objectives.l2(t_max=1.0), objectives.rollout()):
        with pytest.raises(ValueError, match="α is 0"):
            objective.check(blind)
        objective.check(gj.denoiser(network, gj.processes.cosine(), "v"))
    objectives.l2().check(blind)
    objectives.rollout(times=gj.uniform_times(4, start=0.999)).check(blind)


def test_a_feature_that_is_not_finite_is_told():
    broken = lambda x0: x0.at[0].set(jnp.nan)
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)), jnp.float32)
    for measure in (objectives.unit_spread, objectives.frechet_moments):
        with pytest.raises(ValueError, match=r"feature\(x0\) holds NaN"):
            measure(broken, x0)
        with pytest.raises(ValueError, match="at least 2 true samples"):
            measure(objectives.pixels, x0[:1])
