import atexit
import importlib.metadata
import os
import shutil
import tempfile

# Each of a run's processes would start a thread a core for its small matrices, and these wait for
# each other by spinning: a Fréchet distance of 96 features takes a hundred times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# For the processes that tests start; `_optimizations` says it for this one.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Kernels from XLA's older emitters, all of a program in one piece: half the time to compile. An
# unknown flag ends the process; jaxlib has these from 0.8 to 0.10.
version = importlib.metadata.version("jaxlib").split(".")
OLDER = (int(version[0]), int(version[1])) < (0, 11)
EMITTERS = "xla_cpu_use_fusion_emitters"
if OLDER and EMITTERS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"--{EMITTERS}=false --xla_cpu_parallel_codegen_split_count=1 "
        + os.environ.get("XLA_FLAGS", "")
    )
# Once for all modules, workers and processes that tests start: the first of them makes the folder
# of compiled programs, and takes it away.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="guidejax-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src import compiler  # noqa: E402
from jax.sharding import AxisType  # noqa: E402

DEVICES = 8
# Virtual ones, for this process alone: the experiments and notebooks that tests start have one.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", DEVICES)


_options = compiler.get_compile_options


def _usual_emitters(*args, **kwargs):
    options = _options(*args, **kwargs)
    options.env_option_overrides = [*options.env_option_overrides, (EMITTERS, True)]
    return options


@pytest.fixture(scope="module", autouse=True)
def _optimizations(request):
    """Compile fast rather than well: most programs here compile for longer than they run.

    What a module promises bit for bit must hold in optimized programs; it marks itself `optimized`.
    """
    optimized = request.node.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", not optimized)
    # JAX has no public way to say it of all programs but the flags, which are read once.
    compiler.get_compile_options = _usual_emitters if optimized and OLDER else _options
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
