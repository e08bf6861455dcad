"""The operands of sharded sums: a BCOO whose rows are spread over a mesh axis. Their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jax_sparse_grad import _arguments
from jax_sparse_grad._types import BCOO, ArrayInput
from jax_sparse_grad.sharded._mesh import Layout
from jax_sparse_grad.sharded._saving import OnMesh


class RowPattern(OnMesh):
    """Index rows that are spread over an axis of a mesh: what operands and plans have in common."""

    indices: jax.Array
    row_starts: jax.Array
    nnz: jax.Array
    dense_shape: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The sparse shape, followed by the sizes of the dense dimensions, if there are values (static)."""
        return self.layout.shape + self.dense_shape

    @property
    def ndim(self) -> int:
        """The number of dimensions (static)."""
        return len(self.shape)

    @property
    def capacity(self) -> int:
        """The number of elements that each shard stores (static)."""
        return self.indices.shape[0] // self.shards

    def with_data(self, data: ArrayInput) -> RowSharded:
        """Make the matrix or tensor that has this pattern, and these values.

        Args:
          data: `[shards * capacity, *dense]`, of any numeric dtype and with any dense dimensions: of a plan, the values
            of a sum, as its call returns them.

        Returns:
          A `RowSharded` that shares all other arrays with this one.

        Raises:
          TypeError, ValueError: `data` is not numeric, or does not have one row for each row of `indices`.

        Example:
          >>> import jax, jax_sparse_grad as jsg
          >>> from scipy.sparse import eye_array
          >>> x = jsg.sharded.partition(eye_array(16), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
          >>> x.with_data(3 * x.data).data.tolist()[:2]
          [3.0, 3.0]
        """
        refuse_sparse("data", data)
        values = _arguments.as_values("data", data, self.indices.shape[0], "indices")
        return RowSharded(values, self.indices, self.row_starts, self.nnz, self.layout, values.shape[1:])


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "indices", "row_starts", "nnz"],
    meta_fields=["layout", "dense_shape"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RowSharded(RowPattern):
    """A sparse matrix or tensor whose rows (indices of its first dimension) are spread over an axis of a device mesh.

    Made by `partition`, `from_shards`, `repartition` and sums. A pytree, of which gradients and optimisers should see
    `data` alone: `x.with_data(data)` puts other values on the same pattern. A pickle, and what `jax.export` writes,
    refer to the devices of the mesh by their ids, which must exist in the process that reads it.

    Attributes:
      data: `[shards * capacity, *dense]`, the values, sharded along their first axis.
      indices: `[shards * capacity, ndims]`, of any integer dtype, sharded in the same way. Shard d holds the entries of
        the rows `row_starts[d] ... row_starts[d + 1] - 1` in any order, and padding, where all indices equal the shape.
      row_starts: `[shards + 1]`, ascending from 0 to the number of rows; replicated.
      nnz: `[shards]` int32, sharded: the number of entries in each shard. If that exceeds `capacity` in a sum, the
        values of the shard are poisoned: it has overflowed, or an operand had rows of others (`nnz` is 2**31 - 1).
      layout: the sparse shape, the mesh, and its axis, or tuple of axes, that rows are spread over (static).
      dense_shape: the sizes of the dense dimensions (static).

    Example:
      >>> import jax, numpy as np, jax_sparse_grad as jsg
      >>> from scipy.sparse import eye_array
      >>> x = jsg.sharded.partition(eye_array(16), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
      >>> (x.matrix @ np.arange(16.)).tolist()[:3]
      [0.0, 1.0, 2.0]

    Mirrors `jax.experimental.sparse.BCOO`, with its nse axis sharded.
    """

    data: jax.Array
    indices: jax.Array
    row_starts: jax.Array
    nnz: jax.Array
    layout: Layout
    dense_shape: tuple[int, ...] = ()

    @property
    def matrix(self) -> BCOO:
        """The same matrix as a plain BCOO, without a copy, for JAX's own operations: on mesh axes of type `Auto`.

        For SciPy, which knows no padding, `jax_sparse_grad.sum_duplicates(x.matrix)` strips that.
        """
        return BCOO((self.data, self.indices), shape=self.shape)

    def __repr__(self) -> str:
        dtype = getattr(self.data, "dtype", None)  # not an array while JAX handles the tree
        return f"RowSharded({dtype}{list(self.shape)}, shards={self.shards}, axis={self.axis!r})"

    if not TYPE_CHECKING:  # checkers refuse by themselves what is only here to say what to do instead
        __array_ufunc__ = None  # numpy leaves its operators to those below

        def __getattr__(self, name: str) -> Any:
            remedy = f"; `x.matrix.{name}` is that of the same matrix as a BCOO" if hasattr(BCOO, name) else ""
            raise AttributeError(f"a `RowSharded` has no {name!r}{remedy}", name=name, obj=self)

        def _refuse(self, _: Any) -> Any:
            raise TypeError(
                "a `RowSharded` has no operators; `jsg.sharded.add(x, y)` and `subtract(x, y)` add, `x.matrix @ v` "
                "multiplies, and `x.with_data(2 * x.data)` scales"
            )

        __add__ = __radd__ = __sub__ = __rsub__ = _refuse
        __mul__ = __rmul__ = __truediv__ = __matmul__ = __rmatmul__ = _refuse


def as_sharded(name: str, x: Any, remedy: str = "") -> RowSharded:
    """A `RowSharded`, and nothing else."""
    if not isinstance(x, RowSharded):
        got = _arguments.kind_of(x)
        raise TypeError(f"`{name}` must be a `RowSharded`, got {got}; `partition` makes one from a matrix{remedy}")
    return x


def refuse_sparse(name: str, values: Any) -> None:
    """Check that values are not a matrix on one device, whose entries are in another order."""
    if hasattr(values, "todense"):
        raise TypeError(
            f"`{name}` must be an array, got {type(values).__name__}; `partition` it, and pass the `data` of the result"
        )


def common_layout(operands: Mapping[str, RowSharded]) -> Layout:
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


def as_capacity(capacity: Any) -> int | None:
    """The number of elements that each shard is to store, at least one; or None."""
    size = _arguments.as_nse(capacity, "capacity")
    if size == 0:
        raise ValueError("`capacity` must be positive, got 0")
    return size


def check_capacity(capacity: int, counts: np.ndarray, entries: str = "entries") -> None:
    """Check that no shard has more entries, of which `counts` gives the number, than the capacity."""
    shard = int(np.argmax(counts))
    if counts[shard] > capacity:
        raise ValueError(
            f"`capacity` must be at least {counts[shard]}, the number of {entries} in shard {shard}; got {capacity}"
        )
