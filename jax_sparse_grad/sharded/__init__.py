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
    ... with a dense operand                         forward one all-reduce of the sum, since that is replicated
    repartition                                      all-to-all of what moves: of indices and values, and backward of
                                                     the cotangent of the values
    eager calls, and checks under `checkify`         a few numbers for each shard, so that all processes raise alike
    `x.matrix @ v` and the like of JAX               as XLA decides: mostly one all-reduce of the result

Several processes make the same calls, one after the other, as always in JAX. What is wrong in one raises in all. Where
one dies, the others wait for it in the next call that communicates until JAX ends them with an error: after
`heartbeat_timeout_seconds` (100) if it was killed, after `shutdown_timeout_seconds` (300) if it raised an error of its
own; both are arguments of `jax.distributed.initialize`.

On paper. Let N entries with `ndims` indices of i bytes and a value of v bytes lie on D devices, and let s be the skew:
the fullest shard / the mean one, at best 1. Rows are not divided, so that s < 1 + h D / N, if h entries are in the
heaviest row: within a percent of 1 as long as no row has more than a hundredth of a shard. Then a device

- stores s N / D * (i ndims + v) bytes for each operand: 12 s N / D for float32 matrices; and `row_starts`, i (D + 1);
- merges in time proportional to s (N_a + N_b) / D. Padding is merged too: capacities count, not entries. By default,
  the sum under `jit` has room for all entries of both; give `capacity` where they overlap;
- keeps for the backward pass, or in a plan, 4 bytes for each slot of the operands and 8 for each slot of the sum;
- in a repartition holds D blocks, each as long as the largest flow between two shards, at worst s N / D.

10^12 entries on 4,096 devices are 2.4 * 10^8 on each: 2.9 GB an operand, 5.9 GB the sum of two that share nothing, 5.9
GB for its gradient. A GPU holds that. What breaks first:

1. The index dtype. 10^12 entries at a hundred a row are 10^10 rows, beyond int32: they need `jax_enable_x64` and int64
   indices, 20 bytes an entry instead of 12. Shapes whose cells one 32-bit word cannot number (40,000 x 40,000 it can)
   are merged by wider keys, in about 1.5 times the time. Places within a shard are int32: fewer than 2^31 entries of
   all operands together on each device.
2. A heavy row. One with more than N / D entries, 0.02 % of all on 4,096 devices, makes all other shards wait, and pads
   them to its length: number what it stands for as several rows, and add these up afterwards.
3. Host memory, if all is loaded in one place: 12 to 20 TB. `from_shards` holds one shard at a time, 3 to 5 GB, if
   `capacity` is given. (`partition` and `balanced_row_starts` of matrices on the host hold a sorted copy.)
4. The blocks of a repartition, if much moves between any two shards: in all, they are 4,096 times the largest flow.
   Move while flows are small, each to its neighbours, or load anew.
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
