"""The mesh: what lies on which device, and functions that run on each device for its own shard."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, reshard

from jax_sparse_grad._concrete import is_concrete, outside_of_trace, read

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
Axis = str | tuple[str, ...]
Device = Any  # `jax.Device` is no type to every checker


class Layout(NamedTuple):
    """What is static in a sharded operand, plan or sum: the sparse shape, and where its rows are spread."""

    shape: tuple[int, ...]
    mesh: Mesh
    axis: Axis

    @property
    def shards(self) -> int:
        """The number of shards."""
        return math.prod(self.mesh.shape[name] for name in ((self.axis,) if isinstance(self.axis, str) else self.axis))


def on_shards(
    function: Callable[[Layout, Any, R, S], T], *, everywhere: bool = False
) -> Callable[[Layout, Any, R, S], T]:
    """`function(layout, static, replicated, sharded)`, compiled, on every device.

    Of the arrays in `sharded`, the function is given its own shard, and it returns its shard of the results; or, if
    `everywhere`, results that are equal on all devices. Results of concrete arrays are concrete.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1))
    @functools.wraps(function)
    def compiled(layout: Layout, static: Any, replicated: R, sharded: S) -> T:
        divided, whole = PartitionSpec(layout.axis), PartitionSpec()
        if AxisType.Explicit in layout.mesh.axis_types:  # `shard_map` then accepts only what is divided already
            sharded = jax.tree.map(lambda leaf: reshard(leaf, NamedSharding(layout.mesh, divided)), sharded)
        mapped: Callable[[R, S], T] = jax.shard_map(
            functools.partial(function, layout, static),
            mesh=layout.mesh,
            in_specs=(whole, divided),
            out_specs=whole if everywhere else divided,
        )
        return mapped(replicated, sharded)

    def call(layout: Layout, static: Any, replicated: R, sharded: S) -> T:
        if is_concrete(replicated, sharded):
            return outside_of_trace(lambda: compiled(layout, static, replicated, sharded))
        return compiled(layout, static, replicated, sharded)

    return call


def read_all(array: Any) -> np.ndarray:
    """A concrete array on the host of every process, also if other processes hold parts of it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
        everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
        array = outside_of_trace(lambda: jax.device_put(array, everywhere))
    return read(array)


def from_host(mesh: Mesh, spec: PartitionSpec, array: np.ndarray) -> jax.Array:
    """A copy of the array on a mesh, of which this process puts what belongs to its own devices."""

    def copy(index: Any) -> np.ndarray:
        return np.array(array[index])

    return outside_of_trace(lambda: jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), copy))
