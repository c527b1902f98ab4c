import doctest
import importlib
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidejax as gj
from guidejax.rules import RULES
from guidejax.schedules import SCHEDULES

ROOT = pathlib.Path(gj.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
)


@pytest.mark.slow
def test_import_is_light():
    """`import guidejax` brings in nothing but what its dependencies bring in."""
    script = """
import sys
import jax, jax.numpy, optax, numpy
before = set(sys.modules)
import guidejax
top = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(top - sys.stdlib_module_names))
heavy = {"flax", "orbax", "chex", "tensorflow", "tensorflow_datasets", "grain", "matplotlib"}
heavy |= {"scipy.stats", "sklearn", "safetensors", "tokenizers", "keras", "torch", "PIL"}
heavy |= {"guidejax.models", "guidejax.rewards"}
print(*sorted(heavy & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    new, heavy = run.stdout.split("\n")[:2]
    assert new.split() == ["guidejax"]
    assert heavy.split() == []


FAMILIES = (
    "processes", "rules", "schedules", "weights", "solvers", "objectives", "learning", "metrics",
    "analytic", "particles", "data", "interop", "models", "rewards",
)  # fmt: skip


def test_names_of_the_user_s_code():
    names = (
        "cfg", "adg", "apg", "denoiser", "guidance", "chain", "guided", "interval", "from_scale",
        "to_scale", "sample", "ddim", "uniform_times", "OmegaNet", "fit", "fit_omega",
        "load_omega", "self_consistency", "rollout",
    )  # fmt: skip
    assert [name for name in (*names, *FAMILIES) if not hasattr(gj, name)] == []


def test_the_top_is_small_and_each_name_is_one_thing():
    """About thirty-five names beside the families, and no module hides behind a function."""
    for name in MODULES:
        room, _, last = name.rpartition(".")
        if room and not last.startswith("_"):
            module = importlib.import_module(name)
            assert getattr(importlib.import_module(room), last) is module, name
    names = [n for n in dir(gj) if not n.startswith("_") and n not in FAMILIES]
    ours = [n for n in names if getattr(getattr(gj, n), "__module__", "").startswith("guidejax")]
    assert 30 <= len(ours) <= 40


def test_every_rule_and_schedule_is_exported():
    for name, rule in RULES.items():
        assert getattr(gj.rules, name) is rule, name
    for name, schedule in SCHEDULES.items():
        assert getattr(gj.schedules, name) is schedule.make, name
    assert len(RULES) >= 40
    assert len(SCHEDULES) >= 20


def test_the_user_s_code_runs():
    key, labels, null, omega = jax.random.key(0), jnp.array([0, 1]), 2, jnp.array([1.0, 2.0])
    cond, uncond = jax.random.normal(key, (2, 2, 4, 4, 3))
    np.testing.assert_allclose(
        gj.cfg(cond, uncond, 2.0), uncond + 3.0 * (cond - uncond), rtol=1e-4, atol=1e-5
    )
    assert gj.adg(cond, uncond, omega, max_angle=jnp.pi / 3).shape == cond.shape

    network = lambda x, t, cond: x * t[:, None] - cond[:, None]
    process = gj.processes.rectified_flow()
    denoise = gj.denoiser(network, process, prediction="velocity")
    guidance = gj.guidance(gj.adg, omega=gj.interval(4.0, lo=0.2, hi=0.8))
    noise = jax.random.normal(key, (2, 3))
    common = {"cond": labels, "uncond": null, "solver": gj.ddim(churn=0.0)}
    x0 = gj.sample(key, denoise, noise, guidance=guidance, times=gj.uniform_times(50), **common)
    net = gj.OmegaNet(num_classes=10)
    learned = gj.guidance(gj.cfg, omega=net.weight(net.init(key)))
    other = gj.sample(key, denoise, noise, guidance=learned, times=gj.uniform_times(50), **common)
    assert x0.shape == other.shape == noise.shape
    assert np.all(np.isfinite(x0) & np.isfinite(other))
    assert not np.allclose(x0, other)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory with the digits in data/: TFDS prints where it prepares them."""
    from guidejax import data

    path = tmp_path_factory.mktemp("prepared")
    data.prepare("digits", data_dir=path / "data")
    return path


# These take seconds each; those of public models build them.
SECONDS = (
    "guidejax.models.", "guidejax.rewards", "guidejax.learning._fit", "guidejax.rules.frequency",
    "guidejax.rules.rescaling", "guidejax.metrics.stages", "guidejax.weights.omega_net",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith(SECONDS) else ())
        for name in MODULES
    ],
)
def test_doctests(name, request, monkeypatch):
    module = importlib.import_module(name)
    if name.startswith("guidejax.data"):
        path = request.getfixturevalue("prepared")
        monkeypatch.chdir(path)
        monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(path / "data"))
    failures, _ = doctest.testmod(module)
    assert failures == 0


# Decorators, what needs a checkpoint or a training state to be shown, and grain's own dataset.
WITHOUT_EXAMPLE = {"load", "load_omega", "train_step", "rule", "schedule"}


@pytest.mark.parametrize("family", ["", *FAMILIES])
def test_every_other_public_function_has_an_example(family):
    finder = doctest.DocTestFinder(recurse=False)
    room = getattr(gj, family) if family else gj
    bare = set()
    for name, value in vars(room).items():
        function = getattr(value, "fn", value)
        home = f"guidejax.{family}".rstrip(".")
        ours = callable(function) and getattr(function, "__module__", "").startswith(home)
        public = ours and not name.startswith("_") and not isinstance(value, type)
        if public and not any(test.examples for test in finder.find(function, name)):
            bare.add(name)
    assert bare <= WITHOUT_EXAMPLE
