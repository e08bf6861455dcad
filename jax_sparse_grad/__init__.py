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

The words used here:

  entry      A stored element, that is, an index row and its value. The value may be zero.
  padding    A slot that is not in use. All its indices equal the shape, and its value is 0. Arrays have static sizes
             under `jit`, so a sum with room to spare is padded. Padded sums are valid operands. In BCOO and BCSR
             operands any row beyond the shape counts as padding, as everywhere in JAX.
  nse        The number of stored elements of a matrix, padding included, as in BCOO. Static. By default that of a sum
             is exact where all indices are concrete, and otherwise the sum of the operands' `nse`: in a loop, give
             `nse`.
  canonical  Sorted in lexicographic order, each index row once, padding last. Every sum is. Operands need not be: their
             order is checked at run time, also under `jit`.
  capacity   The `nse` of each shard of a sharded matrix.
  poisoned   What a sum is under `jit` if it has more entries than the `nse` it was given: all values that it stores are
             NaN (the minimum of a signed, the maximum of an unsigned integer dtype). Cells for which there was no room
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
