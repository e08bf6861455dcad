"""Checks of the arguments of sharded functions. Those of what is static raise while tracing too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental.sparse import BCOO, BCSR
from jax.sharding import Mesh

from jax_sparse_grad import _arguments, _containers
from jax_sparse_grad._concrete import is_concrete, read
from jax_sparse_grad.sharded._mesh import Axis, Layout
from jax_sparse_grad.sharded._operand import RowSharded


def as_capacity(capacity: Any) -> int | None:
    """The number of elements that each shard is to store, at least one; or None."""
    size = _arguments.as_nse(capacity, "capacity")
    if size == 0:
        raise ValueError("`capacity` must be positive, got 0")
    return size


def check_capacity(capacity: int, counts: np.ndarray, entries: str = "entries") -> None:
    """Check that the entries of each shard, whose numbers are known, do not exceed its capacity."""
    shard = int(np.argmax(counts))
    if counts[shard] > capacity:
        raise ValueError(
            f"`capacity` must be at least {counts[shard]}, the number of {entries} in shard {shard}; got {capacity}"
        )


def as_sharded(name: str, x: Any, remedy: str = "") -> RowSharded:
    """A `RowSharded`, and nothing else."""
    if not isinstance(x, RowSharded):
        got = _arguments.kind_of(x)
        raise TypeError(f"`{name}` must be a `RowSharded`, got {got}; `partition` makes one from a matrix{remedy}")
    return x


def as_mesh_and_axis(mesh: Any, axis: Any) -> tuple[Mesh, Axis]:
    """A mesh of devices, and one or several of its axes, by name."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"`mesh` must be a `jax.sharding.Mesh`, got {type(mesh).__name__}")
    names = (axis,) if isinstance(axis, str) else axis
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis` must be the name of a mesh axis, or a tuple of names; got {axis!r}")
    if not set(names) <= set(mesh.axis_names) or len(set(names)) < len(names):
        raise ValueError(f"`axis` must name axes of the mesh, which are {mesh.axis_names}; got {axis!r}")
    return mesh, names[0] if len(names) == 1 else names


def layout_of_all(operands: Mapping[str, RowSharded]) -> Layout:
    """The layout of operands that must be spread over the same devices and have one shape."""
    (first_name, first), *_ = operands.items()
    for name, x in operands.items():
        if (x.mesh, x.axis) != (first.mesh, first.axis):
            raise ValueError(
                f"`{name}` must be spread over the mesh and axis of `{first_name}`; "
                f"got axis {x.axis!r} of {x.mesh} and axis {first.axis!r} of {first.mesh}; "
                f"`partition({name}.matrix, {first_name}.mesh, {first_name}.axis, row_starts={first_name}.row_starts)` "
                "spreads it again"
            )
        if x.indices.ndim != 2 or x.data.shape[:1] != x.indices.shape[:1] or x.indices.shape[0] % x.shards:
            raise ValueError(
                f"`{name}` must have as many values as index rows, a multiple of its {x.shards} shards; got data "
                f"{x.data.shape} and indices {x.indices.shape}; take apart what `scan` or `vmap` has stacked"
            )
        if x.row_starts.shape != (x.shards + 1,):
            raise ValueError(f"`{name}.row_starts` must have shape {(x.shards + 1,)}; got {x.row_starts.shape}")
        if x.layout.shape != first.layout.shape:
            raise ValueError(f"`{name}` must have the n_sparse of `{first_name}`; got {x.shape} and {first.shape}")
    return first.layout


def host_entries(name: str, operand: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The index rows `[nnz, ndims]`, values `[nnz, *dense]` and shape of a BCOO, a BCSR or a SciPy matrix, in numpy.

    Padding is left out, that is, as everywhere in JAX, any row with an index beyond the shape.
    """
    if not is_concrete(operand):
        raise TypeError(f"`{name}` must be concrete, got a traced array; call this outside of `jit`")
    shape = tuple(operand.shape) if hasattr(operand, "shape") else ()
    if isinstance(operand, BCOO | BCSR):
        n_batch, n_sparse = _containers.common_layout({name: operand})
        if n_batch or not n_sparse:
            raise ValueError(f"`{name}` must have n_batch 0 and rows; got n_batch {n_batch} and n_sparse {n_sparse}")
        indices, values = read(_containers.indices_of(name, operand)), read(operand.data)
    elif hasattr(operand, "tocoo"):
        coordinates = operand.tocoo()
        indices = np.stack(coordinates.coords, axis=1).astype(_containers.index_dtype(shape))
        values = _arguments.as_host_array(f"{name}.data", coordinates.data)
    else:
        remedy = ""
        if isinstance(operand, jax.Array | np.ndarray):
            remedy = "; `BCOO.fromdense` converts an array"
        elif hasattr(operand, "todense"):
            remedy = "; `BCOO.fromdense(x.todense())` converts it"
        raise TypeError(f"`{name}` must be a BCOO, a BCSR or a SciPy matrix, got {_arguments.kind_of(operand)}{remedy}")
    _arguments.as_numeric(f"{name}.data", values[:0])
    sizes = shape[: indices.shape[1]]
    _arguments.check_sizes_fit(f"{name}.shape", sizes, indices.dtype)
    negative = np.any(indices < 0, axis=1)
    if negative.any():
        row = int(np.argmax(negative))
        raise ValueError(f"`{name}.indices` must not be negative; row {row} is {indices[row]}")
    inside = np.all(indices < np.array(sizes, indices.dtype), axis=1)
    if not inside.all():
        indices, values = indices[inside], values[inside]
    return indices, values, shape
