"""The programs that `test_platforms.py` compiles for devices that are not there."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jax_sparse_grad as jsg
from absent_devices import absent_devices, compile_for, count
from jax_sparse_grad import sharded
from jax_sparse_grad.sharded._mesh import Layout

SHAPE = (40_000, 40_000)
MATRIX = (500, 300)


def ints(*shape, dtype=np.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def floats(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def pair(n, *, indices=np.int32, values=np.float32):
    """`(a_indices, a_values, b_indices, b_values)`."""
    return (ints(n, 2, dtype=indices), floats(n, dtype=values)) * 2


def gradient_of_pair(n):
    """`(backprop_val_grad, a_indices, b_indices, sum_indices)`."""
    return floats(2 * n), ints(n, 2), ints(n, 2), ints(2 * n, 2)


def batched(arguments):
    return tuple(jax.ShapeDtypeStruct((4, *each.shape), each.dtype) for each in arguments)


def planned(n, *dense, dtype=np.float32):
    """A plan made of two patterns in order, which share half of their entries, and values."""
    cells = np.linspace(0, SHAPE[0] * SHAPE[1] - 1, 3 * n // 2, dtype=np.int64)
    rows = np.stack(np.divmod(cells, SHAPE[1]), axis=1).astype(np.int32)
    return jsg.plan_sparse_add(rows[:n], rows[-n:], shape=SHAPE), *[floats(n, *dense, dtype=dtype)] * 2


def row_sharded(n, mesh):
    """A matrix whose rows are spread over four devices."""

    def struct(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    data, indices = struct((4 * n,), np.float32, "rows"), struct((4 * n, 2), np.int32, "rows")
    starts, nnz = struct((5,), np.int32), struct((4,), np.int32, "rows")
    return sharded.RowSharded(data, indices, starts, nnz, Layout(MATRIX, mesh, "rows"))


def with_gradients(add, *values):
    """A sum, and the gradients of half the sum of its squares."""

    def split(*values):
        total = add(*values)
        return getattr(total, "sum_values" if isinstance(total, jsg.SparseAddOutput) else "data", total), total

    data, pull, total = jax.vjp(split, *values, has_aux=True)
    return total, pull(data)


def sparse_add(a, x, b, y, *, shape=SHAPE, **options):
    return jsg.sparse_add(a, x, shape, b, y, shape, **options)


def sparse_add_with_gradients(a, x, b, y, **options):
    return with_gradients(lambda x, y: sparse_add(a, x, b, y, **options), x, y)


def bcoo(a, x, b, y):
    total = BCOO((x, a), shape=SHAPE) + BCOO((y, b), shape=SHAPE)
    return total.sum_duplicates(nse=len(x) + len(y))


def threshold(a, x, b, y, thresh):
    return sparse_add_with_gradients(a, x, b, y, shape=(2**31 - 1,) * 2, thresh=thresh, nse=len(x))


def add_n(indices, values, weights):
    def add(values, weights):
        operands = [BCOO(each, shape=SHAPE) for each in zip(values, indices, strict=True)]
        return jsg.add_n(operands, weights=list(weights))

    return with_gradients(add, values, weights)


def subtract_by_rows(x, columns, ends, y, more_columns, more_ends):
    def subtract(x, y):
        return jsg.subtract(BCSR((x, columns, ends), shape=MATRIX), BCSR((y, more_columns, more_ends), shape=MATRIX))

    return with_gradients(subtract, x, y)


def scan(indices, values):
    size = 2 * values.shape[1]

    def add_all(values):
        def step(carry, operand):
            return jsg.add(carry, BCOO(operand, shape=SHAPE), nse=size), None

        return jax.lax.scan(step, jsg.empty(SHAPE, size, values.dtype), (values, indices))[0]

    return with_gradients(add_all, values)


def plans_in_a_loop(plan, x, y, a, b, rounds):
    def step(_, carry):
        plan, total = carry
        return jsg.plan_sparse_add(a, b, shape=SHAPE, nse=plan.nse), total + plan(x, y)

    return jax.lax.fori_loop(0, rounds, step, (plan, plan(x, y)))


def sharded_with_gradients(add, *operands):
    def add_data(*values):
        return add(*(x.with_data(data) for x, data in zip(operands, values, strict=True)))

    return with_gradients(add_data, *(x.data for x in operands))


def sharded_sum_with_dense(x, dense):
    return sharded_with_gradients(lambda x: sharded.add(x, dense), x)


def repartition(x, y):
    return sharded_with_gradients(lambda x: sharded.repartition(x, y.row_starts), x)


class Program(NamedTuple):
    """A function and its arguments: for so many entries; over four devices too, if there is a mesh."""

    function: Callable[..., Any]
    arguments: Callable[..., tuple[Any, ...]]
    sharded: bool = False
    x64: bool = False


WITH_BUDGET = {
    "sparse_add": Program(sparse_add, pair),
    "sparse_add of canonical": Program(partial(sparse_add, assume_canonical=True), pair),
    "forward and backward": Program(sparse_add_with_gradients, pair),
    "sparse_add_grad": Program(partial(jsg.sparse_add_grad, shape=SHAPE), gradient_of_pair),
    "planned, forward and backward": Program(with_gradients, planned),
    "BCOO": Program(bcoo, pair),
}
# Some have keys of two words, `x64` of three.
WITHOUT_BUDGET = {
    "batch": Program(jax.vmap(sparse_add_with_gradients), lambda n: batched(pair(n))),
    "threshold": Program(threshold, lambda n: (*pair(n), floats())),
    "x64": Program(
        partial(sparse_add_with_gradients, shape=(2**40, 2**10)),
        partial(pair, indices=np.int64, values=np.float64),
        x64=True,
    ),
    "an empty operand and one entry": Program(
        sparse_add_with_gradients, lambda n: (ints(0, 2), floats(0), ints(1, 2), floats(1))
    ),
    "batch of sparse_add_grad": Program(jax.vmap(jsg.sparse_add_grad), lambda n: batched(gradient_of_pair(n))),
    "add_n": Program(add_n, lambda n: ([ints(n, 2)] * 5, [floats(n)] * 5, floats(5))),
    "by rows": Program(subtract_by_rows, lambda n: (floats(n), ints(n), ints(MATRIX[0] + 1)) * 2),
    "scan": Program(scan, lambda n: (ints(4, n, 2), floats(4, n))),
    "plans in a loop": Program(plans_in_a_loop, lambda n: (*planned(n), ints(n, 2), ints(n, 2), ints())),
    "complex64": Program(with_gradients, partial(planned, dtype=np.complex64)),
    "complex128": Program(with_gradients, partial(planned, dtype=np.complex128), x64=True),
    "bfloat16": Program(with_gradients, lambda n: planned(n, 3, dtype=jnp.bfloat16)),
    "int8": Program(jsg.SparseAddPlan.__call__, partial(planned, dtype=np.int8)),
    "int4": Program(jsg.SparseAddPlan.__call__, partial(planned, dtype=jnp.int4)),
    "sharded.add": Program(
        partial(sharded_with_gradients, sharded.add), lambda n, mesh: (row_sharded(n, mesh),) * 2, sharded=True
    ),
    "sharded sum with dense": Program(
        sharded_sum_with_dense, lambda n, mesh: (row_sharded(n, mesh), floats(*MATRIX)), sharded=True
    ),
    "repartition": Program(repartition, lambda n, mesh: (row_sharded(n, mesh),) * 2, sharded=True),
}


@cache
def compiled(device, name, entries):
    """What the compilers say of a program, and what is counted in it."""
    program = (WITH_BUDGET | WITHOUT_BUDGET)[name]
    devices = 4 if program.sharded else 1
    mesh = Mesh(np.array(absent_devices(device, devices)), ("rows",), axis_types=(AxisType.Auto,))
    with jax.enable_x64(True) if program.x64 else nullcontext():
        arguments = program.arguments(entries, *[mesh] * program.sharded)
        result = compile_for(device, program.function, *arguments, devices=devices)
    return result, count(result.text)
