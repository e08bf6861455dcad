"""The devices of the tests: eight CPUs, unless `JAX_PLATFORMS` names others. A test that needs more is skipped."""

import math

import jax
import pytest
from jax.sharding import AxisType


def devices(count):
    """The first so many."""
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices")
    return jax.devices()[:count]


def mesh_of(shape, names=("rows",), kind=AxisType.Auto):
    """A mesh of the first devices, all of whose axes are of one kind."""
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices(math.prod(shape)))
