"""The operands of sharded sums: a BCOO whose rows are spread over a mesh axis."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

from jax_sparse_grad import _arguments
from jax_sparse_grad._types import BCOO, ArrayInput
from jax_sparse_grad.sharded._mesh import Layout
from jax_sparse_grad.sharded._saving import OnMesh


class RowPattern(OnMesh):
    """Index rows that are spread over an axis of a mesh: what operands and plans have in common.

    `indices [shards * capacity, ndims]` and `nnz [shards]` are sharded, `row_starts [shards + 1]` is replicated.
    """

    indices: jax.Array
    row_starts: jax.Array
    nnz: jax.Array

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
          TypeError: `data` is not numeric.
          ValueError: `data` does not have one row for each row of `indices`.

        Example:
          >>> import jax, numpy as np, jax_sparse_grad as jsg
          >>> from jax.experimental.sparse import BCOO
          >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
          >>> x = jsg.sharded.partition(BCOO.fromdense(np.eye(3, dtype=np.float32)), mesh, "rows")
          >>> x.with_data(2 * x.data).matrix.todense().diagonal().tolist()
          [2.0, 2.0, 2.0]
          >>> plan = jsg.sharded.plan_sparse_add(x, x)
          >>> plan.with_data(plan(x.data, 2 * x.data)).matrix.todense().diagonal().tolist()
          [3.0, 3.0, 3.0]
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
        values of the shard are poisoned: it has overflowed or, if `nnz` is 2**31 - 1, an operand had rows of others.
      layout: the sparse shape, the mesh, and its axis, or tuple of axes, that rows are spread over (static). Everything
        is replicated along all other axes.
      dense_shape: the sizes of the dense dimensions (static).

    Example:
      >>> import jax, numpy as np, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> x = jsg.sharded.partition(BCOO.fromdense(np.eye(16, dtype=np.float32)), mesh, "rows")
      >>> int(x.nnz.sum()), (x.matrix @ np.arange(16.)).tolist()[:3]
      (16, [0.0, 1.0, 2.0])

    Mirrors `jax.experimental.sparse.BCOO`, with its nse axis sharded.
    """

    data: jax.Array
    indices: jax.Array
    row_starts: jax.Array
    nnz: jax.Array
    layout: Layout
    dense_shape: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The sparse shape, followed by the sizes of the dense dimensions (static)."""
        return self.layout.shape + self.dense_shape

    @property
    def ndim(self) -> int:
        """The number of dimensions, dense ones included (static)."""
        return len(self.shape)

    @property
    def matrix(self) -> BCOO:
        """The same matrix as a plain BCOO, without a copy: `todense`, `@` and JAX's other operations work on it.

        They need a mesh axis of type `Auto`; on `Explicit` axes JAX's own operations raise.
        """
        return BCOO((self.data, self.indices), shape=self.shape)

    def __repr__(self) -> str:
        dtype = getattr(self.data, "dtype", None)  # not an array while JAX handles the tree
        return f"RowSharded({dtype}{list(self.shape)}, shards={self.shards}, axis={self.axis!r})"


def refuse_sparse(name: str, values: Any) -> None:
    """Check that values are not a matrix, sharded or on one device."""
    if isinstance(values, RowSharded):
        raise TypeError(f"`{name}` must be an array, got RowSharded; pass its `data`")
    if hasattr(values, "todense"):
        raise TypeError(
            f"`{name}` must be an array, got {type(values).__name__}; `partition` it, and pass the `data` of the result"
        )
