"""The programs that `test_platforms.py` compiles for devices that are not there, and the process that compiles them.

A process of its own, because flags for XLA that the other tests set would hold for these compilers too. It reads lines
`[device, program, entries]` in JSON and answers each with the figures of the compiled program, or with the error.
"""

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from absent_devices import absent_devices, compile_for, count  # first: it says which devices jax looks for

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.experimental.sparse import BCOO, BCSR
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jax_sparse_grad as jsg
from jax_sparse_grad import sharded
from jax_sparse_grad.sharded._mesh import Layout

SHAPE = (40_000, 40_000)
MATRIX = (500, 300)
DEVICES = 4


class Program(NamedTuple):
    """A function, and its arguments for a device and a number of entries in each operand."""

    function: Callable[..., Any]
    arguments: Callable[[str, int], tuple[Any, ...]]
    devices: int
    x64: bool


PROGRAMS: dict[str, Program] = {}


def program(arguments, *, devices=1, x64=False):
    """Registers a function under its name."""

    def register(function):
        PROGRAMS[function.__name__] = Program(function, arguments, devices, x64)
        return function

    return register


def ints(*shape, dtype=np.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def floats(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def pair(device, n, *, ndim=2, indices=np.int32, values=np.float32, dense=()):
    """`(a_indices, a_values, b_indices, b_values)`."""
    return (ints(n, ndim, dtype=indices), floats(n, *dense, dtype=values)) * 2


def pair_of(**form):
    return lambda device, n: pair(device, n, **form)


def gradient_of_pair(device, n):
    """`(backprop_val_grad, a_indices, b_indices, sum_indices)`."""
    return floats(2 * n), ints(n, 2), ints(n, 2), ints(2 * n, 2)


def batched(arguments, size):
    return tuple(jax.ShapeDtypeStruct((size, *each.shape), each.dtype) for each in arguments)


def planned(device, n):
    """A plan made of two patterns in order, which share half of their entries, and values for it."""
    cells = np.linspace(0, SHAPE[0] * SHAPE[1] - 1, 3 * n // 2, dtype=np.int64)
    rows = np.stack(np.divmod(cells, SHAPE[1]), axis=1).astype(np.int32)
    return jsg.plan_sparse_add(rows[:n], rows[-n:], shape=SHAPE), floats(n), floats(n)


def loss_and_gradients(add, *values):
    """The sum of squares of a sum, and the gradients of its operands."""
    return jax.value_and_grad(lambda *values: (add(*values) ** 2).sum(), tuple(range(len(values))))(*values)


def with_gradients(add, *values):
    """A sum, and the gradients of half the sum of its squares."""

    def split(*values):
        total = add(*values)
        return getattr(total, "sum_values" if isinstance(total, jsg.SparseAddOutput) else "data", total), total

    data, pull, total = jax.vjp(split, *values, has_aux=True)
    return total, pull(data)


# With budgets.


@program(pair)
def sparse_add(a, x, b, y):
    return jsg.sparse_add(a, x, SHAPE, b, y, SHAPE)[:2]


@program(pair)
def sparse_add_of_canonical(a, x, b, y):
    return jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, assume_canonical=True)[:2]


@program(pair)
def forward_and_backward(a, x, b, y):
    return loss_and_gradients(lambda x, y: sparse_add(a, x, b, y)[1], x, y)


@program(pair)
def add(a, x, b, y):
    return jsg.add(BCOO((x, a), shape=SHAPE), BCOO((y, b), shape=SHAPE))


@program(gradient_of_pair)
def sparse_add_grad(cotangent, a, b, total):
    return jsg.sparse_add_grad(cotangent, a, b, total, shape=SHAPE)


@program(planned)
def planned_forward_and_backward(plan, x, y):
    return loss_and_gradients(plan, x, y)


@program(lambda device, n: batched(pair(device, 5_000), 16))
def vmap(a, x, b, y):
    return jax.vmap(sparse_add)(a, x, b, y)


@program(pair)
def bcoo(a, x, b, y):
    total = BCOO((x, a), shape=SHAPE) + BCOO((y, b), shape=SHAPE)
    return total.sum_duplicates(nse=len(x) + len(y))


@program(pair)
def bcoo_forward_and_backward(a, x, b, y):
    return loss_and_gradients(lambda x, y: bcoo(a, x, b, y).data, x, y)


BUDGETED = tuple(PROGRAMS)


# Without budgets.


def add_in(shape, a, x, b, y, **options):
    return with_gradients(lambda x, y: jsg.sparse_add(a, x, shape, b, y, shape, **options), x, y)


def sum_in(name, shape, arguments, *, x64=False):
    """Registers the sum of two operands in a shape, and its gradients."""
    PROGRAMS[name] = Program(lambda *operands: add_in(shape, *operands), arguments, 1, x64)


sum_in("keys_of_scalars", (), pair_of(ndim=0))
sum_in("keys_of_two_words", (2**31 - 1,) * 2, pair)
sum_in("keys_of_three_words", (2**31 - 1,) * 3, pair_of(ndim=3))
sum_in("x64", (2**40, 2**40), pair_of(indices=np.int64, values=np.float64), x64=True)
sum_in("values_of_complex64", SHAPE, pair_of(values=np.complex64))
sum_in("values_of_bfloat16", SHAPE, pair_of(values=jnp.bfloat16))
sum_in("values_of_complex128", SHAPE, pair_of(values=np.complex128), x64=True)
sum_in("hybrid_values", SHAPE, pair_of(dense=(3,)))
sum_in("an_empty_operand_and_one_entry", SHAPE, lambda device, n: (ints(0, 2), floats(0), ints(1, 2), floats(1)))


@program(pair_of(values=np.int8))
def values_of_int8(a, x, b, y):
    return sparse_add(a, x, b, y)


@program(pair_of(values=jnp.int4))
def values_of_int4(a, x, b, y):
    return sparse_add(a, x, b, y)


@program(lambda device, n: (floats(n), floats(n)))
def unordered_operands_closed_over(x, y):
    a, b = np.random.default_rng(0).integers(0, 100, (2, len(x), 2), np.int32)
    return add_in((100, 100), a, x, b, y)


@program(lambda device, n: (ints(n, 2), floats(4, n), ints(n, 2), floats(4, n)))
def batch_with_shared_patterns(a, x, b, y):
    return jax.vmap(lambda x, y: add_in(SHAPE, a, x, b, y))(x, y)


@program(lambda device, n: batched(pair(device, n), 4))
def batch_with_own_patterns(a, x, b, y):
    return jax.vmap(lambda *operands: add_in(SHAPE, *operands))(a, x, b, y)


@program(lambda device, n: (*pair(device, n), floats()))
def threshold(a, x, b, y, thresh):
    return add_in(SHAPE, a, x, b, y, thresh=thresh, nse=len(x))


@program(gradient_of_pair)
def sparse_add_grad_without_shape(cotangent, a, b, total):
    return jsg.sparse_add_grad(cotangent, a, b, total)


@program(lambda device, n: batched(gradient_of_pair(device, n), 4))
def batch_of_sparse_add_grad(cotangent, a, b, total):
    return jax.vmap(jsg.sparse_add_grad)(cotangent, a, b, total)


@program(lambda device, n: ([ints(n, 2)] * 5, [floats(n)] * 5, floats(5)))
def add_n_of_five(indices, values, weights):
    def total(values, weights):
        operands = [BCOO(each, shape=SHAPE) for each in zip(values, indices, strict=True)]
        return jsg.add_n(operands, weights=list(weights))

    return with_gradients(total, values, weights)


@program(lambda device, n: (floats(n), ints(n), ints(MATRIX[0] + 1)) * 2)
def bcsr(x, columns, ends, y, more_columns, more_ends):
    def total(x, y):
        return jsg.add(BCSR((x, columns, ends), shape=MATRIX), BCSR((y, more_columns, more_ends), shape=MATRIX))

    return with_gradients(total, x, y)


@program(lambda device, n: (floats(n), ints(n, 2), floats(n), ints(n), ints(MATRIX[0] + 1)))
def bcoo_minus_bcsr(x, indices, y, columns, ends):
    def total(x, y):
        return jsg.subtract(BCOO((x, indices), shape=MATRIX), BCSR((y, columns, ends), shape=MATRIX))

    return with_gradients(total, x, y)


@program(lambda device, n: (floats(*MATRIX), floats(n), ints(n, 2)))
def dense_and_sparse(dense, x, indices):
    return with_gradients(lambda dense, x: jsg.add(dense, BCOO((x, indices), shape=MATRIX)), dense, x)


@program(lambda device, n: (ints(n, 2), floats(n)))
def sum_duplicates(a, x):
    return with_gradients(lambda x: jsg.sum_duplicates(BCOO((x, a), shape=SHAPE)), x)


@program(pair)
def forward_mode(a, x, b, y):
    return jax.jvp(lambda x, y: add(a, x, b, y).data, (x, y), (x, y))


@program(pair)
def checkified(a, x, b, y):
    return checkify.checkify(add)(a, x, b, y)


@program(lambda device, n: (*pair(device, n)[:2], ints(4, n, 2), floats(4, n)))
def scan_with_fixed_nse(a, x, b, y):
    def total(x, y):
        def step(carry, operand):
            indices, values = operand
            return jsg.add(carry, BCOO((values, indices), shape=SHAPE), nse=2 * len(x)), None

        first = jsg.add(jsg.empty(SHAPE, 0, x.dtype), BCOO((x, a), shape=SHAPE), nse=2 * len(x))
        return jax.lax.scan(step, first, (b, y))[0]

    return with_gradients(total, x, y)


@program(pair)
def plan_made_under_jit(a, x, b, y):
    plan = jsg.plan_sparse_add(a, b, shape=SHAPE)
    return plan, plan.slots, with_gradients(plan, x, y)


@program(lambda device, n: batched(pair(device, n), 4))
def batch_of_plans(a, x, b, y):
    return jax.vmap(plan_made_under_jit)(a, x, b, y)


@program(lambda device, n: (*pair(device, n), ints()))
def plan_carried_by_a_loop(a, x, b, y, rounds):
    def step(_, carry):
        plan, total = carry
        return jsg.plan_sparse_add(b, a, shape=SHAPE), total + plan(x, y)

    plan = jsg.plan_sparse_add(a, b, shape=SHAPE)
    return jax.lax.fori_loop(0, rounds, step, (plan, plan(x, y)))


@program(lambda device, n: planned(device, 40))
def hessian_of_a_plan(plan, x, y):
    return jax.hessian(lambda x: (plan(x, y) ** 3).sum())(x)


# Over four devices.


def on_mesh(operands, *, dense=False):
    """Arguments that are spread over absent devices, and a dense one."""

    def arguments(device, n):
        mesh = Mesh(np.array(absent_devices(device, DEVICES)), ("rows",), axis_types=(AxisType.Auto,))

        def struct(shape, dtype, *spec):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

        data, indices = struct((DEVICES * n,), np.float32, "rows"), struct((DEVICES * n, 2), np.int32, "rows")
        starts, nnz = struct((DEVICES + 1,), np.int32), struct((DEVICES,), np.int32, "rows")
        x = sharded.RowSharded(data, indices, starts, nnz, Layout(MATRIX, mesh, "rows"))
        return (x,) * operands + (floats(*MATRIX),) * dense

    return arguments


def with_sharded_gradients(add, *operands):
    def total(*values):
        return add(*(x.with_data(data) for x, data in zip(operands, values, strict=True)))

    return with_gradients(total, *(x.data for x in operands))


@program(on_mesh(2), devices=DEVICES)
def sharded_add(x, y):
    return with_sharded_gradients(sharded.add, x, y)


@program(on_mesh(3), devices=DEVICES)
def sharded_add_n(x, y, z):
    return with_sharded_gradients(lambda *operands: sharded.add_n(operands), x, y, z)


@program(on_mesh(2), devices=DEVICES)
def sharded_plan(x, y):
    plan = sharded.plan_sparse_add(x, y)
    return plan, with_sharded_gradients(lambda x, y: plan.with_data(plan(x.data, y.data)), x, y)


@program(on_mesh(1, dense=True), devices=DEVICES)
def sharded_add_to_dense(x, dense):
    return with_sharded_gradients(lambda x: sharded.add(x, dense), x)


@program(on_mesh(2), devices=DEVICES)
def repartition(x, y):
    return with_sharded_gradients(lambda x: sharded.repartition(x, y.row_starts), x)


WITHOUT_BUDGET = [name for name in PROGRAMS if name not in BUDGETED]


def figures(device, name, entries):
    """What the compilers say of a program."""
    function, arguments, devices, wide = PROGRAMS[name]
    with jax.enable_x64(True) if wide else nullcontext():
        compiled = dataclasses.asdict(compile_for(device, function, *arguments(device, entries), devices=devices))
    return dataclasses.asdict(count(compiled.pop("text"))) | compiled


def main():
    for line in sys.stdin:
        try:
            answer = figures(*json.loads(line))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
