"""Time sparse addition and its gradient: this package and every other library that is installed.

Takes 12 minutes on two cores and 9 GB of memory; `--quick` takes 2 minutes and 2 GB. Needs the extra `bench`: the
picture, the progress bar and the light peers (SciPy, GraphBLAS, PyData's sparse), an environment of 1 GB. The heavy
peers have extras of their own; with all of them, the environment takes 7.7 GB:

    pip install -e '.[bench,bench-tensorflow,bench-torch]'

More than half of that is CUDA, which PyPI's torch for Linux brings along. A build for CPUs alone, installed before,
avoids it:

    pip install torch --index-url https://download.pytorch.org/whl/cpu

No peer is required, nor are matplotlib and tqdm: what is not installed is left out.

Each contender adds the same two sparse matrices (40,000 x 40,000, float32 values), held in its own native format, and,
where it can, computes the gradients of the values. Formats are converted and programs compiled before the clock starts.
Ours is the default call of `sparse_add` under `jit`, with `nse` the number of entries of the sum. TensorFlow is its two
raw ops, run eagerly on the CPU. First, every answer is compared with one computed by plain NumPy; a peer that disagrees
is left out and named. Then all are timed in turns: in each round every contender runs for about 20 ms. The time is the
median over the rounds; in brackets stands our median divided by it: below 1, ours is faster.

The row "copy" ("copying operands and results" in the picture) is a plain copy, by NumPy, of the bytes of the operands
and the result (int32 indices and values; with the backward pass also the incoming gradient and the two outgoing ones).
It is what the memory's speed allows. A plan that was made before moves no indices, so it may be faster than that.

The table "what else" measures ours alone: wide keys, operands out of order, hybrid values, many operands, large sizes,
eager calls and memory. On an NVIDIA GPU all of this is also done there, with JAX's BCOO, PyTorch and CuPy as peers;
`--only-gpu` leaves out the CPU (6 minutes).

`--compile-for h100` and `--compile-for v5e` time nothing: they compile for a GPU or a TPU that need not be there, and
count what the program would do. See `compiled_benchmark.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse as jax_sparse

import jax_sparse_grad as jsg

try:
    from tqdm import tqdm
except ModuleNotFoundError:
    tqdm = None

SIDE = 40_000  # of the matrices
TURN = 0.02  # seconds for which a contender runs in each round
SLOW = 1.0  # seconds; a contender whose call takes longer runs in few rounds
FEW = 3
QUIET = 10  # seconds between two lines about progress
SIZES = (10**3, 10**4, 10**5, 10**6, 10**7)
PATTERN_SIZE = 10**6

FORWARD = "forward"
BACKWARD = "forward + backward"
PLANNED = "forward + backward, ours planned before"
GRADIENT = "sparse_add_grad alone"
OPERATIONS = FORWARD, BACKWARD, PLANNED, GRADIENT

OURS, COPY = "ours", "copy"
HALF, NONE, ALL, BLOCKS, GAP = "half shared", "none shared", "all shared", "blocks one after the other", "one in a gap"
SHARED = {HALF: 0.5, ALL: 1.0}  # the part of the entries that both operands hold; 0 in the other patterns


class Answer(NamedTuple):
    """What a contender computed: flat positions and values of the sum, and the gradients; None for what it lacks."""

    cells: np.ndarray | None
    values: np.ndarray | None
    gradients: tuple[np.ndarray, ...] | None = None


class Call(NamedTuple):
    """What is timed, and how to read its result for the check (None: nothing to check)."""

    run: Callable[[], Any]
    read: Callable[[Any], Answer] | None = None


Add = Callable[..., tuple[jax.Array, jax.Array]]  # indices and values of A and B to those of the sum


class Contender(NamedTuple):
    """A library.

    prepare: converts a problem to its format, and returns a call for each operation that it has.
    needs: the module that must be installed for it.
    limit: it takes no part in problems with more entries per operand.
    """

    name: str
    prepare: Callable[[Problem], dict[str, Call]]
    needs: str | None = None
    limit: float = np.inf


class Timing(NamedTuple):
    """A median time; `ratio` is our median time divided by it."""

    device: str
    problem: str
    entries: int
    operation: str
    contender: str
    milliseconds: float
    ratio: float


@dataclass(frozen=True)
class Problem:
    """Two sorted operands without duplicates, the incoming gradient, and the flat positions of the sum's entries."""

    name: str
    side: int
    a_indices: np.ndarray
    a_values: np.ndarray
    b_indices: np.ndarray
    b_values: np.ndarray
    backprop: np.ndarray
    cells: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """The dense shape."""
        return self.side, self.side

    @property
    def operands(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Indices and values of A, then of B."""
        return self.a_indices, self.a_values, self.b_indices, self.b_values

    @property
    def answer(self) -> Answer:
        """The sum and the gradients, by NumPy."""
        slots = [np.searchsorted(self.cells, flatten(rows, self.side)) for rows in (self.a_indices, self.b_indices)]
        values = np.zeros(len(self.cells), np.float32)
        values[slots[0]] = self.a_values
        values[slots[1]] += self.b_values
        return Answer(self.cells, values, (self.backprop[slots[0]], self.backprop[slots[1]]))


def draw(pattern: str, a_nnz: int, b_nnz: int | None = None, *, side: int = SIDE, name: str = "") -> Problem:
    """Draw a problem; `pattern` says which entries both operands hold."""
    rng = np.random.default_rng(0)
    b_nnz = a_nnz if b_nnz is None else b_nnz
    shared = round(SHARED.get(pattern, 0) * min(a_nnz, b_nnz))
    size = a_nnz + b_nnz - shared
    cells = rng.permutation(np.unique(rng.integers(0, side * side, int(1.1 * size) + 100)))[:size]
    in_order = np.sort(cells)
    if pattern == BLOCKS:
        a_cells, b_cells = in_order[:a_nnz], in_order[a_nnz:]
    elif pattern == GAP:
        gap = b_nnz // 2
        a_cells, b_cells = in_order[gap : gap + a_nnz], np.delete(in_order, np.s_[gap : gap + a_nnz])
    else:
        a_cells, b_cells = np.sort(cells[:a_nnz]), np.sort(cells[a_nnz - shared :])
    # All positive, because SciPy drops entries that cancel.
    a_values, b_values, backprop = (rng.random(n, np.float32) + np.float32(0.5) for n in (a_nnz, b_nnz, size))
    a_indices, b_indices = unflatten(a_cells, side), unflatten(b_cells, side)
    name = name or f"{a_nnz:,}"
    return Problem(name, side, a_indices, a_values, b_indices, b_values, backprop, in_order)


def flatten(indices: np.ndarray, side: int) -> np.ndarray:
    """The flat positions of rows of indices."""
    return indices[:, 0].astype(np.int64) * side + indices[:, 1]


def unflatten(cells: np.ndarray, side: int) -> np.ndarray:
    """The rows of indices at flat positions, int32."""
    return np.stack([cells // side, cells % side], axis=1).astype(np.int32)


# ---------------------------------------------------------------------------------------------------- contenders


def forward_of(problem: Problem, nse: int | None = None, **options: Any) -> Add:
    """Our addition, as a function of indices and values of both operands."""
    shape, nse = problem.shape, nse or len(problem.cells)

    def forward(*operands: Any) -> tuple[jax.Array, jax.Array]:
        total = jsg.sparse_add(*operands[:2], shape, *operands[2:], shape, nse=nse, **options)
        return total.sum_indices, total.sum_values

    return forward


def with_gradient(forward: Add) -> Callable[..., tuple[jax.Array, ...]]:
    """An addition followed by its backward pass: indices and values of the sum, gradients of A's and B's values."""

    def forward_backward(a_indices: Any, a_values: Any, b_indices: Any, b_values: Any, backprop: Any) -> Any:
        def values_of(a_values: Any, b_values: Any) -> tuple[jax.Array, jax.Array]:
            indices, values = forward(a_indices, a_values, b_indices, b_values)
            return values, indices

        values, pull, indices = jax.vjp(values_of, a_values, b_values, has_aux=True)
        return indices, values, *pull(backprop)

    return forward_backward


def to_numpy(arrays: Iterable[Any]) -> tuple[np.ndarray, ...]:
    """The arrays on the host."""
    return tuple(map(np.asarray, arrays))


def on_device(*arrays: np.ndarray) -> list[jax.Array]:
    """The arrays on JAX's default device."""
    return jax.block_until_ready([jnp.asarray(array) for array in arrays])


class Jitted:
    """A function of JAX and its arguments. A call runs it, compiled, and waits for the result."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments
        self._compiled = jax.jit(function)

    def __call__(self) -> Any:
        """The result, when it is there."""
        return jax.block_until_ready(self._compiled(*self.arguments))


def jax_calls(problem: Problem, forward: Add) -> dict[str, Call]:
    """Both passes of an addition written in JAX."""
    *operands, backprop = on_device(*problem.operands, problem.backprop)

    def read(result: tuple[jax.Array, ...]) -> Answer:
        indices, values, *gradients = map(np.asarray, result)
        return Answer(flatten(indices, problem.side), values, tuple(gradients) or None)

    return {
        FORWARD: Call(Jitted(forward, *operands), read),
        BACKWARD: Call(Jitted(with_gradient(forward), *operands, backprop), read),
    }


def prepare_ours(problem: Problem) -> dict[str, Call]:
    """Our default calls, and a plan."""
    a_indices, a_values, b_indices, b_values, backprop = on_device(*problem.operands, problem.backprop)
    plan = jsg.plan_sparse_add(a_indices, b_indices, shape=problem.shape)

    def planned(plan: jsg.SparseAddPlan, a_values: Any, b_values: Any, backprop: Any) -> tuple[jax.Array, ...]:
        values, pull = jax.vjp(plan, a_values, b_values)
        return values, *pull(backprop)

    def read_planned(result: tuple[jax.Array, ...]) -> Answer:
        values, *gradients = map(np.asarray, result)
        return Answer(flatten(np.asarray(plan.indices), problem.side), values, tuple(gradients))

    by_plan = Call(Jitted(planned, plan, a_values, b_values, backprop), read_planned)
    return jax_calls(problem, forward_of(problem)) | prepare_gradient(problem) | {PLANNED: by_plan}


def prepare_gradient(problem: Problem, **options: Any) -> dict[str, Call]:
    """Our `sparse_add_grad` alone."""
    sum_indices = unflatten(problem.cells, problem.side)
    arguments = on_device(problem.backprop, problem.a_indices, problem.b_indices, sum_indices)
    run = Jitted(partial(jsg.sparse_add_grad, **options), *arguments)
    return {GRADIENT: Call(run, lambda result: Answer(None, None, to_numpy(result)))}


@cache
def tensorflow() -> Any:
    """The module, without its messages and without GPUs."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused by these ops, but it announces itself
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf


def prepare_tensorflow(problem: Problem) -> dict[str, Call]:
    """TensorFlow's two raw ops, eager; their indices are int64."""
    tf = tensorflow()
    a_indices, b_indices = (tf.constant(rows, tf.int64) for rows in (problem.a_indices, problem.b_indices))
    a_values, b_values, backprop = map(tf.constant, (problem.a_values, problem.b_values, problem.backprop))
    shape, thresh = tf.constant(problem.shape, tf.int64), tf.constant(0, tf.float32)
    sum_indices = tf.constant(unflatten(problem.cells, problem.side), tf.int64)

    operands = {"a_indices": a_indices, "a_values": a_values, "b_indices": b_indices, "b_values": b_values}
    add = partial(tf.raw_ops.SparseAdd, **operands, a_shape=shape, b_shape=shape, thresh=thresh)
    rows = {"a_indices": a_indices, "b_indices": b_indices}
    pull = partial(tf.raw_ops.SparseAddGrad, **rows, backprop_val_grad=backprop)

    def add_and_pull() -> tuple[Any, Any]:
        total = add()
        return total, pull(sum_indices=total.sum_indices)

    def read(total: Any, gradients: Any = ()) -> Answer:
        cells = flatten(total.sum_indices.numpy(), problem.side)
        return Answer(cells, total.sum_values.numpy(), to_numpy(gradients) or None)

    return {
        FORWARD: Call(add, read),
        BACKWARD: Call(add_and_pull, lambda result: read(*result)),
        GRADIENT: Call(partial(pull, sum_indices=sum_indices), lambda result: Answer(None, None, to_numpy(result))),
    }


def torch_calls(
    problem: Problem, device: str, make: Callable[..., Any], add: Callable[..., Any], cells: Callable[[Any], Any]
) -> dict[str, Call]:
    """Both passes in PyTorch: `make(k, values)` gives operand k, `add` the sum and `cells` its flat positions."""
    import torch

    leaves = [torch.tensor(values, device=device) for values in (problem.a_values, problem.b_values)]
    operands = [make(k, leaf) for k, leaf in enumerate(leaves)]
    tracked = [leaf.clone().requires_grad_() for leaf in leaves]
    backprop = torch.tensor(problem.backprop, device=device)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> Any:
        total = add(*operands)
        wait()
        return total

    def forward_backward() -> Any:
        total = add(*(make(k, leaf) for k, leaf in enumerate(tracked)))
        gradients = torch.autograd.grad(total.values(), tracked, backprop)
        wait()
        return total, gradients

    def read(total: Any, gradients: Any = ()) -> Answer:
        arrays = [cells(total).cpu(), total.detach().values().cpu(), *(gradient.cpu() for gradient in gradients)]
        its_cells, values, *gradients = to_numpy(arrays)
        return Answer(its_cells, values, tuple(gradients) or None)

    return {FORWARD: Call(forward, read), BACKWARD: Call(forward_backward, lambda result: read(*result))}


def prepare_torch_coo(problem: Problem, device: str = "cpu") -> dict[str, Call]:
    """PyTorch COO: coalesced operands, coalesced sum."""
    import torch

    indices = [
        torch.tensor(rows.T, dtype=torch.int64, device=device).contiguous()
        for rows in (problem.a_indices, problem.b_indices)
    ]

    def make(k: int, values: Any) -> Any:
        return torch.sparse_coo_tensor(indices[k], values, problem.shape, is_coalesced=True, check_invariants=False)

    def cells(total: Any) -> Any:
        rows, columns = total.indices()
        return rows * problem.side + columns

    return torch_calls(problem, device, make, lambda a, b: (a + b).coalesce(), cells)


def prepare_torch_csr(problem: Problem) -> dict[str, Call]:
    """PyTorch CSR."""
    import torch

    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    patterns = [
        [
            torch.tensor(np.searchsorted(rows[:, 0], np.arange(problem.side + 1)), dtype=torch.int64),
            torch.tensor(rows[:, 1], dtype=torch.int64),
        ]
        for rows in (problem.a_indices, problem.b_indices)
    ]

    def make(k: int, values: Any) -> Any:
        return torch.sparse_csr_tensor(*patterns[k], values, problem.shape, check_invariants=False)

    def cells(total: Any) -> Any:
        counts = total.crow_indices().diff()
        return torch.repeat_interleave(torch.arange(problem.side), counts) * problem.side + total.col_indices()

    def refuse() -> None:
        raise NotImplementedError(f"its backward pass makes a dense matrix, here {problem.side:,} x {problem.side:,}")

    return torch_calls(problem, "cpu", make, lambda a, b: a + b, cells) | {BACKWARD: Call(refuse)}


def read_coo(total: Any, side: int) -> Answer:
    """The entries of a SciPy matrix."""
    total = total.tocoo()
    return Answer(total.row.astype(np.int64) * side + total.col, total.data)


def prepare_scipy(problem: Problem, form: str) -> dict[str, Call]:
    """SciPy, operands and sum in `form`, marked as canonical."""
    import scipy.sparse

    def make(indices: np.ndarray, values: np.ndarray) -> Any:
        operand = scipy.sparse.coo_array((values, tuple(np.ascontiguousarray(indices.T))), problem.shape).asformat(form)
        operand.has_canonical_format = True
        return operand

    a, b = make(problem.a_indices, problem.a_values), make(problem.b_indices, problem.b_values)
    return {FORWARD: Call(lambda: (a + b).asformat(form), partial(read_coo, side=problem.side))}


def prepare_pydata(problem: Problem) -> dict[str, Call]:
    """PyData's package `sparse`, COO."""
    import sparse

    def make(indices: np.ndarray, values: np.ndarray) -> Any:
        coordinates = np.ascontiguousarray(indices.T)
        return sparse.COO(coordinates, values, shape=problem.shape, has_duplicates=False, sorted=True)

    a, b = make(problem.a_indices, problem.a_values), make(problem.b_indices, problem.b_values)
    return {FORWARD: Call(lambda: a + b, lambda total: Answer(flatten(total.coords.T, problem.side), total.data))}


def prepare_graphblas(problem: Problem) -> dict[str, Call]:
    """SuiteSparse:GraphBLAS: an element-wise union, and waiting for it."""
    import graphblas

    def make(indices: np.ndarray, values: np.ndarray) -> Any:
        rows, columns = indices.T
        return graphblas.Matrix.from_coo(rows, columns, values, nrows=problem.side, ncols=problem.side)

    a, b = make(problem.a_indices, problem.a_values), make(problem.b_indices, problem.b_values)

    def add() -> Any:
        total = a.ewise_add(b, graphblas.binary.plus).new()
        total.wait("materialize")
        return total

    def read(total: Any) -> Answer:
        rows, columns, values = total.to_coo(sort=True)
        return Answer(rows.astype(np.int64) * problem.side + columns.astype(np.int64), values)

    return {FORWARD: Call(add, read)}


def prepare_bcoo(problem: Problem, add: Callable[..., jax_sparse.BCOO]) -> dict[str, Call]:
    """An addition of two BCOOs, `add(a, b, nse=...)`."""

    def forward(a_indices: Any, a_values: Any, b_indices: Any, b_values: Any) -> tuple[jax.Array, jax.Array]:
        form = {"shape": problem.shape, "indices_sorted": True, "unique_indices": True}
        a, b = (jax_sparse.BCOO(pair, **form) for pair in ((a_values, a_indices), (b_values, b_indices)))
        total = add(a, b, nse=len(problem.cells))
        return total.indices, total.data

    return jax_calls(problem, forward)


def add_by_jax(a: jax_sparse.BCOO, b: jax_sparse.BCOO, *, nse: int) -> jax_sparse.BCOO:
    """What JAX has: the sum of two BCOOs concatenates them, and `sum_duplicates` sorts and merges."""
    return (a + b).sum_duplicates(nse=nse)


def copy_of(arrays: Iterable[np.ndarray]) -> Callable[[], None]:
    """A call that copies the arrays into existing buffers."""
    pairs = [(np.empty_like(array), array) for array in arrays]

    def copy() -> None:
        for target, source in pairs:
            np.copyto(target, source)

    return copy


def copy_on_device(arrays: Iterable[np.ndarray]) -> Callable[[], Any]:
    """The same on JAX's default device."""
    return Jitted(lambda *arrays: [jnp.copy(array) for array in arrays], *on_device(*arrays))


Copy = Callable[[Iterable[np.ndarray]], Callable[[], Any]]  # gives a call that copies the arrays


def prepare_copy(problem: Problem, copy: Copy = copy_of) -> dict[str, Call]:
    """A copy of the operands and results."""
    _, values, gradients = problem.answer
    forward = [*problem.operands, unflatten(problem.cells, problem.side), values]
    return {FORWARD: Call(copy(forward)), BACKWARD: Call(copy([*forward, problem.backprop, *gradients]))}


def prepare_cupy(problem: Problem) -> dict[str, Call]:
    """CuPy's CSR."""
    import cupy
    import cupyx.scipy.sparse

    def make(indices: np.ndarray, values: np.ndarray) -> Any:
        rows, columns = cupy.asarray(np.ascontiguousarray(indices.T))
        return cupyx.scipy.sparse.coo_matrix((cupy.asarray(values), (rows, columns)), shape=problem.shape).tocsr()

    a, b = make(problem.a_indices, problem.a_values), make(problem.b_indices, problem.b_values)

    def add() -> Any:
        total = a + b
        cupy.cuda.get_current_stream().synchronize()
        return total

    return {FORWARD: Call(add, lambda total: read_coo(total.get(), problem.side))}


OUR_CONTENDERS = [
    Contender(OURS, prepare_ours),
    Contender("ours, assume_canonical=True", lambda p: jax_calls(p, forward_of(p, assume_canonical=True))),
    Contender("ours, shape= given", lambda p: prepare_gradient(p, shape=p.shape)),
]
BCOO = Contender("JAX BCOO", partial(prepare_bcoo, add=add_by_jax), limit=10**6)
CONTENDERS = [
    *OUR_CONTENDERS,
    Contender("TensorFlow", prepare_tensorflow, "tensorflow"),
    Contender("PyTorch COO", prepare_torch_coo, "torch"),
    Contender("PyTorch CSR", prepare_torch_csr, "torch"),
    Contender("SciPy CSR", partial(prepare_scipy, form="csr"), "scipy"),
    Contender("SciPy COO", partial(prepare_scipy, form="coo"), "scipy"),
    Contender("GraphBLAS", prepare_graphblas, "graphblas"),
    Contender("PyData sparse COO", prepare_pydata, "sparse", limit=10**6),
    BCOO,
    Contender(COPY, prepare_copy),
]
GPU_CONTENDERS = [
    *OUR_CONTENDERS,
    BCOO._replace(limit=np.inf),
    Contender("PyTorch COO", partial(prepare_torch_coo, device="cuda"), "torch"),
    Contender("CuPy CSR", prepare_cupy, "cupy"),
    Contender(COPY, partial(prepare_copy, copy=copy_on_device)),
]


class Setup(NamedTuple):
    """What is measured on a device."""

    name: str
    device: jax.Device
    problems: list[Callable[[], Problem]]
    contenders: list[Contender]
    copy: Copy


# ---------------------------------------------------------------------------------------------------- measuring


Tick = Callable[[], Any]  # called after each step of something that takes long


def measure(calls: dict[Any, Callable[[], Any]], rounds: int, tick: Tick) -> dict[Any, float]:
    """The median seconds of each call, all of which ran before, in interleaved rounds; `tick` after each round."""
    plans = {}
    for key, call in calls.items():
        seconds = timed(call)
        plans[key] = (min(rounds, FEW) if seconds > SLOW else rounds, max(1, round(TURN / max(seconds, 1e-7))))
    samples: dict[Any, list[float]] = {key: [] for key in calls}
    for k in range(rounds):
        for key, call in calls.items():
            its_rounds, repeats = plans[key]
            if k < its_rounds:
                if repeats > 1:
                    call()  # after another's turn: caches and threads
                samples[key].append(timed(call, repeats))
        tick()
    return {key: float(np.median(values)) for key, values in samples.items()}


def timed(call: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def difference(found: Answer, right: Answer) -> str | None:
    """How an answer is wrong; None if it is right."""
    if found.cells is not None:
        order = np.argsort(found.cells, kind="stable")
        if not np.array_equal(found.cells[order], right.cells):
            return "other indices"
        if not np.allclose(found.values[order], right.values, rtol=1e-6, atol=1e-6):
            return "other values"
    if found.gradients is not None:
        for gradient, right_gradient in zip(found.gradients, right.gradients, strict=True):
            if gradient.shape != right_gradient.shape or not np.allclose(gradient, right_gradient, rtol=1e-6):
                return "other gradients"
    return None


def checked_calls(
    problem: Problem, contenders: list[Contender], left_out: dict[str, str], tick: Tick
) -> dict[tuple[str, str], Callable[[], Any]]:
    """The calls that give the right answer, by operation and contender; the others go into `left_out`, with the reason.

    `tick` after each contender.
    """
    right = problem.answer
    calls = {}

    def attempt(name: str, action: Callable[[], Any]) -> Any:
        if name in left_out:
            return None
        try:
            return action()
        except Exception as error:
            if name.startswith(OURS):  # without ours, the rest is worthless
                raise
            first_line = next(iter(str(error).strip().splitlines()), "")
            left_out[name] = f"{type(error).__name__}: {first_line}"
            say(f"left out: {name}: {left_out[name]}")
            return None

    def check(call: Call) -> Callable[[], Any]:
        result = call.run()
        if call.read is not None and (wrong := difference(call.read(result), right)):
            raise AssertionError(f"WRONG ANSWER for {problem.name} entries: {wrong}")
        return call.run

    for contender in contenders:
        if len(problem.a_values) <= contender.limit:
            prepared = attempt(contender.name, partial(contender.prepare, problem)) or {}
            for operation, call in prepared.items():
                run = attempt(f"{contender.name}, {operation}", partial(check, call))
                if run is not None:
                    calls[operation, contender.name] = run
        tick()
    return calls


def suite(
    device: str, problems: list[Callable[[], Problem]], contenders: list[Contender], rounds: int | None
) -> tuple[list[Timing], dict[str, str]]:
    """Time all contenders on all problems; also why some are left out."""
    timings: list[Timing] = []
    left_out = {each.name: "not installed" for each in contenders if each.needs and not find_spec(each.needs)}
    if left_out:
        say(f"left out: not installed: {', '.join(left_out)}")
    contenders = [contender for contender in contenders if contender.name not in left_out]
    for k, make in enumerate(problems, 1):
        problem = make()
        entries = len(problem.a_values)
        its_rounds = rounds or (9 if entries < 10**7 else 5)
        what = f"{device}, problem {k} of {len(problems)} ({problem.name})"
        with progress(what, len(contenders) + its_rounds) as tick:
            calls = checked_calls(problem, contenders, left_out, tick)
            seconds = measure(calls, its_rounds, tick)
        for operation in OPERATIONS:
            # Nobody else has plans: ours with a plan is compared with their forward and backward pass.
            theirs = BACKWARD if operation == PLANNED else operation
            for name in (contender.name for contender in contenders):
                key = (operation if name == OURS else theirs), name
                if key in seconds and (operation != PLANNED or name == OURS or not name.startswith((OURS, COPY))):
                    figures = 1e3 * seconds[key], seconds[operation, OURS] / seconds[key]
                    timings.append(Timing(device, problem.name, entries, operation, name, *figures))
    return timings, left_out


@contextmanager
def progress(what: str, steps: int) -> Iterator[Tick]:
    """A bar, to be moved by calling what it gives after each of the steps; without tqdm, a line now and then."""
    if tqdm is not None:
        with tqdm(total=steps, desc=what) as bar:
            yield bar.update
        return
    print(f"{what} ...", flush=True)
    start = last = time.perf_counter()
    done = 0

    def tick() -> None:
        nonlocal done, last
        done += 1
        if time.perf_counter() - last > QUIET:
            last = time.perf_counter()
            print(f"{what}: {last - start:.0f} s of about {(last - start) * steps / done:.0f} s", flush=True)

    yield tick


def say(text: str) -> None:
    """Print without disturbing a progress bar."""
    tqdm.write(text) if tqdm is not None else print(text, flush=True)


# ---------------------------------------------------------------------------------------------------- what else


def forward_call(problem: Problem) -> Callable[[], Any]:
    """Our forward pass, compiled and run once."""
    call = Jitted(forward_of(problem), *on_device(*problem.operands))
    call()
    return call


def compile_seconds(problem: Problem) -> float:
    """The seconds to trace and compile our forward and backward pass, with nothing compiled before."""
    arguments = on_device(*problem.operands, problem.backprop)
    function = with_gradient(forward_of(problem))
    jax.clear_caches()
    return timed(lambda: jax.jit(function).lower(*arguments).compile())


def out_of_order(rounds: int, tick: Tick) -> dict[str, float]:
    """Operands that are not canonical, against a bare sort of all keys and the fast path after it."""
    problem = draw(HALF, 10**6)
    rng = np.random.default_rng(1)
    orders = {
        "unsorted": [rng.permutation(10**6) for _ in range(2)],
        "duplicated": [np.sort(rng.integers(0, 10**6, 10**6)) for _ in range(2)],
    }
    calls = {"fast": forward_call(problem)}
    for name, (a, b) in orders.items():
        a_indices, a_values, b_indices, b_values = problem.operands
        operands = a_indices[a], a_values[a], b_indices[b], b_values[b]
        keys = [flatten(rows, SIDE).astype(np.uint32) for rows in (operands[0], operands[2])]
        calls[name] = Jitted(forward_of(problem, len(np.union1d(*keys))), *on_device(*operands))
        calls[f"sort {name}"] = Jitted(jax.lax.sort, *on_device(np.concatenate(keys)))
    for call in calls.values():
        call()
    seconds = measure(calls, rounds, tick)
    return {
        f"{name} operands / (sort of the keys + sorted operands), forward, 10^6": seconds[name]
        / (seconds[f"sort {name}"] + seconds["fast"])
        for name in orders
    }


def hybrid(rounds: int, tick: Tick, *, copy: Copy) -> dict[str, float]:
    """Values with a dense dimension."""
    problem = draw(HALF, 10**5)
    rng = np.random.default_rng(1)
    a_values, b_values = (rng.standard_normal((10**5, 64), np.float32) for _ in range(2))
    operands = problem.a_indices, a_values, problem.b_indices, b_values
    call = Jitted(forward_of(problem), *on_device(*operands))
    indices, values = map(np.asarray, call())
    copies = copy([*operands, indices, values])
    copies()
    seconds = measure({OURS: call, COPY: copies}, rounds, tick)
    return {"values [nnz, 64] / copy of operands and result, forward, 10^5": seconds[OURS] / seconds[COPY]}


def many_operands(rounds: int, tick: Tick) -> dict[str, float]:
    """Eight operands at once, against one after the other."""
    rng = np.random.default_rng(1)
    pool = draw(NONE, 2 * 10**5)
    cells = [np.sort(rng.choice(pool.cells, 10**5, replace=False)) for _ in range(8)]
    indices = on_device(*(unflatten(part, SIDE) for part in cells))
    values = on_device(*(rng.standard_normal(10**5, np.float32) for _ in cells))
    unions = [cells[0]]
    for part in cells[1:]:
        unions.append(np.union1d(unions[-1], part))
    steps = [jax.jit(forward_of(pool, len(union))) for union in unions[1:]]

    def planned(indices: list[jax.Array], values: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        plan = jsg.plan_sparse_add(*indices, shape=pool.shape, nse=len(unions[-1]))
        return plan.indices, plan(*values)

    def chain() -> tuple[jax.Array, jax.Array]:
        total = indices[0], values[0]
        for step, *operand in zip(steps, indices[1:], values[1:], strict=True):
            total = step(*total, *operand)
        return jax.block_until_ready(total)

    calls = {"plan": Jitted(planned, indices, values), "chain": chain}
    if not np.array_equal(calls["plan"]()[0], calls["chain"]()[0]):
        raise AssertionError("the plan of eight operands and the chain of sums disagree")
    seconds = measure(calls, rounds, tick)
    return {"plan of 8 operands, made and used / chain of 7 sums, 10^5 each": seconds["plan"] / seconds["chain"]}


def other_problems(rounds: int, tick: Tick, *, large: bool) -> dict[str, float]:
    """Wide keys and large sizes, against 10^6 entries and keys of one word."""
    problems = {"": draw(HALF, 10**6), "two-word keys": draw(HALF, 10**6, side=2**31 - 1), "10^7": draw(HALF, 10**7)}
    if large:
        problems["3*10^7"] = draw(HALF, 3 * 10**7)
    seconds = measure({name: forward_call(problem) for name, problem in problems.items()}, rounds, tick)
    entry = {name: seconds[name] / len(problem.a_values) for name, problem in problems.items()}
    return {
        f"time per entry, {name} / 10^6 of one-word keys, forward": entry[name] / entry[""] for name in entry if name
    }


def eager(rounds: int, tick: Tick) -> dict[str, float]:
    """Calls outside `jit`."""

    def call_of(problem: Problem) -> Callable[[], Any]:
        a_indices, a_values, b_indices, b_values = on_device(*problem.operands)
        arguments = a_indices, a_values, problem.shape, b_indices, b_values, problem.shape
        return lambda: jax.block_until_ready(jsg.sparse_add(*arguments))

    calls = [call_of(draw(HALF, int(size))) for size in np.linspace(10**3, 10**4, 200)]
    jax.clear_caches()
    total = timed(lambda: [call() for call in calls])

    problem = draw(HALF, 10**4)
    both = {"eager": call_of(problem), "jitted": forward_call(problem)}
    both["eager"]()
    seconds = measure(both, rounds, tick)
    return {
        "200 eager calls of 200 sizes between 10^3 and 10^4, compilation included (s)": total,
        "eager call of a size seen before / jitted call, 10^4": seconds["eager"] / seconds["jitted"],
    }


def memory() -> dict[str, float]:
    """What the compiled forward pass needs in addition to operands and result."""
    problem = draw(HALF, 10**6)
    nse = len(problem.cells)
    compiled = jax.jit(forward_of(problem)).lower(*on_device(*problem.operands)).compile()
    ratio = compiled.memory_analysis().temp_size_in_bytes / (nse * (2 * 4 + 4))
    return {"temporary memory / bytes of the result, forward, 10^6": ratio}


def what_else(setup: Setup, rounds: int, *, large: bool) -> dict[str, float]:
    """All measurements of ours alone, on the default device."""
    others = partial(other_problems, large=large)
    measured = [out_of_order, partial(hybrid, copy=setup.copy), many_operands, others, eager]
    figures: dict[str, float] = {}
    with progress(f"{setup.name}, what else", len(measured) * rounds + 1) as tick:
        for part in measured:
            figures |= part(rounds, tick)
        figures |= memory()
        tick()
    return figures


# ---------------------------------------------------------------------------------------------------- report


Cells = dict[tuple[str, str], dict[str, str]]  # by operation and contender, then by column


def table(title: str, columns: Iterable[str], cells: Cells, *, markdown: bool = False) -> str:
    """A row for each contender, under a heading for each operation."""
    columns = list(columns)
    rows = [[title, *columns]]
    for operation in dict.fromkeys(operation for operation, _ in cells):
        rows.append([f"**{operation}**" if markdown else operation.upper(), *("" for _ in columns)])
        rows += [
            [contender, *(row.get(column, "-") for column in columns)]
            for (its_operation, contender), row in cells.items()
            if its_operation == operation
        ]
    if markdown:
        rows.insert(1, ["---", *("---:" for _ in columns)])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )


def table_of_timings(timings: list[Timing], *, markdown: bool = False) -> str:
    """Medians in ms, and in brackets our median divided by each: a column for each problem."""
    cells: Cells = {}
    for each in timings:
        row = cells.setdefault((each.operation, each.contender), {})
        row[each.problem] = f"{number(each.milliseconds)} ({number(each.ratio)})"
    problems = dict.fromkeys(each.problem for each in timings)
    return table("median ms (our median / this one)", problems, cells, markdown=markdown)


def number(value: float) -> str:
    """Three digits, without an exponent."""
    decimals = 2 - int(np.floor(np.log10(max(value, 1e-6))))
    return f"{value:,.{max(decimals, 0)}f}"


BLUE, ORANGE, GREEN, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7"  # Okabe and Ito
STYLES = {
    OURS: {"color": "#D55E00", "linewidth": 4, "marker": "o", "markersize": 7, "zorder": 3},
    "ours, planned before": {"color": "#D55E00", "linewidth": 2, "linestyle": "-.", "marker": "o", "markersize": 4},
    "TensorFlow": {"color": BLUE, "marker": "s"},
    "PyTorch COO": {"color": PURPLE, "marker": "^"},
    "PyTorch CSR": {"color": PURPLE, "marker": "v", "linestyle": ":"},
    "SciPy CSR": {"color": GREEN, "marker": "D"},
    "SciPy COO": {"color": GREEN, "marker": "d", "linestyle": ":"},
    "CuPy CSR": {"color": GREEN, "marker": "D"},
    "GraphBLAS": {"color": SKY, "marker": "P"},
    "PyData sparse COO": {"color": ORANGE, "marker": "X"},
    "JAX BCOO": {"color": "black", "marker": "*", "markersize": 9},
    COPY: {"color": "0.5", "linestyle": "--"},
}
LABELS = {
    OURS: "jax_sparse_grad",
    "ours, planned before": "jax_sparse_grad by a plan (moves no indices)",
    COPY: "copying operands and results",
}


def plot(timings: list[Timing], title: str, path: Path) -> None:
    """Draw time against entries, the forward pass alone and with the backward pass."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    handles = {}
    axes = figure.subplots(1, 2, sharey=True)
    for panel, operation in zip(axes, (FORWARD, BACKWARD), strict=True):
        for name, style in STYLES.items():
            key = (PLANNED, OURS) if name not in (OURS, COPY) and name.startswith(OURS) else (operation, name)
            if key[0] == PLANNED and operation == FORWARD:
                continue
            points = [(t.entries, t.milliseconds) for t in timings if (t.operation, t.contender) == key]
            if points:
                (handles[name],) = panel.plot(*zip(*points, strict=True), **{"linewidth": 1.8, **style})
        panel.set(xscale="log", yscale="log", title=operation, xlabel="entries of each operand")
        panel.grid(which="major", alpha=0.3)
    axes[0].set_ylabel("median time (ms)")
    axes[1].tick_params(labelleft=True)
    figure.suptitle(title)
    names = sorted(handles, key=list(STYLES).index)
    labels = [LABELS.get(name, name) for name in names]
    figure.legend([handles[name] for name in names], labels, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=130)


def surroundings() -> dict[str, Any]:
    """The versions and the machine that the figures come from."""
    versions = {}
    for package in (
        "jax",
        "numpy",
        "tensorflow-cpu",
        "tensorflow",
        "torch",
        "scipy",
        "sparse",
        "python-graphblas",
        "cupy",
        "libtpu",
        "jax-cuda12-plugin",
        "nvidia-cuda-nvcc-cu12",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"versions": versions, "platform": platform.platform(), "machine": platform.machine(), "cores": cores}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Time sparse addition and its gradient, in this and other libraries.")
    whole = {"type": lambda text: int(float(text))}  # allows 1e6
    parser.add_argument(
        "--sizes", nargs="+", metavar="N", **whole, help="entries of each operand; skips the other patterns"
    )
    parser.add_argument(
        "--rounds", metavar="N", **whole, help="of each measurement (default: 9; 5 from 10^7 entries on)"
    )
    parser.add_argument("--quick", action="store_true", help="10^3 to 10^5 entries and few rounds")
    parser.add_argument("--only-gpu", action="store_true", help="leave out the CPU")
    parser.add_argument("--large", action="store_true", help="also 3*10^7 entries, and 10^8 on a GPU")
    parser.add_argument("--no-extras", action="store_true", help="skip the table of ours alone")
    parser.add_argument("--markdown", action="store_true", help="print the tables for a README")
    parser.add_argument(
        "--compile-for",
        choices=["h100", "v5e"],
        help="time nothing: compile for a device that need not be there, and count what the program would do "
        "(needs the extra `platforms`; takes 4 minutes for h100, 14 for v5e)",
    )
    parser.add_argument(
        "--output", type=Path, help="folder for benchmark.png and benchmark.json (default: output, beside this file)"
    )
    options = parser.parse_args(argv)
    if min([*(options.sizes or []), options.rounds or 1]) < 1:
        parser.error("sizes and rounds must be positive")
    if options.only_gpu and jax.default_backend() != "gpu":
        parser.error(f"--only-gpu needs a GPU; JAX has {jax.devices()[0].device_kind}")
    unfit = [name for name in ("rounds", "quick", "only_gpu", "large", "no_extras") if getattr(options, name)]
    if options.compile_for and unfit:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in unfit)
        parser.error(f"--compile-for times nothing, so it takes no {names}; --sizes makes it shorter")
    return options


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and save everything; returns the figures."""
    options = parse(argv)
    folder = Path(__file__).parent / "output" if options.output is None else options.output
    if options.compile_for:
        import compiled_benchmark  # which imports this module, once more if it runs as a script

        return compiled_benchmark.main(options.compile_for, options.sizes, folder, markdown=options.markdown)
    rounds = options.rounds or (5 if options.quick else None)
    sizes = options.sizes or (SIZES[:3] if options.quick else SIZES)
    by_size = [partial(draw, HALF, size) for size in sizes]
    by_pattern = []
    if not (options.quick or options.sizes):
        by_pattern = [partial(draw, pattern, PATTERN_SIZE, name=pattern) for pattern in (NONE, ALL, BLOCKS, GAP)]
        by_pattern += [partial(draw, HALF, PATTERN_SIZE, PATTERN_SIZE // 100, name="10^6 + 10^4")]
    figures: dict[str, Any] = surroundings() | {name: {} for name in ("compile_seconds", "left_out", "what_else")}
    folder.mkdir(parents=True, exist_ok=True)
    more = [partial(draw, HALF, 10**8)] if options.large else []
    setups = []
    if not options.only_gpu:
        setups.append(Setup("CPU", jax.devices("cpu")[0], by_size + by_pattern, CONTENDERS, copy_of))
    if jax.default_backend() == "gpu":
        setups.append(Setup("GPU", jax.devices()[0], by_size + more + by_pattern, GPU_CONTENDERS, copy_on_device))
    else:
        print("no GPU: nothing measured on one")

    def save() -> None:
        figures["timings"] = [timing._asdict() for timing in timings]
        (folder / "benchmark.json").write_text(json.dumps(figures, indent=1) + "\n")

    timings: list[Timing] = []
    for setup in setups:
        with jax.default_device(setup.device):
            seconds = figures["compile_seconds"][setup.name] = compile_seconds(by_size[0]())
            say(f"{setup.name}: compiling our forward and backward pass: {seconds:.1f} s (not counted below)")
            measured, figures["left_out"][setup.name] = suite(setup.name, setup.problems, setup.contenders, rounds)
            timings += measured
            save()
            if not (options.quick or options.no_extras):
                figures["what_else"][setup.name] = what_else(setup, rounds or 9, large=options.large)
                save()

    names = {f"{size:,}" for size in (*sizes, 10**8)}
    for setup in setups:
        own = [timing for timing in timings if timing.device == setup.name]
        kind = f"{figures['cores']} CPU cores" if setup.name == "CPU" else setup.device.device_kind
        groups = {
            "half of the entries shared": [timing for timing in own if timing.problem in names],
            f"by pattern, {PATTERN_SIZE:,} entries": [timing for timing in own if timing.problem not in names],
        }
        for title, group in groups.items():
            if group:
                print(f"\n{kind}, {title}\n\n{table_of_timings(group, markdown=options.markdown)}")
        if setup.name in figures["what_else"]:
            print(f"\n{kind}, what else (ours alone)\n")
            for name, value in figures["what_else"][setup.name].items():
                print(f"| {name} | {value:.2f} |" if options.markdown else f"{name:82} {value:8.2f}")
        try:
            path = folder / f"benchmark{'' if setup.name == 'CPU' else '_gpu'}.png"
            plot(next(iter(groups.values())), f"Adding two sparse matrices, {kind}", path)
        except ModuleNotFoundError as error:
            print(f"no plot: {error.name} is not installed")
    print(f"\nSaved to {folder.resolve()}")
    return figures


if __name__ == "__main__":
    main()
