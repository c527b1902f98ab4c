import os

# Each of a run's processes would start a thread a core for its small matrices, and these wait for
# each other by spinning: a Fréchet distance of 96 features takes a hundred times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
from jax.sharding import AxisType

DEVICES = 8
# Tests of numbers from programs that compile for longer than they run: without XLA's optimizations
# they take a quarter less time. Rules are not among them, for what those promise bit for bit must
# hold in optimized programs; nor is `test_optimized` of the metrics, which sees to that itself.
NUMBERS = ("analytic", "experiments", "metrics", "solvers", "weights", "test_public_api")
NUMBERS += ("test_sampling", "test_sampling_branches", "test_sampling_keep")
NUMBERS += ("test_closed_forms", "test_frechet_moments", "test_gradients")  # these of learning
NUMBERS += ("test_objectives", "test_sharding")
# Begun first, for a process that is left alone with one of them at the end is waited for.
LONG = ("test_colabs", "test_digits")


@pytest.fixture(scope="module", autouse=True)
def _optimizations(request):
    """Compile fast rather than well where only the numbers are tested."""
    fast = not {request.path.parent.name, request.path.stem}.isdisjoint(NUMBERS)
    if fast != jax.config.read("jax_disable_most_optimizations"):
        jax.clear_caches()  # No program is of the other kind.
        jax.config.update("jax_disable_most_optimizations", fast)


@pytest.fixture
def x64():
    """Double precision, for tests of algebra."""
    with jax.enable_x64(True):
        yield


def _mesh(shape, names, kind):
    if jax.device_count() < DEVICES:
        # The README's second run gives them; on one device there is nothing to share.
        pytest.skip("needs XLA_FLAGS=--xla_force_host_platform_device_count=8")
    kind = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}[kind]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


@pytest.fixture(params=["auto", "explicit"])
def mesh(request):
    """A data mesh of 8 devices, its axis automatic and explicit."""
    return _mesh((DEVICES,), ("data",), request.param)


@pytest.fixture(params=["auto", "explicit"])
def branch_mesh(request):
    """A mesh of 8 devices for two branches, its axes automatic and explicit."""
    return _mesh((2, DEVICES // 2), ("branch", "data"), request.param)


def pytest_collection_modifyitems(items):
    """Mark what only eight devices can show, so that the second run need not repeat the rest."""
    items.sort(key=lambda item: item.path.stem not in LONG)
    for item in items:
        if {"mesh", "branch_mesh"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.devices)
