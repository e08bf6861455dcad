"""Every numeric type of `jax.numpy` and `ml_dtypes`: the right sum in it, or an error that says what to cast to."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jax_sparse_grad as jsg

SHAPE = (3, 4)
# Out of order, with duplicates and padding; the last two rows before the padding are in no other operand.
A = np.array([[2, 0], [0, 1], [0, 1], [1, 1], [0, 1], [2, 2], [2, 3], [3, 4]], np.int32)
B = np.array([[1, 1], [0, 1], [1, 0], [1, 1]], np.int32)
C = np.array([[0, 1], [1, 1], [1, 1]], np.int32)
UNION = np.array([[0, 1], [1, 0], [1, 1], [2, 0], [2, 2], [2, 3]], np.int32)


NAMES = sorted(
    name
    for name in {*dir(jnp), *dir(ml_dtypes)}
    if re.fullmatch(r"(int|uint|float|bfloat|complex|bcomplex)[1-9]\w*", name)
)
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in NAMES}
REFUSED = [
    *("int1", "uint1", "complex32", "bcomplex32"),
    *("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "float8_e8m0fnu"),  # without a NaN, and without a zero
]
SUMMED = [name for name in DTYPES if name not in REFUSED]
# Those of TensorFlow's op, whose qint8, quint8 and qint32 are stored as int8, uint8 and int32.
OF_TENSORFLOW = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
OF_TENSORFLOW |= {"bfloat16", "float16", "float32", "float64", "complex64", "complex128"}


def test_the_sweep_covers_the_types_of_both_modules():
    assert OF_TENSORFLOW | {"int2", "uint4", "float8_e4m3fnuz", "float8_e5m2"} <= set(SUMMED)
    assert {"float4_e2m1fn", "float8_e8m0fnu"} <= set(NAMES)


def is_integer(dtype):
    return jnp.issubdtype(dtype, jnp.integer)


def draw(rng, n, dtype):
    """Numbers whose sums are exact; integers over their whole range, whose sums wrap round."""
    if is_integer(dtype):
        limits = jnp.iinfo(dtype)
        whole = np.dtype(np.int64 if limits.min < 0 else np.uint64)
        return rng.integers(int(limits.min), int(limits.max), n, whole, endpoint=True).astype(dtype)
    values = rng.integers(-1, 2, n)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.integers(-1, 2, n)
    return values.astype(dtype)


def wide(values):
    """The same numbers in a dtype of numpy that holds them all."""
    values = np.asarray(values)
    if is_integer(values.dtype):
        return values.astype(np.int64 if jnp.iinfo(values.dtype).min < 0 else np.uint64)
    return values.astype(np.complex128 if jnp.issubdtype(values.dtype, jnp.complexfloating) else np.float64)


def dense_sum(operands, dtype, start=None):
    total = np.zeros(SHAPE, wide(np.zeros(0, dtype)).dtype) if start is None else wide(start)
    for rows, values in operands:
        inside = rows[:, 0] < SHAPE[0]
        np.add.at(total, tuple(rows[inside].T), wide(values)[inside])
    return wide(total.astype(dtype))  # integers wrap round


def poison_of(dtype):
    if not is_integer(dtype):
        return np.nan
    limits = jnp.iinfo(dtype)
    return int(limits.min or limits.max)


@pytest.fixture(scope="module")
def overflowed():
    """A plan of A and B with one slot too few: in a batch that is not refused."""
    plans = jax.vmap(lambda a: jsg.plan_sparse_add(a, B, shape=SHAPE, nse=5))(A[None])
    return jax.tree.map(lambda leaf: leaf[0], plans)


def all_of_them(overflowed, va, vb, vc, dense, cotangent):
    with jax.ensure_compile_time_eval():  # so that patterns are known, and nothing of them is compiled
        rows = [jnp.asarray(each) for each in (A, B, C)]
    x, y, z = (BCOO((values, each), shape=SHAPE) for values, each in zip((va, vb, vc), rows, strict=True))
    plan = jsg.plan_sparse_add(A, B, shape=SHAPE)
    results = {
        "sparse_add": jsg.sparse_add(A, va, SHAPE, B, vb, SHAPE),
        "plan": plan(va, vb),
        "overflow": overflowed(va, vb),
        "add_n": jsg.add_n([x, y, z]).data,
        "to dense": jsg.add(x, dense),
        "sparse_add_grad": jsg.sparse_add_grad(cotangent, A, B, UNION),
    }
    if not is_integer(va.dtype):
        results["vjp"] = jax.vjp(plan, va, vb)[1](cotangent)
    return results


TRACED = jax.jit(all_of_them)
# The others take another path nowhere.
COMPILED = ["int4", "uint2", "int8", "uint64", "bfloat16", "complex64", "float8_e4m3fnuz"]


@pytest.mark.parametrize(
    ("sums", "name"),
    [pytest.param(all_of_them, name, id=f"eager-{name}") for name in SUMMED]
    + [pytest.param(TRACED, name, id=f"jit-{name}") for name in COMPILED],
)
def test_sums_and_gradients_of_every_numeric_type(sums, name, overflowed, rng, x64):
    dtype = DTYPES[name]
    va, vb, vc = (draw(rng, len(rows), dtype) for rows in (A, B, C))
    dense, cotangent = draw(rng, 12, dtype).reshape(SHAPE), draw(rng, 6, dtype)
    # The other types have no -0: its bits are those of NaN.
    signed_zero = not is_integer(dtype) and np.signbit(wide(-np.zeros((), dtype)).real)
    if not is_integer(dtype):
        va[6], vb[2] = -np.zeros((), dtype), np.nan  # each alone in its cell
    results = sums(overflowed, va, vb, vc, dense, cotangent)
    assert {leaf.dtype for key in results for leaf in jax.tree.leaves(results[key])} == {dtype, np.dtype(np.int32)}

    cells = tuple(UNION.T)
    total = dense_sum([(A, va), (B, vb)], dtype)[cells]
    np.testing.assert_array_equal(results["sparse_add"].sum_indices, UNION)
    for key, values in (("sparse_add", results["sparse_add"].sum_values), ("plan", results["plan"])):
        np.testing.assert_array_equal(wide(values), total, err_msg=key)
        assert not signed_zero or np.signbit(wide(values)[5].real), f"{key} lost the sign of zero"
    np.testing.assert_array_equal(wide(results["overflow"]), poison_of(dtype))
    everything = dense_sum([(A, va), (B, vb), (C, vc)], dtype)[cells]
    np.testing.assert_array_equal(wide(results["add_n"]), everything)
    np.testing.assert_array_equal(wide(results["to dense"]), dense_sum([(A, va)], dtype, dense))

    table = np.zeros((4, 5), wide(cotangent).dtype)
    table[cells] = wide(cotangent)
    expected = [table[tuple(rows.T)] for rows in (A, B)]
    for key in ("sparse_add_grad", "vjp"):
        for actual, grad in zip(results.get(key, ()), expected, strict=key in results):
            np.testing.assert_array_equal(wide(actual), grad, err_msg=key)


@pytest.mark.parametrize("name", [name for name in REFUSED if name in DTYPES])
def test_types_that_cannot_be_added_are_refused(name):
    values = np.ones(2, DTYPES[name])
    rows = np.array([[0, 0], [0, 1]])
    plan = jsg.plan_sparse_add(rows, shape=SHAPE)
    for call in (
        lambda: plan(values),
        lambda: jsg.sparse_add(rows, values, SHAPE, rows, values, SHAPE),
        lambda: jsg.sparse_add_grad(values, rows, rows, rows),
    ):
        with pytest.raises(TypeError, match=f"must (hold integers .* floats with|have a numeric dtype).*got {name}"):
            call()


def test_bool_says_what_to_cast_to():
    plan = jsg.plan_sparse_add(np.array([[0, 0]]), shape=SHAPE)
    with pytest.raises(TypeError, match=re.escape("got bool; cast it, `values[0].astype(jnp.int32)` to count")):
        plan(np.array([True]))
