"""A user's file. `test_types` has it checked: every line is accepted but those marked "refused"."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR
from jax.sharding import Mesh

import jax_sparse_grad as jsg
from jax_sparse_grad.sharded import RowSharded, ShardedPlan

Host = np.ndarray[Any, Any]


class Parameter:
    """As `flax.nnx.Param`."""

    def __init__(self, value: jax.Array) -> None:
        self.value = value

    def __jax_array__(self) -> jax.Array:
        return self.value


def coordinates(x: BCOO, y: BCOO) -> BCOO:
    return jsg.subtract(jsg.add(x, y), y, nse=7, assume_canonical=True)


def compressed(x: BCSR, y: BCSR, nse: np.int64) -> BCSR:
    return jsg.subtract(jsg.add(x, y), y, nse=nse)


def mixed(x: BCOO, y: BCSR) -> BCOO:
    return jsg.subtract(jsg.add(y, x), jsg.add(x, y))


def either(x: BCOO | BCSR, y: BCOO | BCSR) -> BCOO | BCSR:
    return jsg.add(x, y)


def dense(x: BCOO, y: BCSR, device: jax.Array, host: Host) -> jax.Array:
    return jsg.add(x, jsg.add(device, y)) + jsg.subtract(host, x) + jsg.add([[1.0, 0.0, 0.0], [0, 1, 0], [0, 0, 1]], x)


def wrapped(x: BCOO, parameter: Parameter) -> BCOO:
    total: BCOO = jsg.add(x, parameter)
    return total


def many(matrices: list[BCOO], weight: jax.Array) -> BCOO:
    return jsg.add_n(matrices, weights=[1, 2.5, weight], nse=9)


def generated(matrices: Iterator[BCSR], weights: jax.Array) -> BCSR:
    return jsg.add_n(matrices, weights=weights)


def many_mixed(x: BCOO, y: BCSR) -> BCOO | BCSR:
    return jsg.add_n([x, y])


def many_dense(x: BCOO, y: BCSR, z: jax.Array, p: Parameter) -> BCOO | BCSR | jax.Array:
    return jsg.add_n((x, y, z, p))


def canonical(x: BCOO, y: BCSR) -> tuple[BCOO, BCSR]:
    return jsg.sum_duplicates(x, remove_zeros=True), jsg.sum_duplicates(y, nse=3)


def room(shape: tuple[int, ...], x: BCOO) -> BCOO:
    return jsg.add(jsg.empty(shape, 5, jnp.float32, n_dense=1, index_dtype="int64"), jsg.empty([3, 3], x.nse, x.dtype))


def tensorflow(indices: jax.Array, values: Host, shape: Host, thresh: jax.Array) -> tuple[int, ...]:
    total = jsg.sparse_add(indices, values, shape, [[0, 0]], (1.0,), [3, 3], thresh, nse=np.int32(4))
    total = jsg.sparse_add(*total, indices, values, total.sum_shape, 0.5)
    gradients = jsg.sparse_add_grad(total.sum_values, indices, [[0, 0]], total.sum_indices, shape=total.sum_shape)
    return (*gradients.a_val_grad.shape, *gradients.b_val_grad.shape)


def plan_of_coordinates(x: BCOO, y: BCOO) -> BCOO:
    plan = jsg.plan_sparse_add(x, y, nse=7)
    return plan.with_data(plan(x.data, y.data))


def plan_of_compressed(matrices: list[BCSR]) -> BCSR:
    plan = jsg.plan_sparse_add(*matrices)
    return plan.with_data(plan(*(x.data for x in matrices)))


def plan_of_arrays(indices: jax.Array, host: Host, values: jax.Array) -> BCOO:
    plan = jsg.plan_sparse_add(indices, host, [[0, 0]], shape=(3, 3))
    slots: tuple[jax.Array, ...] = plan.slots
    return plan.with_data(plan(values, [1.0, 2.0], values[slots[0]]))


def plan_of_mixed(x: BCOO, y: BCSR) -> BCOO | BCSR:
    return use_plan(jsg.plan_sparse_add(x, y), x.data)


def use_plan(plan: jsg.SparseAddPlan, values: jax.Array) -> BCOO | BCSR:
    return plan.with_data(plan(values, values))


def use_plan_of_compressed(plan: jsg.SparseAddPlan[BCSR], values: jax.Array) -> BCSR:
    return plan.with_data(plan(values, values)) if plan.ndim == 2 and use_plan(plan, values).nse else kept_plan(plan)


def kept_plan(plan: jsg.SparseAddPlan[BCSR]) -> BCSR:
    return plan.with_data([1.0])


def spread(x: BCOO, y: BCSR, mesh: Mesh) -> RowSharded:
    starts = jsg.sharded.balanced_row_starts([x, y], 8)
    parts = [
        jsg.sharded.partition(x, mesh, "rows", row_starts=starts, capacity=5),
        jsg.sharded.partition(y, mesh, ("rows", "columns"), row_starts=starts.tolist()),
        jsg.sharded.from_shards(lambda start, stop: x if start < stop else y, x.shape, mesh, "rows"),
    ]
    return jsg.sharded.add_n(parts, capacity=jsg.sharded.add(*parts[:2], assume_canonical=True).capacity)


def spread_dense(x: RowSharded, device: jax.Array, host: Host) -> jax.Array:
    return jsg.sharded.add(x, jsg.sharded.add(device, x)) + jsg.sharded.add(host, x)


def spread_plan(x: RowSharded, y: RowSharded) -> tuple[ShardedPlan, RowSharded, BCOO]:
    plan = jsg.sharded.plan_sparse_add(x, y)
    total = plan.with_data(plan(x.data, y.data))
    moved = jsg.sharded.repartition(total, x.row_starts)
    return plan, moved.with_data(2 * moved.data), total.matrix


def refused(x: BCOO, y: BCSR, indices: jax.Array, values: Host) -> None:
    jsg.add(x, "hello")  # refused
    jsg.add(x, 3)  # refused
    jsg.add(x)  # refused
    jsg.add([x, x])  # refused
    jsg.add(indices, values)  # refused
    jsg.add(x, x, 7)  # refused
    jsg.add(x, x, nse="seven")  # refused
    jsg.add(x, x, assume_canonical="yes")  # refused
    jsg.subtract(y, y, capacity=7)  # refused
    jsg.add_n(x)  # refused
    jsg.add_n([x, "hello"])  # refused
    jsg.add_n({"x": x})  # refused
    jsg.add_n([x, x], weights="ab")  # refused
    jsg.sum_duplicates(indices)  # refused
    jsg.sum_duplicates(x, remove_zeros="yes")  # refused
    jsg.empty("abc", 3, jnp.float32)  # refused
    jsg.empty((3, 3), None, jnp.float32)  # refused
    jsg.sparse_add(indices, values, "abc", indices, values, (3, 3))  # refused
    jsg.sparse_add(indices, values, (3.0, 3.0), indices, values, (3, 3))  # refused
    jsg.sparse_add(indices, x, (3, 3), indices, values, (3, 3))  # refused
    jsg.sparse_add(indices, values, (3, 3), indices, values, (3, 3), "small")  # refused
    jsg.sparse_add(indices, values, (3, 3), indices, values, (3, 3), nse="seven")  # refused
    jsg.sparse_add_grad(values, indices, indices, x)  # refused
    wrong_form: BCSR = jsg.add(x, y)  # refused
    wrong_kind: BCOO = jsg.add(x, indices)  # refused
    wrong_result: jax.Array = jsg.sparse_add(indices, values, (3, 3), indices, values, (3, 3))  # refused
    del wrong_form, wrong_kind, wrong_result


def refused_of_plans(x: BCOO, y: BCSR, indices: jax.Array, plan: jsg.SparseAddPlan) -> None:
    jsg.plan_sparse_add()  # refused
    jsg.plan_sparse_add([x, x], [x, x])  # refused
    jsg.plan_sparse_add(indices, indices)  # refused
    jsg.plan_sparse_add(x, [[0, 0]])  # refused
    jsg.plan_sparse_add(indices, shape="abc")  # refused
    plan(x)  # refused
    plan(values=indices)  # refused
    plan.with_data(y)  # refused
    plan.nse = 7  # refused
    use_plan_of_compressed(plan, indices)  # refused
    use_plan_of_compressed(jsg.plan_sparse_add(x, x), indices)  # refused


def refused_where_sharded(x: BCOO, spread: RowSharded, array: jax.Array, mesh: Mesh, plan: ShardedPlan) -> None:
    jsg.sharded.partition(array, mesh, "rows")  # refused
    jsg.sharded.partition(spread, mesh, "rows")  # refused
    jsg.sharded.partition(x, "mesh", "rows")  # refused
    jsg.sharded.partition(x, mesh, "rows", capacity="many")  # refused
    jsg.sharded.from_shards(x, (3, 3), mesh, "rows")  # refused
    jsg.sharded.balanced_row_starts(array, 8)  # refused
    jsg.sharded.add(x, spread)  # refused
    jsg.sharded.add(array, array)  # refused
    jsg.sharded.add(spread, spread, nse=7)  # refused
    jsg.sharded.add_n([spread, x])  # refused
    jsg.sharded.plan_sparse_add(x)  # refused
    jsg.sharded.repartition(x)  # refused
    plan("hello")  # refused
    spread.with_data(x)  # refused
