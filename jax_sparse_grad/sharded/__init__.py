"""Sparse sums that outgrow one device: rows spread over a mesh axis, each device adding its own range of rows.

    shard 0        shard 1     shard 2          a `RowSharded` operand: shard d holds the entries of the rows
    rows 0 ... 9   10 ... 11   12 ... 99        row_starts[d] ... row_starts[d + 1] - 1, and padding behind them,
    [x x x x .]    [x x x x x] [x x x . .]      `capacity` slots in all: together one BCOO whose nse axis is sharded

Operands of one sum have the same `row_starts`, so that what is added lies on one device: neither the sum nor its
gradient communicates. Where to cut is chosen by the number of entries, not of rows (`balanced_row_starts`).

What is where, and what travels:

    data, indices, nnz; plans; sums; gradients       sharded over the axis, the same along all other axes of the mesh
    row_starts; dense operands, their sums           replicated
    add, add_n and plans, forward and backward       nothing
    ... with a dense operand                         forward one all-reduce of its size, since the sum is replicated
    repartition                                      one all-to-all of what moves: of indices and values, then of the
                                                     cotangent of the values
    eager calls, and checks under `checkify`         a few numbers for each shard, so that all processes raise alike
    `x.matrix @ v` and the like of JAX               as XLA's partitioner sees fit: mostly one all-reduce of the result

On paper. Let N entries in `ndims` columns of i bytes and a value of v bytes lie on D devices, and let s = the fullest
shard / the mean one (the skew: 1 is perfect). Cuts fall between rows, so that s <= max(1, D * heaviest row / N) + 1,
and s stays within a percent of 1 as long as no row holds more than a hundredth of a shard. A device then

- stores s N / D * (i ndims + v) bytes for each operand, 12 s N / D for float32 matrices, and `row_starts`, i (D + 1);
- merges in time proportional to s (N_a + N_b) / D: padding is merged too, capacity counts, not entries. Sums as large
  as both operands' capacities need as much memory as these; give `capacity` where they overlap;
- keeps a plan, or what the backward pass needs: 4 bytes for each entry of the operands, 8 for each slot of the sum;
- for a repartition holds D blocks as large as the largest flow between two shards, s N / D at worst.

10^12 entries on 4,096 devices are 2.4 * 10^8 on each: 2.9 GB an operand, 5.9 GB the sum of two that share nothing, 3.9
GB a plan: no more than a GPU holds. What breaks first:

1. The index dtype. 10^12 entries at a hundred a row are 10^10 rows, beyond int32: `jax_enable_x64` and int64 indices,
   20 bytes an entry instead of 12. (Keys of two 32-bit words, or one of 64 bits with x64, merge at about half the speed
   of one; counts and places within a shard stay int32 up to 2^31 entries on a device.)
2. A heavy row. Rows are not divided: one with more than N / D entries, 0.02 % of 10^12 on 4,096 devices, makes all
   other shards wait and pads them to its length. Number such rows apart, or spread them as several rows.
3. Host memory, if all is loaded in one place: 12 to 20 TB. `from_shards` loads a shard at a time, 3 to 5 GB of host
   memory, if `capacity` is given.
4. The blocks of a repartition, if much moves between two shards: then they are 4,096 times as long as the flow. Move
   in several small drifts, each between neighbours, or load anew.
"""

from jax_sparse_grad.sharded._add import add, add_n
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
]
