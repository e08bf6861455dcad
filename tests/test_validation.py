"""Bad arguments: a clear error that names the argument, what is expected, what was given, and what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sparse_grad as jsg

SHAPE = (3, 4)
A = {
    "a_indices": np.array([[0, 1], [2, 3]]),
    "a_values": np.array([1.0, 2.0], np.float32),
    "a_shape": SHAPE,
    "b_indices": np.array([[0, 1]]),
    "b_values": np.array([3.0], np.float32),
    "b_shape": SHAPE,
}
G = {
    "backprop_val_grad": np.array([1.0, 2.0], np.float32),
    "a_indices": np.array([[0, 1], [2, 3]]),
    "b_indices": np.array([[0, 1]]),
    "sum_indices": np.array([[0, 1], [2, 3]]),
}
P = {"shape": SHAPE}

ADD_FAULTS = [
    ({"a_indices": [[0.0, 1.0], [2.0, 3.0]]}, TypeError, "`a_indices` must have an integer dtype, got float32"),
    ({"b_indices": [True, False]}, TypeError, "`b_indices` must have an integer dtype, got bool"),
    ({"a_indices": [0, 1]}, ValueError, "`a_indices` must be a matrix [nnz, ndims], got shape (2,)"),
    ({"b_indices": [[0]]}, ValueError, "`b_indices` must have as many columns (ndims) as `a_indices`; got 1 and 2"),
    ({"a_indices": "abc"}, TypeError, "`a_indices` must be an array, got str"),
    ({"a_indices": None}, TypeError, "`a_indices` must be an array, got None"),
    ({"a_shape": (3,), "b_shape": (3,)}, ValueError, "`a_shape` must have as many sizes as `a_indices` has columns"),
    ({"b_shape": (3, 3)}, ValueError, "`b_shape` must equal `a_shape`; got (3, 3) and (3, 4)"),
    ({"a_shape": (3, -4), "b_shape": (3, -4)}, ValueError, "`a_shape` must not have negative sizes, got (3, -4)"),
    ({"a_shape": (3.0, 4.0)}, TypeError, "`a_shape` must be a sequence of ints, got (3.0, 4.0)"),
    ({"a_shape": 3}, TypeError, "`a_shape` must be a sequence of ints, got 3"),
    ({"a_values": [1.0]}, ValueError, "`a_values` must have one row for each row of `a_indices`; got 1 and 2"),
    ({"b_values": 1.0}, ValueError, "`b_values` must have shape [nnz, *dense], got a scalar"),
    ({"a_values": [True, False]}, TypeError, "`a_values` must have a numeric dtype, got bool"),
    (
        {"b_values": [[1.0, 2.0]]},
        ValueError,
        "`b_values` must have the same dense dimensions as `a_values`; got (2,) and ()",
    ),
    ({"nse": -1}, ValueError, "`nse` must not be negative, nor exceed 2147483647; got -1"),
    ({"nse": 2.5}, TypeError, "`nse` must be an int or None, got 2.5"),
    ({"nse": True}, TypeError, "`nse` must be an int or None, got True"),
    ({"assume_canonical": 1}, TypeError, "`assume_canonical` must be a Python bool, got 1"),
    ({"thresh": [0.5]}, ValueError, "`thresh` must be a scalar, got shape (1,)"),
    ({"thresh": 1j}, TypeError, "`thresh` must be a real number, got dtype complex128"),
    ({"thresh": True}, TypeError, "`thresh` must be a real number, got dtype bool"),
    ({"thresh": np.nan}, ValueError, "`thresh` must not be NaN"),
    (
        {"a_indices": np.array([[0, 1], [2, 3]], np.int8), "b_indices": np.array([[0, 1]], np.int8)}
        | {"a_shape": (3, 128), "b_shape": (3, 128)},
        ValueError,
        "`a_shape` must not exceed 127, the largest index of int8, in any dimension (padding is marked by "
        "index == shape); got (3, 128); cast the indices to a wider dtype",
    ),
    (
        {"a_shape": (3, 2**31), "b_shape": (3, 2**31)},
        ValueError,
        "got (3, 2147483648); set `jax_enable_x64` and use int64",
    ),
    (
        {"a_indices": np.array([[0, 1], [2, 2**40]])},
        ValueError,
        "`a_indices` must fit int32, got values from 0 to 1099511627776; set `jax_enable_x64` to use 64-bit integers",
    ),
    (
        {"a_values": np.array([1, 2**40])},
        ValueError,
        "`a_values` must fit int32, got values from 1 to 1099511627776; set `jax_enable_x64`",
    ),
]

DATA_FAULTS = [
    (
        {"a_indices": np.array([[0, 1], [2, 4]])},
        "`a_indices` must lie in [0, (3, 4)), or equal (3, 4) in padding; row 1 is [2 4]",
    ),
    (
        {"b_indices": np.array([[-1, 1]])},
        "`b_indices` must lie in [0, (3, 4)), or equal (3, 4) in padding; row 0 is [-1  1]",
    ),
    ({"nse": 1}, "`nse` must be at least 2, the number of distinct entries of the sum; got 1"),
]

GRAD_FAULTS = [
    # The four static faults of TensorFlow's kernel
    ({"a_indices": [0, 1]}, ValueError, "`a_indices` must be a matrix [nnz, ndims], got shape (2,)"),
    ({"b_indices": [0, 1]}, ValueError, "`b_indices` must be a matrix [nnz, ndims], got shape (2,)"),
    ({"sum_indices": [0, 1]}, ValueError, "`sum_indices` must be a matrix [nnz, ndims], got shape (2,)"),
    ({"backprop_val_grad": 1.0}, ValueError, "`backprop_val_grad` must have shape [nnz, *dense], got a scalar"),
    ({"b_indices": [[0]]}, ValueError, "`b_indices` must have as many columns (ndims) as `a_indices`; got 1 and 2"),
    ({"sum_indices": [[0], [1]]}, ValueError, "`sum_indices` must have as many columns (ndims) as `a_indices`"),
    (
        {"backprop_val_grad": [1.0]},
        ValueError,
        "`backprop_val_grad` must have one row for each row of `sum_indices`; got 1 and 2",
    ),
    # Faults of dtype, and of what TensorFlow does not look at
    ({"sum_indices": [[0.0, 1.0]]}, TypeError, "`sum_indices` must have an integer dtype, got float32"),
    ({"backprop_val_grad": [True, False]}, TypeError, "`backprop_val_grad` must have a numeric dtype, got bool"),
    ({"shape": (3,)}, ValueError, "`shape` must have as many sizes as `a_indices` has columns; got (3,) and 2 columns"),
    ({"a_indices": [[0, -1]]}, ValueError, "`a_indices` must not be negative; row 0 is [ 0 -1]"),
    ({"a_indices": [[0, 9]], "shape": SHAPE}, ValueError, "`a_indices` must lie in [0, (3, 4)), or equal (3, 4)"),
    ({"sum_indices": [[2, 3], [0, 1]]}, ValueError, "`sum_indices` must be sorted as `sparse_add` returns them"),
]


@pytest.mark.parametrize(("fault", "error", "message"), ADD_FAULTS)
def test_sparse_add_names_the_fault_while_tracing_too(fault, error, message):
    arguments = A | fault
    with pytest.raises(error, match=re.escape(message)):
        jsg.sparse_add(**arguments)
    with pytest.raises(error, match=re.escape(message)):
        jax.jit(lambda: jsg.sparse_add(**arguments))()


@pytest.mark.parametrize(("fault", "message"), DATA_FAULTS)
def test_sparse_add_names_faults_of_concrete_data(fault, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jsg.sparse_add(**(A | fault))
    with pytest.raises(ValueError, match=re.escape(message)):  # indices closed over are concrete
        jax.jit(lambda values: jsg.sparse_add(**(A | fault | {"a_values": values})))(A["a_values"])


@pytest.mark.parametrize(("fault", "error", "message"), GRAD_FAULTS)
def test_sparse_add_grad_names_the_fault(fault, error, message):
    with pytest.raises(error, match=re.escape(message)):
        jsg.sparse_add_grad(**(G | fault))


def test_index_dtypes_without_a_common_integer(x64):
    with pytest.raises(
        TypeError,
        match="`a_indices`, `b_indices` must have a common integer dtype, got int64, uint64; cast one of them",
    ):
        jsg.sparse_add(**(A | {"b_indices": np.array([[0, 1]], np.uint64)}))


@pytest.mark.parametrize(
    ("indices", "keywords", "error", "message"),
    [
        ([], P, ValueError, "`indices` must be given for at least one operand"),
        ([[0, 1]], P, ValueError, "`indices[0]` must be a matrix [nnz, ndims], got shape (2,)"),
        (
            [[[0, 1]], [[0]]],
            P,
            ValueError,
            "`indices[1]` must have as many columns (ndims) as `indices[0]`; got 1 and 2",
        ),
        ([[[0, 1]]], {"shape": (3,)}, ValueError, "`shape` must have as many sizes as `indices[0]` has columns"),
        (
            [[[0, 1]], [[3, 0]]],
            P,
            ValueError,
            "`indices[1]` must lie in [0, (3, 4)), or equal (3, 4) in padding; row 0",
        ),
        ([[[0, 1], [0, 2]]], P | {"nse": 1}, ValueError, "`nse` must be at least 2"),
    ],
)
def test_plan_sparse_add_names_the_fault(indices, keywords, error, message):
    with pytest.raises(error, match=re.escape(message)):
        jsg.plan_sparse_add(*indices, **keywords)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([[1.0]], ValueError, "`values` must be given for each of the 2 operands of the plan, got 1"),
        ([[1.0], [1.0]], ValueError, "`values[1]` must have one row for each row of `indices[1]`; got 1 and 2"),
        ([[1.0], [[1.0], [2.0]]], ValueError, "`values[1]` must have the same dense dimensions as `values[0]`"),
        ([[1.0], ["x", "y"]], TypeError, "`values[1][...]` must be an array, got str"),
    ],
)
def test_a_plan_names_the_fault_of_its_values(values, error, message):
    plan = jsg.plan_sparse_add([[0, 1]], [[0, 1], [2, 2]], shape=SHAPE)
    with pytest.raises(error, match=re.escape(message)):
        plan(*values)


def test_a_batched_plan_says_how_to_call_it():
    plan = jax.vmap(lambda i: jsg.plan_sparse_add(i, shape=SHAPE))(jnp.zeros((2, 1, 2), jnp.int32))
    with pytest.raises(ValueError, match=re.escape("the plan is batched (`plan.nnz` has shape (2,)); call it under")):
        plan(jnp.ones((2, 1)))


def test_more_entries_than_int32_counts():
    rows = jax.ShapeDtypeStruct((2**30, 1), np.int32)
    with pytest.raises(
        ValueError,
        match=re.escape("`indices[0]`, `indices[1]` must have at most 2147483647 rows together, got 2147483648"),
    ):
        jax.eval_shape(lambda a, b: jsg.plan_sparse_add(a, b, shape=(2**31 - 1,)), rows, rows)


@pytest.mark.parametrize("name", ["a_shape", "b_shape", "nse"])
def test_static_arguments_say_that_they_must_be(name):
    with pytest.raises(TypeError, match=f"`{name}` must be known while tracing, got a traced array"):
        jax.jit(lambda value: jsg.sparse_add(**(A | {name: value})))(jnp.array(SHAPE))
