"""Sparse sums that outgrow one device: rows are spread over a mesh axis, and each device adds its own range of rows.

  partition             a BCOO, BCSR or SciPy matrix becomes a `RowSharded`, its rows spread over a mesh axis
  from_shards           likewise shard by shard, so that no process holds more than its own rows
  balanced_row_starts   where to cut the rows so that all shards have about equally many entries
  add, subtract, add_n  sums of `RowSharded` operands, and of these with dense arrays
  sum_duplicates        the canonical form of one
  plan_sparse_add       the symbolic phase once: a `ShardedPlan` then adds values
  repartition           moves entries to other shards, for other row ranges or after rows have left their shard

Names that `jax_sparse_grad` has too mean the same there. `RowSharded` and `ShardedPlan` are pytrees. All
transformations of sums and of plans work.

    shard 0        shard 1     shard 2          a `RowSharded` operand: shard d holds the entries of the rows
    rows 0 ... 9   10 ... 11   12 ... 99        row_starts[d] ... row_starts[d + 1] - 1, and padding behind them,
    [x x x x .]    [x x x x x] [x x x . .]      `capacity` elements in all: together a BCOO with a sharded nse axis

All operands of a sum have the same `row_starts`. So entries that are added lie on the same device, and neither the sum
nor its gradient communicates. Cuts are chosen by the number of entries, not of rows (`balanced_row_starts`).

  >>> import jax, jax_sparse_grad as jsg
  >>> from scipy.sparse import eye_array
  >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
  >>> a, b = eye_array(16), 2 * eye_array(16)
  >>> starts = jsg.sharded.balanced_row_starts([a, b], jax.device_count())
  >>> x, y = (jsg.sharded.partition(each, mesh, "rows", row_starts=starts) for each in (a, b))
  >>> jsg.sharded.add(x, y).data.tolist()[:3]
  [3.0, 3.0, 3.0]

Values, indices and `nnz` of operands, plans, sums and gradients are sharded over the axis, and replicated along all
other axes of the mesh; `row_starts`, dense operands and their sums are replicated. What is communicated:

    sums and plans, forward and backward     nothing
    ... with a dense operand                 one all-reduce of the sum, forward only, because it is replicated
    ... with weights                         one all-reduce of their gradient
    repartition                              all-to-all of what moves: of indices and values forward, of the cotangent
                                             of the values backward
    calls outside of `jit`                   a few numbers for each shard, so that all processes raise alike
    `x.matrix @ v`, other operations of JAX  as XLA decides: mostly one all-reduce of the result

Operations on `x.matrix` need mesh axes of type `Auto`. `checkify` reports nothing from inside sharded functions. With
more CPU devices than cores, XLA may abort a long program, where a device comes too late to a collective: use fewer.

Several processes (`jax.distributed`) must make the same calls in the same order, as always in JAX. An error in one
process is raised in all. If a process dies, the others wait for it in the next call that communicates, until JAX ends
them with an error: after `heartbeat_timeout_seconds` (100) if it was killed, after `shutdown_timeout_seconds` (300) if
it raised an error of its own. Both are arguments of `jax.distributed.initialize`.

Memory and time. All devices store as many elements as the fullest has entries: of N entries on D devices, fewer than
N / D + h if the heaviest row has h, as rows are not divided. An element takes its indices and its value; in a plan or
for the backward pass, 4 bytes more in an operand and 8 in the sum. A merge takes time proportional to all capacities.

10^12 entries on 4,096 devices are 2.4 * 10^8 on each: 2.9 GB for a float32 matrix, 5.9 GB for the sum of two that share
nothing, and 5.9 GB for its gradient. A GPU can hold that. What breaks first:

1. The index dtype. 10^12 entries at a hundred per row are 10^10 rows, beyond int32: they need `jax_enable_x64` and
   int64 indices, 20 bytes per entry instead of 12. On each device, operands together must have fewer than 2^31 entries.
2. A heavy row. A row with more than N / D entries makes all other shards wait, and pads them to its length. Split it
   over several row numbers, and add these rows up afterwards.
3. Host memory, if everything is loaded in one place: 12 to 20 TB. `from_shards` with a `capacity` holds one shard at a
   time, 3 to 5 GB. (`partition` and `balanced_row_starts` hold a sorted copy of matrices on the host.)
4. The blocks of a repartition: together they are 4,096 times the largest flow between two shards, at worst a whole
   shard. Move while flows are small and go to neighbours, or load again.
"""

from jax_sparse_grad.sharded._add import add, add_n, subtract, sum_duplicates
from jax_sparse_grad.sharded._balance import balanced_row_starts
from jax_sparse_grad.sharded._loading import from_shards, partition
from jax_sparse_grad.sharded._operand import RowSharded
from jax_sparse_grad.sharded._plan import ShardedPlan, plan_sparse_add
from jax_sparse_grad.sharded._repartition import repartition

__all__ = [
    "RowSharded",
    "ShardedPlan",
    "add",
    "add_n",
    "balanced_row_starts",
    "from_shards",
    "partition",
    "plan_sparse_add",
    "repartition",
    "subtract",
    "sum_duplicates",
]
