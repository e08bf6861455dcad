"""The mesh: what lies on which device, and functions that run on each device for its own shard."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, reshard

from jax_sparse_grad._batching import at

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
        return count_shards(self.mesh, self.axis)


def count_shards(mesh: Mesh, axis: Axis) -> int:
    """The number of shards along an axis, or several."""
    return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))


def replicate(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """The same array on all devices."""
    return from_host(mesh, PartitionSpec(), array.shape, array.__getitem__)


def from_host(
    mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...], part: Callable[[tuple[slice, ...] | None], np.ndarray]
) -> jax.Array:
    """The array of which each device holds `part(index)`, which JAX then owns.

    Like `jax.make_array_from_callback`, which `jax.transfer_guard` takes for an unintended transfer.
    """
    sharding = NamedSharding(mesh, spec)
    devices = sharding.addressable_devices_indices_map(shape).items()
    parts = [put(part(index), device) for device, index in devices]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def put(array: np.ndarray, device: Device) -> jax.Array:
    """The array on a device, concrete inside `jit` too."""
    with jax.ensure_compile_time_eval():
        return jax.device_put(array, device)


def on_shards(
    layout: Layout,
    function: Callable[[R, S], T],
    replicated: R,
    sharded: S,
    *,
    replicated_result: bool = False,
) -> T:
    """`function(replicated, sharded)` on every device, with sharded arguments and results limited to its own shard."""
    own, same = PartitionSpec(layout.axis), PartitionSpec()
    if AxisType.Explicit in layout.mesh.axis_types:  # `shard_map` then accepts only what is divided already
        sharded = jax.tree.map(lambda leaf: reshard(leaf, NamedSharding(layout.mesh, own)), sharded)
    out = same if replicated_result else own
    mapped: Callable[[R, S], T] = jax.shard_map(function, mesh=layout.mesh, in_specs=(same, own), out_specs=out)
    return mapped(replicated, sharded)


def from_all_shards(layout: Layout, tree: T) -> T:
    """The arrays of all shards, stacked: `[shards, ...]`, the same on all devices (`shard_map` knows that sums are)."""

    def stack(array: jax.Array) -> jax.Array:
        # Not all collectives support narrow integers.
        wide = array.astype(jnp.int32) if array.dtype.itemsize < 4 else array
        slots = jnp.zeros((layout.shards, *wide.shape), wide.dtype)
        return lax.psum(slots.at[lax.axis_index(layout.axis)].set(wide), layout.axis)

    return jax.tree.map(stack, tree)


def own_range(layout: Layout, row_starts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first row of this device's range, and the first row after it."""
    shard = lax.axis_index(layout.axis)
    return at(row_starts, shard), at(row_starts, shard + 1)


@partial(jax.jit, static_argnums=(0, 1))
def cut(layout: Layout, capacity: int, tree: T) -> T:
    """The first `capacity` rows of each shard."""

    def cut(_: None, tree: T) -> T:
        return jax.tree.map(lambda leaf: leaf[:capacity], tree)

    return on_shards(layout, cut, None, tree)
