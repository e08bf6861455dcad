"""Differentiable addition of sparse tensors for JAX: TensorFlow's SparseAdd and SparseAddGrad, containers, plans."""

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
