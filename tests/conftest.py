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
