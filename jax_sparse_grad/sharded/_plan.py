"""Sharded plans: every device finds the union of its own rows once, and adds values as often as wanted."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import SupportsIndex

import jax

from jax_sparse_grad import _arguments
from jax_sparse_grad._types import ArrayInput, Arrays
from jax_sparse_grad._union import Union
from jax_sparse_grad.sharded import _sum
from jax_sparse_grad.sharded._mesh import Layout
from jax_sparse_grad.sharded._operand import RowPattern, RowSharded, as_capacity, as_sharded, refuse_sparse


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["indices", "slots", "row_starts", "nnz"],
    meta_fields=["layout"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ShardedPlan(RowPattern):
    """The symbolic phase of a sum of row-sharded operands: adds their values as often as wanted.

    Made by `plan_sparse_add`. A pytree of integer arrays. Pickled and exported as a `RowSharded` is.

    Attributes:
      indices, row_starts, nnz, layout: those of the sum, as in `RowSharded`; each shard lexicographically sorted and
        unique, padding last. If `nnz` exceeds `capacity`, all sums of the shard are poisoned.
      slots: for operand k `[shards * capacity_k]` int32, sharded: the place of each of its entries in its shard of the
        sum; out of bounds where it has none, as padding.
    """

    indices: jax.Array
    slots: Arrays
    row_starts: jax.Array
    nnz: jax.Array
    layout: Layout

    def __repr__(self) -> str:
        return f"ShardedPlan(shape={self.shape}, capacity={self.capacity}, axis={self.axis!r})"

    def __call__(self, *values: ArrayInput) -> jax.Array:
        """Add the values of all operands: every device those of its own rows. Linear in the values.

        Args:
          *values: for operand k `[shards * capacity_k, *dense]`, of any numeric dtype. Dtypes promote as in `jnp`.

        Returns:
          `[shards * capacity, *dense]`, the values of the sum at `plan.indices`, sharded as these, with 0 at padding.

        Raises:
          TypeError, ValueError: values are not numeric; their number or shapes do not match the operands of the plan.
        """
        if self.nnz.ndim != 1:
            raise ValueError(f"the plan is batched (`plan.nnz` has shape {self.nnz.shape}); call it under `jax.vmap`")
        for k, array in enumerate(values):
            refuse_sparse(f"values[{k}]", array)
        arrays, dtype = _arguments.as_plan_values(values, [slots.shape[0] for slots in self.slots], ".indices")
        union = Union(self.indices, self.slots, self.nnz)
        return _sum.add_values(self.layout, (dtype, (False,) * len(arrays)), (), (union, arrays))


def plan_sparse_add(
    *operands: RowSharded, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> ShardedPlan:
    """Do the symbolic phase of adding row-sharded operands: every device finds the union of its own rows.

    Args:
      *operands: at least one `RowSharded`. All must be spread over the same axis of one mesh with equal `row_starts`.
        Their values do not matter, nor do their dense dimensions.
      capacity: as for `add`.
      assume_canonical: as for `add`.

    Returns:
      A `ShardedPlan`: `plan(*values)` adds, and `plan.with_data(data)` makes a `RowSharded` of the result.

    Raises:
      TypeError: an operand is not a `RowSharded`; a static argument is traced.
      ValueError: there is no operand; otherwise as for `add`.

    Example:
      >>> import jax, jax_sparse_grad as jsg
      >>> from scipy.sparse import eye_array
      >>> x = jsg.sharded.partition(eye_array(16), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
      >>> plan = jsg.sharded.plan_sparse_add(x, x)
      >>> plan.with_data(plan(x.data, x.data)).data.tolist()[:2]
      [2.0, 2.0]
    """
    if not operands:
        raise ValueError("`operands` must hold at least one operand")
    named = {f"operands[{k}]": x for k, x in enumerate(operands)}
    for name, x in named.items():
        as_sharded(name, x, "; pass several one by one, not in a list")
    size, canonical = as_capacity(capacity), _arguments.as_flag("assume_canonical", assume_canonical)
    layout, row_starts, indices = _sum.patterns_of(named, same_starts=True)
    union = _sum.find_union(layout, size, canonical, row_starts, indices)
    return ShardedPlan(union.indices, union.slots, row_starts[0], union.nnz, layout)
