"""Sharded plans: every device unites the patterns of its own rows once, and adds values as often as wanted."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jax_sparse_grad import _validation
from jax_sparse_grad._keys import space_of
from jax_sparse_grad._numeric import add_values, poison_unless
from jax_sparse_grad._plan import unite_patterns
from jax_sparse_grad._tree import Form, Union, entry_counts, join, placements_of, settle, truncate
from jax_sparse_grad._types import ArrayInput
from jax_sparse_grad.sharded._guards import (
    all_in_all_shards,
    common_pattern,
    exact_capacity,
    guard_capacity,
    is_sound,
    most_in_shard,
)
from jax_sparse_grad.sharded._mesh import Axis, Layout, count_shards, cut, on_shards
from jax_sparse_grad.sharded._operand import RowSharded, as_values
from jax_sparse_grad.sharded._saving import Savable


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["indices", "row_starts", "union", "sound"],
    meta_fields=["shape", "mesh", "axis"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ShardedPlan(Savable):
    """The symbolic phase of a sum of row-sharded operands: adds their values as often as wanted.

    Made by `plan_sparse_add`. A pytree of integer arrays and flags, all sharded over the axis except `row_starts`.
    Pickled and exported as a `RowSharded` is.

    Attributes:
      indices: `[shards * capacity, ndims]`; each shard lexicographically sorted and unique, padding last.
      row_starts: `[shards + 1]`, replicated.
      union: where the entries of the operands went, for each shard: all arrays are `[shards, ...]`.
      sound: `[shards]` bool, whether the operands were partitioned alike and all rows lie in their shard. If not, sums
        of the shard are poisoned.
      shape: the sparse shape, a tuple of ints (static).
      mesh: the device mesh (static).
      axis: the axis of the mesh, or a tuple of axes (static).
    """

    indices: jax.Array
    row_starts: jax.Array
    union: Union
    sound: jax.Array
    shape: tuple[int, ...]
    mesh: Mesh
    axis: Axis

    @property
    def nnz(self) -> jax.Array:
        """`[shards]` int32, the true number of entries of each shard; one with more than `capacity` is poisoned."""
        return self.union.nnz

    @property
    def capacity(self) -> int:
        """The number of elements that each shard of the sum has room for (static)."""
        return self.indices.shape[0] // count_shards(self.mesh, self.axis)

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
        shards = count_shards(self.mesh, self.axis)
        if self.nnz.ndim != 1:
            raise ValueError(f"the plan is batched (`plan.nnz` has shape {self.nnz.shape}); call it under `jax.vmap`")
        sizes = [size for counts in entry_counts(self.union) for size in counts]
        if len(values) != len(sizes):
            listed = len(values) == 1 and isinstance(values[0], list | tuple)
            raise ValueError(
                f"`values` must be given for each of the {len(sizes)} operands of the plan, got {len(values)}"
                + ("; unpack the list, `plan(*values)`" if listed else "")
            )
        names = [f"values[{k}]" for k in range(len(values))]
        arrays = [
            as_values(name, array, size * shards, f"operands[{k}].indices")
            for k, (name, array, size) in enumerate(zip(names, values, sizes, strict=True))
        ]
        return add_planned(self, _validation.as_common_values(names, arrays))

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
        values = as_values("data", data, self.indices.shape[0], "indices")
        shape = self.shape + values.shape[1:]
        return RowSharded(values, self.indices, self.row_starts, self.nnz, shape, self.mesh, self.axis)


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
                f"`operands[{k}]` must be a `RowSharded`, got {_validation.kind_of(x)}; "
                "`partition` makes one from a matrix; pass several one by one, not in a list"
            )
    size = _validation.as_capacity(capacity)
    canonical = _validation.as_flag("assume_canonical", assume_canonical)
    named = {f"operands[{k}]": x for k, x in enumerate(operands)}
    layout, starts, indices = common_pattern(named, alike=True, canonical=canonical)
    return make_plan(layout, size, canonical, starts, indices)


def make_plan(
    layout: Layout,
    capacity: int | None,
    canonical: bool,
    row_starts: tuple[jax.Array, ...],
    indices: tuple[jax.Array, ...],
) -> ShardedPlan:
    bound = most_in_shard(layout, indices)

    def make(capacity: int) -> ShardedPlan:
        plan = _unite(layout, capacity, canonical, row_starts, indices)
        return guard_capacity(plan, layout, plan.nnz, capacity, bound)

    if not _validation.is_concrete(row_starts, indices):
        return make(bound if capacity is None else capacity)

    def make_exactly() -> ShardedPlan:
        plan = make(bound if capacity is None else capacity)
        # Without duplicates, a step with the plan needs no conditional.
        flags = [placement.unique for placement in placements_of(plan.union) if placement.unique is not None]
        if all_in_all_shards(layout, flags):
            plan = dataclasses.replace(plan, union=settle(plan.union, lambda _: True))
        return plan if capacity is not None else _cut_plan(layout, exact_capacity(layout, plan.nnz), plan)

    return _validation.call_concretely(make_exactly)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _unite(
    layout: Layout,
    capacity: int,
    canonical: bool,
    row_starts: tuple[jax.Array, ...],
    indices: tuple[jax.Array, ...],
) -> ShardedPlan:
    def unite_shard(row_starts: tuple[jax.Array, ...], indices: tuple[jax.Array, ...]) -> Any:
        space = space_of(layout.shape, indices[0].dtype)
        operands, joined = join(indices, canonical)
        rows, union = unite_patterns(Form.of_traced(capacity, canonical, joined), space, operands)
        sound = jnp.ones_like(union.nnz, bool) if canonical else is_sound(layout, row_starts, indices)
        return rows, jax.tree.map(lambda leaf: leaf[None], (union, sound))

    rows, (union, sound) = on_shards(layout, unite_shard, row_starts, indices)
    return ShardedPlan(rows, row_starts[0], union, sound, *layout)


@partial(jax.jit, static_argnums=(0, 1))
def _cut_plan(layout: Layout, capacity: int, plan: ShardedPlan) -> ShardedPlan:
    """The same plan with fewer slots in each shard, which must hold all of its entries."""
    union = jax.vmap(lambda union: truncate(union, capacity))(plan.union)
    return dataclasses.replace(plan, indices=cut(layout, capacity, plan.indices), union=union)


@jax.jit
def add_planned(plan: ShardedPlan, values: tuple[jax.Array, ...]) -> jax.Array:
    def add_shard(_: None, sharded: Any) -> jax.Array:
        (union, sound), values = sharded
        union, sound = jax.tree.map(lambda leaf: leaf[0], (union, sound))
        return poison_unless(sound, add_values(union, values))

    layout = Layout(plan.shape, plan.mesh, plan.axis)
    total: jax.Array = on_shards(layout, add_shard, None, ((plan.union, plan.sound), values))
    return total
