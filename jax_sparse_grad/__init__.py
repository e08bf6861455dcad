"""Differentiable addition of sparse matrices and tensors for JAX.

In `jax.experimental.sparse`, `x + y` of two BCOO matrices only concatenates their entries: duplicates stay, and
removing them afterwards needs a full sort. This package adds without leaving duplicates, and differentiates through the
sum. It works under `jit`, `grad`, `vmap`, `scan` and JAX's other transformations.

Which call?

  add, subtract     Two operands: BCOO, BCSR or dense. Start here. Inside `jit`, as fast as a plan where the indices are
                    closed over.
  add_n             Any number of operands in one pass, with optional weights that are differentiable.
  plan_sparse_add   Patterns that stay while values change: find their union once, and call the plan in each step. Also
                    where the pattern is an argument of the jitted function: make the plan outside and pass that.
  sum_duplicates    One matrix, brought to canonical form.
  empty             A matrix without entries: the initial carry of a loop that accumulates.
  sparse_add        TensorFlow's `SparseAdd`, argument for argument, on arrays of indices and values: for ports from
                    TensorFlow, and for a threshold below which entries are dropped.
  sparse_add_grad   TensorFlow's `SparseAddGrad`, likewise. `jax.grad` of `sparse_add` applies it for you.
  sharded           The same sums for matrices too large for one device: their rows are spread over a device mesh.

`SparseAddPlan`, `SparseAddOutput` and `SparseAddGradOutput` are what these functions return.

  >>> import jax, jax.numpy as jnp, jax_sparse_grad as jsg
  >>> from jax.experimental.sparse import BCOO
  >>> x = BCOO.fromdense(jnp.array([[1., 0.], [0., 2.]]))
  >>> y = BCOO.fromdense(jnp.array([[0., 3.], [0., 4.]]))
  >>> jsg.add(x, y), (x + y).nse
  (BCOO(float32[2, 2], nse=3), 4)
  >>> def loss(data):
  ...     return jnp.sum(jsg.add(BCOO((data, x.indices), shape=x.shape), y).data ** 2)
  >>> jax.jit(jax.grad(loss))(x.data).tolist()
  [2.0, 12.0]

Results are sorted, each entry once, padding last. Operands may come in any order and with duplicates, also under `jit`;
the flags `indices_sorted` and `unique_indices` are not relied on. Values and indices of different dtypes promote as in
`jnp`, and each gradient has its own operand's dtype. Cancelled entries stay, as zeros.

Transformations: `grad`, `vjp`, `jit`, `vmap` (over values, indices or both), `jacrev`, `hessian`, `scan`, `cond`,
`checkpoint`, `shard_map` and `jax.export` work everywhere; `jvp`, `jacfwd`, `linearize` and `linear_transpose` too,
except on `sparse_add`, whose rule is a `custom_vjp`, as JAX bars them there. The backward pass only gathers. Batches
that share a pattern find their union once; batches that are divided over a mesh stay so, but if the entries of one
matrix are divided, its sum is replicated (`sharded` is for that).

The order of addition is operand by operand, dense ones first, and in each its stored order; floats below 32 bits are
summed in float32 and rounded once. So sums agree bit for bit between platforms and with TensorFlow. There are two
exceptions. XLA adds duplicates on GPUs in any order, unless `XLA_FLAGS=--xla_gpu_deterministic_ops=true`. And where
rows are sharded, sparse operands are added to each other before a dense one, where signs of zero are lost.

Dtypes: any numeric dtype of `jax.numpy` of at least 2 bits, except those without a NaN to mark an overflow
(`float4_e2m1fn`, `float6_*`) or without a zero (`float8_e8m0fnu`). TensorFlow's q-types are their storage types. An
index dtype must hold the size of every dimension, which marks padding; beyond that, no shape overflows. All operands
together must have fewer than 2^31 entries. A tensor without dimensions cannot mark padding: every row is an entry.

Plans, outputs and sharded operands are pytrees that can be pickled, and that `jax.export` writes (with flatbuffers, a
package of its own) and reads where this package is imported. Plans have one structure whatever made them: with arrays
of the same shapes, one takes another's place under `jit` without a new compilation. JAX's own BCOO cannot be exported:
return its arrays.

Bad input:

  input                                  concrete                             traced (under `checkify`)
  wrong ranks, shapes, dtypes            TypeError, ValueError                the same
  a negative index, or one beyond the    ValueError naming operand and row    padding (named error)
    shape in an array of indices
  one beyond the shape in a BCOO, BCSR   padding, as everywhere in JAX        the same; never reported
  more entries than `nse`                ValueError with both numbers         poisoned (named error); a ValueError if 0
  `assume_canonical=True`, but it isn't  wrong result                         wrong result (named error)
  unsorted `sum_indices`                 ValueError                           wrong result (named error)
  64-bit integers without x64            ValueError if any does not fit       TypeError
  a NaN `thresh`                         ValueError                           drops nothing
  sharded: other `row_starts` or shards  ValueError                           poisoned
  sharded: more than `capacity`          ValueError naming the shard          that shard is poisoned; `nnz` tells

Without `checkify`, the checks of traced input cost nothing; `checkify` does not look into sharded sums, and a program
under it with checked sums both before and after a sharded one fails in JAX. Eager sums of device arrays run under
`jax.transfer_guard("disallow")`. Under `jax.experimental.sparse.sparsify`, call `add` outside of it.

Differences from TensorFlow's ops, which give the same indices, values and gradients, bit for bit, for sorted, unique
input:

  - Unsorted and duplicated operands give the right sum, and each copy of a duplicate the gradient of the merged entry.
  - NaN sums are kept. TensorFlow drops an entry of both operands whose sum is NaN even at `thresh=0`.
  - Any dtype of the ops' signature, index dtypes other than int64, values with dense dimensions, operands of different
    dtypes, scalar tensors; gradients of any order, on any device. (TensorFlow's second derivative is zero.)
  - With dense dimensions, `thresh` drops an entry only if all its components are below it. As in TensorFlow, it never
    drops an entry that only one operand holds, even twice.

The words used here:

  entry      A stored element, that is, an index row and its value. The value may be zero.
  padding    An element that stands for no entry. All its indices equal the shape, and its value is 0. Arrays have
             static sizes under `jit`, so a sum with fewer entries than `nse` is padded. Padded sums are valid operands.
             In BCOO and BCSR operands any row beyond the shape counts as padding, as everywhere in JAX.
  nse        The number of stored elements of a matrix, padding included, as in BCOO. Static. By default that of a sum
             is exact where all indices are concrete, and otherwise the sum of the operands' `nse`: in a loop, give
             `nse`.
  canonical  Sorted in lexicographic order, each index row once, padding last. Every sum is. Operands need not be: their
             order is checked at run time, also under `jit`.
  capacity   The `nse` of each shard of a sharded matrix.
  poisoned   What a sum is under `jit` if it has more entries than the `nse` it was given: all values that it stores are
             NaN (the minimum of a signed, the maximum of an unsigned integer dtype). Cells that did not fit
             read 0 in `todense()` and products, so look at the values, or use `jax.experimental.checkify`, which
             reports an error. NaN stays in later sums. The mark of integers does not, as the next sum adds to it: look
             at each sum, at `plan.nnz`, or use `checkify` or floats. Outside of `jit` this is a `ValueError`.
"""

from jax_sparse_grad import _serialization, sharded  # noqa: F401
from jax_sparse_grad._add import add, add_n, empty, subtract, sum_duplicates
from jax_sparse_grad._plan import SparseAddPlan, plan_sparse_add
from jax_sparse_grad._sparse_add import SparseAddOutput, sparse_add
from jax_sparse_grad._sparse_add_grad import SparseAddGradOutput, sparse_add_grad

__version__ = "0.1.0"

__all__ = [
    "SparseAddGradOutput",
    "SparseAddOutput",
    "SparseAddPlan",
    "add",
    "add_n",
    "empty",
    "plan_sparse_add",
    "sharded",
    "sparse_add",
    "sparse_add_grad",
    "subtract",
    "sum_duplicates",
]
