import jax
import pytest
from jax.sharding import AxisType

DEVICES = 8


@pytest.fixture
def x64():
    """Double precision, for tests of algebra."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["auto", "explicit"])
def mesh(request):
    """A data mesh of 8 devices, its axis automatic and explicit."""
    if jax.device_count() < DEVICES:
        pytest.skip("needs XLA_FLAGS=--xla_force_host_platform_device_count=8")
    kind = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}[request.param]
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,))


def pytest_collection_modifyitems(items):
    """Mark what only eight devices can show, so that the second run need not repeat the rest."""
    for item in items:
        if {"mesh", "branch_mesh"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.devices)
