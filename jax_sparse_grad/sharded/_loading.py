"""From the host to the devices: matrices that are cut by rows, and putting shard after shard in its place."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_sparse_grad import _arguments, _containers, _keys
from jax_sparse_grad._types import HostMatrix, RowStarts, Shape
from jax_sparse_grad.sharded._balance import as_row_starts, balance, host_entries
from jax_sparse_grad.sharded._mesh import Axis, Device, Layout, from_host, read_all
from jax_sparse_grad.sharded._operand import RowSharded, as_capacity, check_capacity

Rows = tuple[np.ndarray, np.ndarray]
"""Index rows, numbered as in the whole matrix, and values: in lexicographic order."""


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
      operand: a BCOO (without batch dimensions), a BCSR or a SciPy matrix or array, concrete; the same in all processes
        (`from_shards` needs less memory). Index rows beyond the shape are padding, and are left out.
      mesh: a `jax.sharding.Mesh`.
      axis: the name of one of its axes, or a tuple of names.
      row_starts: `[shards + 1]`, the first row of each shard, followed by the number of rows. By default they balance
        this operand. Operands that are to be added need the same: `balanced_row_starts([x, y], shards)`.
      capacity: the number of elements that each shard stores, static. By default as many as the fullest shard needs.
        Give it if the pattern will change, so that functions are not compiled again.

    Returns:
      A `RowSharded` with its entries in lexicographic order, duplicates kept, padding last in each shard.

    Raises:
      TypeError: an argument has the wrong type or is traced.
      ValueError: an index is negative; `row_starts` does not ascend from 0 to the number of rows; a shard has more
        entries than `capacity` (the error says which shard); `axis` is not one of the mesh's.

    Example:
      >>> import jax, jax_sparse_grad as jsg
      >>> from scipy.sparse import eye_array
      >>> x = jsg.sharded.partition(eye_array(16), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
      >>> sum(x.nnz.tolist()), x.row_starts.tolist()[-1]
      (16, 16)

    Mirrors `jax.device_put` with a `NamedSharding`, but cuts by rows instead of entries.
    """
    if isinstance(operand, RowSharded):
        raise TypeError("`operand` must be on one device or the host, got a `RowSharded`; `repartition` moves its rows")
    mesh, axis = _as_mesh_and_axis(mesh, axis)
    indices, values, shape = host_entries("operand", operand)
    indices, values = _in_order(indices, values)
    layout = Layout(shape, mesh, axis)
    if row_starts is None:
        row_starts = balance(indices[:, 0], np.ones(len(indices), np.int64), shape[0], layout.shards)

    def load(start: int, stop: int) -> Rows:
        here = slice(*np.searchsorted(indices[:, 0], np.array([start, stop], indices.dtype)))
        return indices[here], values[here]

    return _put_shards(load, layout, row_starts, as_capacity(capacity))


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
      mesh: as for `partition`, of one process or of many (`jax.distributed`).
      axis: as for `partition`.
      row_starts: as for `partition`, and the same in all processes. By default each shard has equally many rows;
        `repartition` can balance them afterwards.
      capacity: as for `partition`. If it is given, only one shard at a time is kept in host memory. By default all
        shards of this process are, until the fullest shard of all processes is known.

    Returns:
      A `RowSharded`, with the entries of each shard in lexicographic order.

    Raises:
      TypeError: an argument has the wrong type; `load` does not return a sparse matrix.
      ValueError: what `load` returns has the wrong shape or dtype, or a negative index; a shard has more entries than
        `capacity`. An error in one process, also an exception in `load`, raises in all of them.

    Example:
      >>> import jax, jax_sparse_grad as jsg
      >>> from scipy.sparse import eye_array
      >>> load = lambda start, stop: eye_array(stop - start, 16, k=start)  # a part of the diagonal
      >>> x = jsg.sharded.from_shards(load, (16, 16), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
      >>> x.data.tolist() == [1.0] * 16
      True

    Mirrors `jax.make_array_from_callback`.
    """
    whole = _arguments.as_shape("shape", shape)
    if not callable(load):
        raise TypeError(
            f"`load` must be a function of two row numbers, got {type(load).__name__}; `partition` takes a whole matrix"
        )
    if not whole:
        raise ValueError("`shape` must have rows, got ()")
    mesh, axis = _as_mesh_and_axis(mesh, axis)
    layout = Layout(whole, mesh, axis)

    def load_rows(start: int, stop: int) -> Rows:
        name, rows = f"load({start}, {stop})", (stop - start, *whole[1:])
        indices, values, loaded = host_entries(name, load(start, stop))
        if loaded != rows:
            raise ValueError(f"`{name}` must have shape {rows}, got {loaded}")
        sizes = whole[: indices.shape[1]]
        dtype = indices.dtype if max(sizes) <= jnp.iinfo(indices.dtype).max else _containers.index_dtype(sizes)
        _arguments.check_sizes_fit("shape", sizes, dtype)
        indices, values = _in_order(indices.astype(dtype), values.copy())  # `load` may reuse one buffer
        indices[:, 0] += np.asarray(start, dtype)
        return indices, values

    if row_starts is None:
        row_starts = [whole[0] * shard // layout.shards for shard in range(layout.shards + 1)]
    return _put_shards(load_rows, layout, row_starts, as_capacity(capacity))


def _as_mesh_and_axis(mesh: Any, axis: Any) -> tuple[Mesh, Axis]:
    """A mesh of devices, and one or several of its axes, by name."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"`mesh` must be a `jax.sharding.Mesh`, got {type(mesh).__name__}")
    names = (axis,) if isinstance(axis, str) else axis
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis` must be the name of a mesh axis, or a tuple of names; got {axis!r}")
    if not set(names) <= set(mesh.axis_names) or len(set(names)) < len(names):
        raise ValueError(f"`axis` must name axes of the mesh, which are {mesh.axis_names}; got {axis!r}")
    return mesh, names[0] if len(names) == 1 else names


def _in_order(indices: np.ndarray, values: np.ndarray) -> Rows:
    """Entries in lexicographic order; equal ones keep their order."""
    rows: Any = indices
    before, after = (_keys.columns_as_words(each) for each in (rows[:-1], rows[1:]))
    if not _keys.is_less(after, before).any():
        return indices, values
    order = np.lexsort(indices.T[::-1])
    return indices[order], values[order]


_FAILED = -1  # instead of a number of entries


def _put_shards(
    load: Callable[[int, int], Rows], layout: Layout, row_starts: RowStarts, capacity: int | None
) -> RowSharded:
    """Load each shard of this process, and put it on its devices. The layout's shape may have dense dimensions."""
    shape, mesh, axis = layout
    starts = as_row_starts(row_starts, shape[0], layout.shards)
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    devices: dict[int, list[Device]] = {}  # several for each shard if other axes replicate
    for device, index in sharding.addressable_devices_indices_map((layout.shards,)).items():
        devices.setdefault(index[0].start or 0 if index else 0, []).append(device)
    facts = np.full((layout.shards, 2), _FAILED, np.int32)
    pieces: dict[int, Any] = {}  # on the host until it is known how far to pad them, else on their devices
    failure = None
    try:
        for shard in sorted(devices):
            pieces[shard] = piece = load(int(starts[shard]), int(starts[shard + 1]))
            described = f"{piece[0].dtype} {piece[1].dtype} {piece[1].shape[1:]}"
            facts[shard] = len(piece[0]), zlib.crc32(described.encode()) >> 1  # to fit int32
            if capacity is not None and len(piece[0]) <= capacity:
                pieces[shard] = _put(piece, capacity, shape, devices[shard])
    except Exception as error:
        failure = error
    # All processes must know what one knows, or they would wait for it.
    counts, kinds = read_all(from_host(mesh, PartitionSpec(axis), facts)).T
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
    size = max(1, int(counts.max())) if capacity is None else capacity
    check_capacity(size, counts)
    if capacity is None:
        pieces = {shard: _put(piece, size, shape, devices[shard]) for shard, piece in pieces.items()}

    def join(parts: list[jax.Array]) -> jax.Array:
        rows = layout.shards * size
        return jax.make_array_from_single_device_arrays((rows, *parts[0].shape[1:]), sharding, parts)

    indices, data = (join([array for piece in pieces.values() for array in piece[part]]) for part in (0, 1))
    return RowSharded(
        data,
        indices,
        from_host(mesh, PartitionSpec(), starts.astype(indices.dtype)),
        from_host(mesh, PartitionSpec(axis), counts),
        Layout(shape[: indices.shape[1]], mesh, axis),
        data.shape[1:],
    )


def _put(piece: Rows, capacity: int, shape: tuple[int, ...], devices: Sequence[Device]) -> list[list[jax.Array]]:
    """The index rows and values of a shard, followed by padding, on each of its devices."""
    on_devices = []
    for array, filler in zip(piece, (shape[: piece[0].shape[1]], 0), strict=True):
        padded = np.full((capacity, *array.shape[1:]), np.asarray(filler, array.dtype))
        padded[: len(array)] = array
        with jax.ensure_compile_time_eval():  # concrete inside `jit` too
            on_devices.append([jax.device_put(padded, device) for device in devices])
    return on_devices
