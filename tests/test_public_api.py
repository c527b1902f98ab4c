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


def test_import_is_light():
    """`import guidejax` brings in nothing but what its dependencies bring in."""
    script = """
import sys
import jax, jax.numpy, flax, flax.linen, flax.nnx, optax, chex, numpy, orbax.checkpoint
before = set(sys.modules)
import guidejax
top = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(top - sys.stdlib_module_names))
heavy = {"tensorflow", "tensorflow_datasets", "grain", "matplotlib", "sklearn", "torch", "PIL"}
print(*sorted(heavy & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    new, heavy = run.stdout.split("\n")[:2]
    assert new.split() == ["guidejax"]
    assert heavy.split() == []


def test_names_of_the_user_s_code():
    names = """cfg adg rectified_flow cosine linear_vp edm denoiser guidance chain interval constant
    from_scale to_scale sample ddim uniform_times OmegaNet fit_omega self_consistency convert
    triangular clamp_linear analytic"""
    missing = [name for name in names.split() if not hasattr(gj, name)]
    assert missing == []


def test_every_rule_and_schedule_is_exported():
    for name, rule in RULES.items():
        assert getattr(gj, name, None) is rule, name
    for name, schedule in SCHEDULES.items():
        assert getattr(gj, name, None) is schedule.make, name
    assert len(RULES) >= 30
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


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name, request, monkeypatch):
    module = importlib.import_module(name)
    if name.startswith("guidejax.data"):
        path = request.getfixturevalue("prepared")
        monkeypatch.chdir(path)
        monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(path / "data"))
    failures, _ = doctest.testmod(module)
    assert failures == 0


# Decorators, and what needs a checkpoint or a training state to be shown.
WITHOUT_EXAMPLE = {"load_omega", "omega_step", "make_rule", "rule"}


def test_every_other_public_function_has_an_example():
    finder = doctest.DocTestFinder(recurse=False)
    bare = set()
    for name, value in vars(gj).items():
        function = getattr(value, "fn", value)
        ours = callable(function) and function.__module__.startswith("guidejax")
        shown = ours and any(test.examples for test in finder.find(function, name))
        if ours and not isinstance(value, type) and not shown:
            bare.add(name)
    assert bare <= WITHOUT_EXAMPLE
