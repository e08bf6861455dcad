"""What `benchmark.py` times: pairs of sparse matrices, and for each library a function that adds them.

A contender is a function of a `Problem`. It converts the operands to the library's own format, and returns the calls
that are timed, by operation. Operands that are unsorted or hold duplicates are converted inside the call, as only there
they could be put in order. An operation that a library does not have is missing.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

import jax_sparse_grad as jsg

FORWARD, BACKWARD, GRADIENT = "sum", "sum and gradient", "`sparse_add_grad` alone"
SHARED = {"half": 0.5, "same": 1.0, "small": 0.5, "unsorted": 0.5}  # the part of B's entries that A holds too
PATTERNS = {
    "none": "no entry shared",
    "half": "half shared",
    "same": "all shared",
    "blocks": "one behind the other",
    "gap": "one in a gap of the other",
    "small": "a hundredth as many, half shared",
    "unsorted": "half shared, in random order",
    "assembly": "pieces of a finite element matrix + the matrix",
}


class Problem(NamedTuple):
    """Indices and values of A and of B, the gradient of the sum, and the flat positions of the sum's entries."""

    name: str
    entries: int
    side: int
    shape: tuple[int, int]
    canonical: bool
    operands: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    backprop: np.ndarray
    cells: np.ndarray

    def answer(self) -> tuple[np.ndarray, ...]:
        """Positions and values of the sum, and both gradients, by NumPy."""
        slots = [np.searchsorted(self.cells, flatten(rows, self.side)) for rows in self.operands[::2]]
        values = np.bincount(np.concatenate(slots), np.concatenate(self.operands[1::2]), len(self.cells))
        return self.cells, values, *(self.backprop[each] for each in slots)


def draw(pattern: str, size: int, name: str = "") -> Problem:
    """Two matrices of `size` entries (B has fewer in the patterns `small` and `assembly`)."""
    rng, side = np.random.default_rng(0), 40_000
    if pattern == "assembly":  # bilinear elements on a square grid: sixteen pieces each
        squares = max(1, round((size / 16) ** 0.5))
        side = (squares + 1) ** 2
        corner = (np.arange(squares)[:, None] * (squares + 1) + np.arange(squares)).ravel()
        nodes = corner[:, None] + [0, 1, squares + 1, squares + 2]
        a_cells = (nodes[:, :, None] * side + nodes[:, None, :]).ravel()
        b_cells = np.unique(a_cells)
    else:
        others = max(1, size // 100) if pattern == "small" else size
        shared = round(SHARED.get(pattern, 0) * others)
        total = size + others - shared
        cells = rng.permutation(np.unique(rng.integers(0, side * side, int(1.1 * total) + 100)))[:total]
        if pattern in ("blocks", "gap"):
            cells.sort()
            cells = np.roll(cells, -(size // 2) if pattern == "gap" else 0)
        a_cells, b_cells = cells[:size], cells[size - shared :]
        if pattern != "unsorted":
            a_cells, b_cells = np.sort(a_cells), np.sort(b_cells)
    cells = np.union1d(a_cells, b_cells)
    # All positive, because SciPy drops entries that cancel.
    a_values, b_values, backprop = (rng.random(len(each), np.float32) + 0.5 for each in (a_cells, b_cells, cells))
    operands = unflatten(a_cells, side), a_values, unflatten(b_cells, side), b_values
    canonical = pattern not in ("unsorted", "assembly")
    return Problem(name or pattern, size, side, (side, side), canonical, operands, backprop, cells)


def flatten(indices: Any, side: int) -> np.ndarray:
    """The flat positions of rows of indices."""
    rows, columns = np.asarray(indices).T.astype(np.int64)
    return rows * side + columns


def unflatten(cells: np.ndarray, side: int) -> np.ndarray:
    """The rows of indices at flat positions."""
    return np.stack(np.divmod(cells, side), axis=1).astype(np.int32)


class Call(NamedTuple):
    """What is timed, and how its result becomes an answer: indices (None: no sum), values, and gradients if any."""

    run: Callable[[], Any]
    read: Callable[[Any], Any] = tuple


Calls = dict[str, Call]


class Jitted:
    """A function of JAX, compiled, and its arguments; a call waits for the result."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, compiled: bool = True) -> None:
        self.function, self.arguments = function, jax.tree.map(jnp.asarray, arguments)
        self.run = jax.jit(function) if compiled else function

    def __call__(self) -> Any:  # noqa: D102
        return jax.block_until_ready(self.run(*self.arguments))


def jax_calls(problem: Problem, add: Callable[..., Any], compiled: bool = True) -> Calls:
    """Both passes of an addition of indices and values in JAX."""

    def add_and_pull(a_indices: Any, a_values: Any, b_indices: Any, b_values: Any, backprop: Any) -> Any:
        def values_of(a_values: Any, b_values: Any) -> Any:
            return add(a_indices, a_values, b_indices, b_values)[::-1]

        values, pull, indices = jax.vjp(values_of, a_values, b_values, has_aux=True)
        return indices, values, *pull(backprop)

    both = Jitted(add_and_pull, *problem.operands, problem.backprop, compiled=compiled)
    return {FORWARD: Call(Jitted(add, *problem.operands, compiled=compiled)), BACKWARD: Call(both)}


def ours(problem: Problem, compiled: bool = True, **options: Any) -> Calls:
    """`sparse_add` and `jax.grad` of it; by default `sparse_add_grad` alone, too."""
    shape, options = problem.shape, options | ({"nse": len(problem.cells)} if compiled else {})
    if options.get("assume_canonical") and not problem.canonical:
        return {}

    def add(a_indices: Any, a_values: Any, b_indices: Any, b_values: Any) -> Any:
        return jsg.sparse_add(a_indices, a_values, shape, b_indices, b_values, shape, **options)[:2]

    arguments = problem.backprop, *problem.operands[::2], unflatten(problem.cells, problem.side)
    alone = Jitted(partial(jsg.sparse_add_grad, shape=shape), *arguments)
    gradient = {GRADIENT: Call(alone, lambda result: (None, None, *result))}
    return jax_calls(problem, add, compiled) | (gradient if list(options) == ["nse"] else {})


def our_plan(problem: Problem) -> Calls:
    """A plan that was made before."""
    a_indices, a_values, b_indices, b_values = problem.operands
    plan = jsg.plan_sparse_add(a_indices, b_indices, shape=problem.shape)

    def add_and_pull(plan: jsg.SparseAddPlan, a_values: Any, b_values: Any, backprop: Any) -> Any:
        values, pull = jax.vjp(plan, a_values, b_values)
        return values, *pull(backprop)

    def read(result: Any) -> tuple[Any, ...]:
        return plan.indices, *result

    forward = Jitted(lambda plan, *values: (plan(*values),), plan, a_values, b_values)
    both = Jitted(add_and_pull, plan, a_values, b_values, problem.backprop)
    return {FORWARD: Call(forward, read), BACKWARD: Call(both, read)}


def bcoo(problem: Problem) -> Calls:
    """JAX's own: the sum of two BCOOs concatenates them, and `sum_duplicates` sorts and merges."""
    flags = {"shape": problem.shape, "indices_sorted": problem.canonical, "unique_indices": problem.canonical}

    def add(a_indices: Any, a_values: Any, b_indices: Any, b_values: Any) -> Any:
        concatenated = BCOO((a_values, a_indices), **flags) + BCOO((b_values, b_indices), **flags)
        total = concatenated.sum_duplicates(nse=len(problem.cells))
        return total.indices, total.data

    return jax_calls(problem, add)


@cache
def tensorflow() -> Any:
    """The module, without its messages and without GPUs."""
    os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"})
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf


def tensorflow_ops(problem: Problem) -> Calls:
    """TensorFlow's two raw ops, eager; unsorted operands are sorted first, and duplicates it cannot sum."""
    tf, shape = tensorflow(), problem.shape
    if problem.name == "assembly":
        return {}
    a_indices, a_values, b_indices, b_values = map(tf.constant, problem.operands)
    a, b = (tf.SparseTensor(tf.cast(i, tf.int64), x, shape) for i, x in ((a_indices, a_values), (b_indices, b_values)))
    backprop, sum_indices = tf.constant(problem.backprop), tf.constant(unflatten(problem.cells, problem.side), tf.int64)

    def add() -> Any:
        x, y = (a, b) if problem.canonical else map(tf.sparse.reorder, (a, b))
        operands = {"a_indices": x.indices, "a_values": x.values, "b_indices": y.indices, "b_values": y.values}
        return tf.raw_ops.SparseAdd(**operands, a_shape=shape, b_shape=shape, thresh=tf.constant(0, tf.float32))

    def pull(sum_indices: Any) -> Any:
        indices = {"a_indices": a.indices, "b_indices": b.indices, "sum_indices": sum_indices}
        return tf.raw_ops.SparseAddGrad(backprop_val_grad=backprop, **indices)

    def add_and_pull() -> Any:
        total = add()
        return *total[:2], *pull(total.sum_indices)

    calls = {FORWARD: Call(add, lambda total: total[:2])}
    if problem.canonical:
        calls[BACKWARD] = Call(add_and_pull)
        calls[GRADIENT] = Call(lambda: pull(sum_indices), lambda result: (None, None, *result))
    return calls


def torch_coo(problem: Problem, device: str = "cpu") -> Calls:
    """PyTorch: coalesced sum of two COO tensors."""
    import torch

    a_indices, a_values, b_indices, b_values = (torch.tensor(each, device=device) for each in problem.operands)
    indices = [each.long().T.contiguous() for each in (a_indices, b_indices)]
    tracked = [each.clone().requires_grad_() for each in (a_values, b_values)]
    backprop = torch.tensor(problem.backprop, device=device)
    options = {"size": problem.shape, "is_coalesced": problem.canonical, "check_invariants": False}

    def add(*values: Any) -> Any:
        a, b = (torch.sparse_coo_tensor(i, x, **options) for i, x in zip(indices, values, strict=True))
        return wait((a + b).coalesce())

    def wait(result: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    def add_and_pull() -> Any:
        total = add(*tracked)
        return total, *wait(torch.autograd.grad(total.values(), tracked, backprop))

    def read(total: Any, *gradients: Any) -> list[Any]:
        return [each.cpu().numpy() for each in (total.indices().T, total.values().detach(), *gradients)]

    both = Call(add_and_pull, lambda result: read(*result))
    return {FORWARD: Call(partial(add, a_values, b_values), read), BACKWARD: both}


def from_coordinates(
    problem: Problem,
    make: Callable[..., Any],
    add: Callable[..., Any],
    read: Callable[..., Any],
    array: Callable[..., Any] = np.ascontiguousarray,
) -> Calls:
    """The call that adds what `make` makes of coordinates and values: in it, if that has to put them in order."""
    a_indices, a_values, b_indices, b_values = problem.operands
    pairs = [(array(indices.T), array(values)) for indices, values in ((a_indices, a_values), (b_indices, b_values))]
    made = [make(*pair) for pair in pairs] if problem.canonical else None
    return {FORWARD: Call(lambda: add(*(made or [make(*pair) for pair in pairs])), read)}


def csr(problem: Problem, module: str = "scipy.sparse") -> Calls:
    """SciPy's or CuPy's CSR."""
    library, options, on_gpu = importlib.import_module(module), {}, module != "scipy.sparse"
    if on_gpu:
        cupy = importlib.import_module("cupy")
        options["array"] = lambda array: cupy.asarray(np.ascontiguousarray(array))

    def make(coordinates: Any, values: Any) -> Any:
        return library.coo_matrix((values, tuple(coordinates)), shape=problem.shape).tocsr()

    def add(a: Any, b: Any) -> Any:
        total = a + b
        if on_gpu:
            cupy.cuda.get_current_stream().synchronize()
        return total

    def read(total: Any) -> tuple[Any, ...]:
        total = (total.get() if on_gpu else total).tocoo()
        return np.stack([total.row, total.col], axis=1), total.data

    return from_coordinates(problem, make, add, read, **options)


def pydata(problem: Problem) -> Calls:
    """PyData's package `sparse`, COO."""
    import sparse

    make = partial(sparse.COO, shape=problem.shape, has_duplicates=not problem.canonical, sorted=problem.canonical)
    return from_coordinates(problem, make, lambda a, b: a + b, lambda total: (total.coords.T, total.data))


def graphblas(problem: Problem) -> Calls:
    """SuiteSparse:GraphBLAS: an element-wise union."""
    import graphblas

    size = {"nrows": problem.side, "ncols": problem.side, "dup_op": graphblas.binary.plus}

    def make(coordinates: Any, values: Any) -> Any:
        return graphblas.Matrix.from_coo(*coordinates, values, **size)

    def add(a: Any, b: Any) -> Any:
        total = a.ewise_add(b, graphblas.binary.plus).new()
        total.wait("materialize")
        return total

    def read(total: Any) -> tuple[Any, ...]:
        rows, columns, values = total.to_coo(sort=True)
        return np.stack([rows, columns], axis=1), values

    return from_coordinates(problem, make, add, read)


class Contender(NamedTuple):
    """A name, the function, and the module that it needs."""

    name: str
    prepare: Callable[[Problem], Calls]
    needs: str = "jax"


OURS = "jax_sparse_grad"
JAX_CONTENDERS = [
    Contender(OURS, ours),
    Contender(f"{OURS}, planned before", our_plan),
    Contender(f"{OURS}, `assume_canonical=True`", partial(ours, assume_canonical=True)),
    Contender(f"{OURS}, outside of `jit`", partial(ours, compiled=False)),
]
CONTENDERS = {
    "cpu": [
        *JAX_CONTENDERS,
        Contender("TensorFlow", tensorflow_ops, "tensorflow"),
        Contender("PyTorch COO", torch_coo, "torch"),
        Contender("SciPy CSR", csr, "scipy"),
        Contender("GraphBLAS", graphblas, "graphblas"),
        Contender("PyData sparse", pydata, "sparse"),
        Contender("JAX BCOO", bcoo),
    ],
    "gpu": [
        *JAX_CONTENDERS,
        Contender("PyTorch COO", partial(torch_coo, device="cuda"), "torch"),
        Contender("CuPy CSR", partial(csr, module="cupyx.scipy.sparse"), "cupy"),
        Contender("JAX BCOO", bcoo),
    ],
}
