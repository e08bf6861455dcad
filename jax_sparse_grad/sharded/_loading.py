"""From the host to the devices: where to cut the rows, and putting shard after shard in its place.

On the host, everything is numpy, and no array is as long as there are rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_sparse_grad import _arguments, _containers
from jax_sparse_grad._concrete import read
from jax_sparse_grad._types import HostMatrix, RowStarts, Shape
from jax_sparse_grad.sharded._balance import as_row_starts, balance, even_starts
from jax_sparse_grad.sharded._guards import check_capacity
from jax_sparse_grad.sharded._mesh import (
    Axis,
    Device,
    Layout,
    count_shards,
    from_all_shards,
    from_host,
    on_shards,
    put,
    replicate,
)
from jax_sparse_grad.sharded._operand import RowSharded
from jax_sparse_grad.sharded._validation import as_axis, as_capacity, as_mesh, host_entries


def partition(
    operand: HostMatrix,
    mesh: Mesh,
    axis: Axis,
    *,
    row_starts: RowStarts | None = None,
    capacity: SupportsIndex | None = None,
) -> RowSharded:
    """Spread the rows of a sparse matrix or tensor over an axis of a device mesh.

    Args:
      operand: a BCOO (without batch dimensions), a BCSR or a SciPy matrix or array, concrete. Index rows beyond the
        shape are padding, as everywhere in JAX, and are left out. In a program of several processes, each must give the
        same operand, and puts the shards of its own devices there (`from_shards` needs less memory).
      mesh: a `jax.sharding.Mesh`.
      axis: the name of one of its axes, or a tuple of names.
      row_starts: `[shards + 1]`, the first row of each shard, followed by the number of rows. By default chosen to
        balance the entries of this operand. Operands that are to be added need the same: `balanced_row_starts([x, y],
        shards)`.
      capacity: the number of elements that each shard has room for, static. By default as many as the fullest shard
        needs. Give it if the pattern will change, so that functions are not compiled again.

    Returns:
      A `RowSharded` with its entries in lexicographic order, duplicates kept, padding last in each shard.

    Raises:
      TypeError: an argument has the wrong type or is traced.
      ValueError: an index is negative; `row_starts` does not ascend from 0 to the number of rows; a shard has more
        entries than `capacity` (the error says which shard); `axis` is not one of the mesh's.

    Example:
      >>> import jax, numpy as np, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> x = jsg.sharded.partition(BCOO.fromdense(np.tril(np.ones((40, 40)))), mesh, "rows")
      >>> bool(x.nnz.max() < 1.5 * x.nnz.mean()), int(x.row_starts[-1])
      (True, 40)

    Mirrors `jax.device_put` with a `NamedSharding`, but cuts by rows instead of entries.
    """
    if isinstance(operand, RowSharded):
        raise TypeError("`operand` must be on one device or the host, got a `RowSharded`; `repartition` moves its rows")
    mesh = as_mesh(mesh)
    axis = as_axis(axis, mesh)
    shards = count_shards(mesh, axis)
    indices, values, shape = host_entries("operand", operand)
    indices, values = _in_order(indices, values)
    if row_starts is None:
        row_starts = balance(indices[:, 0], np.ones(len(indices), np.int64), shape[0], shards)
    starts = as_row_starts(row_starts, shape[0], shards)
    cuts = np.searchsorted(indices[:, 0], starts.astype(indices.dtype))
    counts = np.diff(cuts)
    size = as_capacity(capacity)
    placed = _Placed(mesh, axis, max(1, int(counts.max())) if size is None else size)
    check_capacity(placed.capacity, counts)
    for shard in placed.devices:
        entries = slice(cuts[shard], cuts[shard + 1])
        placed.put(shard, indices[entries], values[entries], shape[: indices.shape[1]])
    return placed.assemble(starts, counts, shape)


def from_shards(
    load: Callable[[int, int], HostMatrix],
    shape: Shape,
    mesh: Mesh,
    axis: Axis,
    *,
    row_starts: RowStarts | None = None,
    capacity: SupportsIndex | None = None,
) -> RowSharded:
    """Make a row-sharded matrix or tensor shard by shard, so that no process ever holds more than its own rows.

    Args:
      load: `load(start, stop)` returns the rows `start ... stop - 1` as a BCOO, a BCSR or a SciPy matrix of `stop -
        start` rows, numbered from 0 (like the slice `matrix[start:stop]`). It is called once for each shard that has a
        device in this process. All results must have the same dtypes.
      shape: the dense shape of the whole, static.
      mesh: a `jax.sharding.Mesh`, of one process or of many (`jax.distributed`).
      axis: the name of one of its axes, or a tuple of names.
      row_starts: `[shards + 1]`, as for `partition`, and the same in all processes. By default each shard has equally
        many rows; `repartition` can balance them afterwards.
      capacity: the number of elements that each shard has room for. If it is given, only one shard at a time is kept in
        host memory. By default all shards of this process are, until the fullest shard of all processes is known.

    Returns:
      A `RowSharded`, with the entries of each shard in lexicographic order.

    Raises:
      TypeError: an argument has the wrong type; `load` does not return a sparse matrix.
      ValueError: what `load` returns has the wrong shape or dtype, or a negative index; a shard has more entries than
        `capacity`. An error in one process, also an exception in `load`, raises in all of them.

    Example:
      >>> import jax, numpy as np, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> def load(start, stop):  # a band of ones
      ...     return BCOO.fromdense(np.eye(32, dtype=np.float32)[start:stop], nse=stop - start)
      >>> x = jsg.sharded.from_shards(load, (32, 32), mesh, "rows")
      >>> int(x.nnz.sum()), x.matrix.todense().trace().item()
      (32, 32.0)

    Mirrors `jax.make_array_from_callback`.
    """
    whole = _arguments.as_shape("shape", shape)
    if not callable(load):
        raise TypeError(
            f"`load` must be a function of two row numbers, got {type(load).__name__}; `partition` takes a whole matrix"
        )
    if not whole:
        raise ValueError("`shape` must have rows, got ()")
    mesh = as_mesh(mesh)
    axis = as_axis(axis, mesh)
    shards = count_shards(mesh, axis)
    starts = even_starts(whole[0], shards) if row_starts is None else row_starts
    starts = as_row_starts(starts, whole[0], shards)
    size = as_capacity(capacity)

    placed = None if size is None else _Placed(mesh, axis, size)
    pieces: dict[int, _Piece] = {}
    facts: dict[int, tuple[int, ...]] = dict.fromkeys(_local_shards(mesh, axis), (_FAILED, 0))
    failure = None
    try:
        for shard in facts:
            piece = _load_piece(load, int(starts[shard]), int(starts[shard + 1]), whole)
            facts[shard] = len(piece.indices), piece.kind
            if placed is None:
                pieces[shard] = piece._replace(values=piece.values.copy())  # `load` may reuse one buffer
            elif len(piece.indices) <= placed.capacity:
                placed.put(shard, *piece)
    except Exception as error:
        failure = error
    # All processes must know what one knows, or they would wait for it.
    counts, kinds = _share(Layout(whole, mesh, axis), facts).T
    if failure is not None:
        raise failure
    if np.any(counts == _FAILED):
        raise ValueError(
            f"`load` must return the rows of all shards, but failed for shard {np.argmin(counts)} in another process; "
            "see the error there"
        )
    if np.any(kinds != kinds[0]):
        raise ValueError(
            "`load` must return all shards in the same dtypes and with the same dense dimensions; "
            f"shard {np.argmax(kinds != kinds[0])} differs from shard 0"
        )
    if placed is None:
        placed = _Placed(mesh, axis, max(1, int(counts.max())))
        for shard, piece in pieces.items():
            placed.put(shard, *piece)
    check_capacity(placed.capacity, counts)
    return placed.assemble(starts, counts, whole)


_FAILED = -1  # instead of a number of entries


class _Piece(NamedTuple):
    """The entries of one shard, with rows numbered as in the whole, and the sparse shape of the whole."""

    indices: np.ndarray
    values: np.ndarray
    shape: tuple[int, ...]

    @property
    def kind(self) -> int:
        """A number that identifies what all shards must have in common."""
        described = f"{self.indices.dtype} {self.values.dtype} {self.values.shape[1:]}"
        return zlib.crc32(described.encode()) & np.iinfo(np.int32).max


def _load_piece(load: Callable[[int, int], Any], start: int, stop: int, whole: tuple[int, ...]) -> _Piece:
    name = f"load({start}, {stop})"
    indices, values, shape = host_entries(name, load(start, stop))
    if shape != (stop - start, *whole[1:]):
        raise ValueError(f"`{name}` must have shape {(stop - start, *whole[1:])}, got {shape}")
    sizes = whole[: indices.shape[1]]
    dtype = _index_dtype(indices.dtype, sizes)
    _arguments.check_sizes_fit("shape", sizes, dtype)
    indices, values = _in_order(indices.astype(dtype), values)
    indices[:, 0] += np.asarray(start, dtype)  # writes to a copy: that of `astype`, or one of it
    return _Piece(indices, values, sizes)


def _index_dtype(loaded: np.dtype, sizes: tuple[int, ...]) -> np.dtype:
    """The dtype of the indices of one shard, if it can hold those of the whole."""
    return loaded if max(sizes) <= jnp.iinfo(loaded).max else _containers.index_dtype(sizes)


def _local_shards(mesh: Mesh, axis: Axis) -> dict[int, list[Device]]:
    """The shards that devices of this process hold, and these devices: several if other axes replicate."""
    local: dict[int, list[Device]] = {}
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    for device, index in sharding.addressable_devices_indices_map((count_shards(mesh, axis),)).items():
        local.setdefault(_shard_of(index), []).append(device)
    return dict(sorted(local.items()))


def _shard_of(index: tuple[slice, ...] | None) -> int:
    """The shard that a slice of an array with one row per shard belongs to."""
    return 0 if index is None else index[0].start or 0


class _Placed:
    """Shards on their devices, one after the other."""

    def __init__(self, mesh: Mesh, axis: Axis, capacity: int) -> None:
        self.mesh, self.axis, self.capacity = mesh, axis, capacity
        self.devices = _local_shards(mesh, axis)
        self._parts: tuple[list[jax.Array], list[jax.Array]] = ([], [])

    def put(self, shard: int, indices: np.ndarray, values: np.ndarray, shape: tuple[int, ...]) -> None:
        """Put a shard on each device that holds it."""
        for padded, parts in zip(_pad(indices, values, self.capacity, shape), self._parts, strict=True):
            parts += [put(padded, device) for device in self.devices[shard]]

    def assemble(self, starts: np.ndarray, counts: np.ndarray, shape: tuple[int, ...]) -> RowSharded:
        """The whole, once all shards of this process have been put."""
        rows = count_shards(self.mesh, self.axis) * self.capacity
        sharded = NamedSharding(self.mesh, PartitionSpec(self.axis))
        indices, data = (
            jax.make_array_from_single_device_arrays((rows, *parts[0].shape[1:]), sharded, parts)
            for parts in self._parts
        )
        row_starts = replicate(self.mesh, starts.astype(indices.dtype))
        own = PartitionSpec(self.axis)
        nnz = from_host(self.mesh, own, counts.shape, counts.astype(np.int32).__getitem__)
        layout = Layout(shape[: indices.shape[1]], self.mesh, self.axis)
        return RowSharded(data, indices, row_starts, nnz, layout, data.shape[1:])


def _share(layout: Layout, facts: dict[int, tuple[int, ...]]) -> np.ndarray:
    """The facts about all shards, also about those in other processes."""
    width = len(next(iter(facts.values())))

    def facts_of(index: tuple[slice, ...] | None) -> np.ndarray:
        return np.array([facts[_shard_of(index)]], np.int32)

    local = from_host(layout.mesh, PartitionSpec(layout.axis), (layout.shards, width), facts_of)
    return read(_replicate_facts(layout, local))


@partial(jax.jit, static_argnums=0)
def _replicate_facts(layout: Layout, facts: jax.Array) -> jax.Array:
    def share(_: None, mine: jax.Array) -> jax.Array:
        return from_all_shards(layout, mine[0])

    return on_shards(layout, share, None, facts, replicated_result=True)


def _in_order(indices: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries in lexicographic order; equal ones keep their order."""
    greater, equal = np.zeros(max(len(indices) - 1, 0), bool), np.ones(max(len(indices) - 1, 0), bool)
    for column in indices.T:
        greater |= equal & (column[:-1] > column[1:])
        equal &= column[:-1] == column[1:]
    if not greater.any():
        return indices, values
    order = np.lexsort(indices.T[::-1])
    return indices[order], values[order]


def _pad(indices: np.ndarray, values: np.ndarray, capacity: int, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Copies of the entries followed by padding, `capacity` in all."""
    padded = (
        np.empty((capacity, indices.shape[1]), indices.dtype),
        np.zeros((capacity, *values.shape[1:]), values.dtype),
    )
    padded[0][:] = shape
    for whole, entries in zip(padded, (indices, values), strict=True):
        whole[: len(entries)] = entries
    return padded
