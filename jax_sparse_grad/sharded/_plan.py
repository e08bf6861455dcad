"""Sharded plans: every device unites the patterns of its own rows once, and adds values as often as wanted."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import SupportsIndex

import jax

from jax_sparse_grad import _arguments
from jax_sparse_grad._types import ArrayInput
from jax_sparse_grad._union import Union
from jax_sparse_grad.sharded import _engine
from jax_sparse_grad.sharded._engine import ShardedPattern
from jax_sparse_grad.sharded._guards import common_pattern
from jax_sparse_grad.sharded._mesh import Layout
from jax_sparse_grad.sharded._operand import RowSharded, refuse_unsharded, with_values
from jax_sparse_grad.sharded._saving import OnMesh
from jax_sparse_grad.sharded._validation import as_capacity


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["union", "row_starts", "sound"],
    meta_fields=["layout"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ShardedPlan(OnMesh):
    """The symbolic phase of a sum of row-sharded operands: adds their values as often as wanted.

    Made by `plan_sparse_add`. A pytree of integer arrays and flags, all sharded over the axis except `row_starts`.
    Pickled and exported as a `RowSharded` is.

    Attributes:
      union: the indices of the sum, `[shards * capacity, ndims]`, each shard sorted and unique, padding last; where the
        entries of the operands went, `[shards * capacity_k]`, counted within each shard; the true numbers of entries.
      row_starts: `[shards + 1]`, replicated.
      sound: `[shards]` bool, whether the operands were partitioned alike and all rows lie in their shard. If not, sums
        of the shard are poisoned.
      layout: the sparse shape, the mesh, and its axis, or tuple of axes, that rows are spread over (static).
    """

    union: Union
    row_starts: jax.Array
    sound: jax.Array
    layout: Layout

    @property
    def indices(self) -> jax.Array:
        """`[shards * capacity, ndims]`; each shard lexicographically sorted and unique, padding last."""
        return self.union.indices

    @property
    def shape(self) -> tuple[int, ...]:
        """The sparse shape, a tuple of ints (static)."""
        return self.layout.shape

    @property
    def nnz(self) -> jax.Array:
        """`[shards]` int32, the true number of entries of each shard; one with more than `capacity` is poisoned."""
        return self.union.nnz

    @property
    def capacity(self) -> int:
        """The number of elements that each shard of the sum has room for (static)."""
        return self.indices.shape[0] // self.layout.shards

    @property
    def ndim(self) -> int:
        """The number of sparse dimensions (static)."""
        return len(self.shape)

    def __repr__(self) -> str:
        return f"ShardedPlan(shape={self.shape}, capacity={self.capacity}, axis={self.axis!r})"

    def __call__(self, *values: ArrayInput) -> jax.Array:
        """Add the values of all operands: every device those of its own rows.

        Args:
          *values: for operand k `[shards * capacity_k, *dense]`, of any numeric dtype. Dtypes promote as in `jnp`.

        Returns:
          `[shards * capacity, *dense]`, the values of the sum at `plan.indices`, sharded in the same way, with 0 at
          padding.

        Raises:
          TypeError: values are not numeric.
          ValueError: their number or shapes do not match the operands of the plan.

        Example:
          >>> import jax, numpy as np, jax_sparse_grad as jsg
          >>> from jax.experimental.sparse import BCOO
          >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
          >>> x = jsg.sharded.partition(BCOO.fromdense(np.eye(16, dtype=np.float32)), mesh, "rows")
          >>> plan = jsg.sharded.plan_sparse_add(x, x)
          >>> float(plan(x.data, 2 * x.data).sum())
          48.0

        Linear in the values. Works under all of JAX's transformations. Neither the call nor its derivative
        communicates.
        """
        if self.nnz.ndim != 1:
            raise ValueError(f"the plan is batched (`plan.nnz` has shape {self.nnz.shape}); call it under `jax.vmap`")
        for k, array in enumerate(values):
            refuse_unsharded(f"values[{k}]", array)
        nnz = [slots.shape[0] for slots in self.union.slots]
        arrays, dtype = _arguments.as_plan_values(values, nnz, ".indices")
        return _engine.add_planned(self.layout, ShardedPattern(self.union, self.sound), arrays, dtype)

    def with_data(self, data: ArrayInput) -> RowSharded:
        """The sum with the values `data` `[shards * capacity, *dense]`, which `plan(*values)` returns.

        Args:
          data: numeric, of any dtype and with any dense dimensions.

        Returns:
          A `RowSharded` with the pattern of the sum.

        Raises:
          TypeError: `data` is not numeric.
          ValueError: `data` does not have one row for each row of `plan.indices`.

        Example:
          >>> import jax, numpy as np, jax_sparse_grad as jsg
          >>> from jax.experimental.sparse import BCOO
          >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
          >>> x = jsg.sharded.partition(BCOO.fromdense(np.eye(16, dtype=np.float32)), mesh, "rows")
          >>> plan = jsg.sharded.plan_sparse_add(x, x)
          >>> plan.with_data(plan(x.data, 2 * x.data)).matrix.todense().trace().item()
          48.0
        """
        return with_values(data, self.indices, self.row_starts, self.nnz, self.layout)


def plan_sparse_add(
    *operands: RowSharded, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> ShardedPlan:
    """Do the symbolic phase of adding row-sharded operands: every device unites the patterns of its own rows.

    Args:
      *operands: at least one `RowSharded`. All must be spread over the same axis of one mesh with equal `row_starts`.
        Their values do not matter, nor do their dense dimensions.
      capacity: the number of elements that the sum stores in each shard, static. By default what the fullest shard
        needs if all indices are concrete, otherwise the sum of the operands' capacities, which is always enough.
      assume_canonical: as for `add`.

    Returns:
      A `ShardedPlan`; `plan(*values)` adds.

    Raises:
      TypeError: an operand is not a `RowSharded`; a static argument is traced.
      ValueError: there is no operand; otherwise as for `add`.

    Example:
      >>> import jax, numpy as np, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> a, b = (BCOO.fromdense(np.eye(16, k=k, dtype=np.float32)) for k in (0, 1))
      >>> starts = jsg.sharded.balanced_row_starts([a, b], jax.device_count())
      >>> x, y = (jsg.sharded.partition(each, mesh, "rows", row_starts=starts) for each in (a, b))
      >>> plan = jsg.sharded.plan_sparse_add(x, y)
      >>> loss = lambda data: (plan(data, y.data) ** 2).sum()
      >>> float(jax.jit(jax.grad(loss))(x.data).sum())
      32.0

    Mirrors `jax_sparse_grad.plan_sparse_add`.
    """
    if not operands:
        raise ValueError("`operands` must hold at least one operand")
    for k, x in enumerate(operands):
        if not isinstance(x, RowSharded):
            raise TypeError(
                f"`operands[{k}]` must be a `RowSharded`, got {_arguments.kind_of(x)}; "
                "`partition` makes one from a matrix; pass several one by one, not in a list"
            )
    room = as_capacity(capacity)
    canonical = _arguments.as_flag("assume_canonical", assume_canonical)
    named = {f"operands[{k}]": x for k, x in enumerate(operands)}
    layout, starts, indices = common_pattern(named, alike=True)
    pattern = _engine.plan(layout, room, canonical, starts, indices)
    return ShardedPlan(pattern.union, starts[0], pattern.sound, layout)
