import os

# Each of a run's processes would start a thread a core for its small matrices, and these wait for
# each other by spinning: a Fréchet distance of 96 features takes a hundred times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# For the processes that tests start; `_optimizations` says it for this one.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from jax.sharding import AxisType

DEVICES = 8
# Virtual ones, for this process alone: the experiments and notebooks that tests start have one.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", DEVICES)


@pytest.fixture(scope="module", autouse=True)
def _optimizations(request):
    """Compile fast rather than well: most programs here compile for longer than they run.

    What a module promises bit for bit must hold in optimized programs; it marks itself `optimized`.
    """
    jax.config.update(
        "jax_disable_most_optimizations", request.node.get_closest_marker("optimized") is None
    )
    # Programs are of one kind or the other. And each holds mappings of memory, of which a process
    # may have 65,530 on Linux: past them the compiler ends in a segmentation fault.
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision, for tests of algebra."""
    with jax.enable_x64(True):
        yield


def _mesh(shape, names, kind):
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
    """Mark what needs the devices: what takes a mesh of them."""
    for item in items:
        if {"mesh", "branch_mesh"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.devices)


def pytest_runtest_setup(item):
    if item.get_closest_marker("devices") and jax.device_count() < DEVICES:
        pytest.skip(f"needs {DEVICES} devices")
