"""Bad arguments: a clear error that names the argument, what is expected, what was given, and what to do."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR, CSC

import jax_sparse_grad as jsg
from helpers.meshes import devices
from helpers.samples import aligned

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
ROWS = np.zeros((2, 5), int)
NARROW = {"a_indices": A["a_indices"].astype(np.int8), "b_indices": A["b_indices"].astype(np.int8)}


def shaped(*sizes):
    return {"a_shape": sizes, "b_shape": sizes}


# Messages are given in parts, with " ... " between them.
TYPE_FAULTS = [
    ({"a_indices": [[0.0, 1.0]]}, "`a_indices` must have an integer dtype, got float64 ... `jnp.asarray("),
    ({"b_indices": [True, False]}, "`b_indices` must have an integer dtype, got bool ... `np.argwhere(mask)`"),
    ({"a_indices": []}, "`a_indices` must have an integer dtype, got an empty list; pass `np.zeros((0, ndims), int)`"),
    ({"a_indices": "abc"}, "`a_indices` must have an integer dtype, got <U3"),
    ({"a_indices": None}, "`a_indices` must be an array, got NoneType"),
    ({"a_values": {1.0, 2.0}}, "`a_values` must be an array, got set"),
    ({"a_values": [[1.0], [2.0, 3.0]]}, "`a_values` must be an array, got list (setting ... inhomogeneous shape"),
    ({"a_values": [1.0, None]}, "`a_values` must have a numeric dtype, got object"),
    ({"a_values": [1, 2**70]}, "`a_values` must have a numeric dtype, got object"),
    ({"a_values": [True, False]}, "`a_values` must have a numeric dtype, got bool"),
    ({"a_values": np.ones(2, np.longdouble)}, "`a_values` must have a dtype that JAX has, got float128"),
    ({"a_values": np.zeros(2, jax.dtypes.float0)}, "`a_values` must be an array of numbers, got float0, which"),
    ({"a_values": np.ma.array([1.0, 2.0], mask=[0, 1])}, "got MaskedArray; fill masked elements with `x.filled(0)`"),
    ({"a_values": [jnp.ones(()), 2]}, "`a_values` must be an array, got list of JAX arrays; join ... `jnp.stack`"),
    ({"a_values": np.ones(2, jnp.int4)}, "`a_values`, `b_values` must have a common dtype, got int4, float32"),
    ({"a_shape": (3.0, 4)}, "`a_shape` must be a sequence of ints, such as `(3, 4)` ... got (3.0, 4) ('float' object"),
    ({"a_shape": 3}, "`a_shape` must be a sequence of ints, such as `(3, 4)` or `x.shape`; got 3 ("),
    ({"a_shape": np.array(3)}, "`a_shape` must be a sequence ... got array(3) ("),
    ({"a_shape": {3, 4}}, "`a_shape` must be a sequence ... got {3, 4} (a set is no sequence)"),
    ({"a_shape": {3: 1, 4: 2}}, "`a_shape` must be a sequence ... (a dict is no sequence)"),
    ({"a_shape": None}, "`a_shape` must be a sequence ... got None ('NoneType' object is not iterable)"),
    ({"nse": 2.0}, "`nse` must be an int or None, got 2.0"),
    ({"nse": True}, "`nse` must be an int or None, got True"),
    ({"nse": (2,)}, "`nse` must be an int or None, got (2,)"),
    ({"assume_canonical": 1}, "`assume_canonical` must be a Python bool, got 1"),
    ({"thresh": 1j}, "`thresh` must be a real number, got dtype complex128"),
    ({"thresh": True}, "`thresh` must be a real number, got dtype bool"),
    ({"thresh": None}, "`thresh` must be a real number, got NoneType"),
    ({"thresh": "0.5"}, "`thresh` must be a real number, got dtype <U3"),
]
VALUE_FAULTS = [
    ({"a_indices": [0, 1]}, "`a_indices` must be a matrix [nnz, ndims], got shape (2,) ... `a_indices[:, None]`"),
    ({"a_indices": ROWS[None]}, "got shape (1, 2, 5); add a batch under `jax.vmap`, or with `jsg.add`"),
    (
        {"a_indices": ROWS.T, "a_values": np.ones(5), "b_indices": ROWS} | shaped(3, 4, 5, 6, 7),
        "`a_indices` must have as many columns as `a_shape` has sizes; got 2 columns and (3, 4, 5, 6, 7)",
    ),
    (
        {"a_indices": ROWS, "b_indices": ROWS},
        "`a_indices` must have as many columns as `a_shape` has sizes; got 5 columns and (3, 4); if ... (`.T`)",
    ),
    ({"b_shape": (3, 3)}, "`b_shape` must equal `a_shape`; got (3, 3) and (3, 4)"),
    (shaped(3, -4), "`a_shape` must not have negative sizes, got (3, -4)"),
    (NARROW | shaped(3, 128), "`a_shape` must not exceed 127, the largest index of int8 ... got (3, 128); use uint32"),
    (shaped(3, 2**31), "got (3, 2147483648); use uint32 indices"),
    (shaped(3, 2**40), "got (3, 1099511627776); set `jax_enable_x64`, and use int64 indices"),
    ({"a_values": [1.0]}, "`a_values` must have one row for each row of `a_indices`; got shape (1,) and 2 rows"),
    ({"b_values": 1.0}, "`b_values` must have one row for each row of `b_indices`; got shape () and 1 rows"),
    ({"b_values": [[1.0, 2.0]]}, "`b_values` must have the same dense dimensions as `a_values`; got (2,) and ()"),
    ({"a_indices": np.array([[0, 1], [2, 2**40]])}, "`a_indices` must fit int32, got values from 0 to 1099511627776;"),
    ({"a_indices": [[0, 1], [2, 2**40]]}, "`a_indices` must fit int32, got values from 0 to 1099511627776;"),
    ({"a_values": [1, np.int64(2**40)]}, "`a_values` must fit int32, got values from 1 to ... set `jax_enable_x64`"),
    ({"nse": -1}, "`nse` must not be negative, nor exceed 2147483647; got -1"),
    ({"thresh": np.array([0.5])}, "`thresh` must be a scalar, got shape (1,)"),
    ({"thresh": [0.5]}, "`thresh` must be a scalar, got shape (1,)"),
    ({"thresh": np.nan}, "`thresh` must not be NaN"),
]
DATA_FAULTS = [
    ({"a_indices": np.array([[0, 1], [2, 4]])}, "`a_indices` must lie in [0, (3, 4)), or equal (3, 4) ... is [2 4]"),
    ({"b_indices": np.array([[-1, 1]])}, "`b_indices` must lie in [0, (3, 4)) ... row 0 is [-1  1]"),
    ({"nse": 1}, "`nse` must be at least 2, the number of distinct entries of the sum; got 1"),
]
GRAD_FAULTS = [
    # What TensorFlow's kernel looks at
    ({"a_indices": [0, 1]}, ValueError, "`a_indices` must be a matrix [nnz, ndims], got shape (2,)"),
    ({"sum_indices": [0, 1]}, ValueError, "`sum_indices` must be a matrix [nnz, ndims], got shape (2,)"),
    ({"sum_indices": [[0], [1]]}, ValueError, "`sum_indices` must have as many columns (ndims) as `a_indices`"),
    ({"backprop_val_grad": [1.0]}, ValueError, "`backprop_val_grad` must have one row for each row of `sum_indices`"),
    # And what it does not
    ({"sum_indices": [[0.0, 1.0]]}, TypeError, "`sum_indices` must have an integer dtype, got float64"),
    ({"backprop_val_grad": [True, False]}, TypeError, "`backprop_val_grad` must have a numeric dtype, got bool"),
    ({"shape": (3,)}, ValueError, "`a_indices` must have as many columns as `shape` has sizes; got 2 columns and (3,)"),
    ({"a_indices": [[0, -1]]}, ValueError, "`a_indices` must not be negative; row 0 is [ 0 -1]"),
    ({"a_indices": [[0, 9]], "shape": SHAPE}, ValueError, "`a_indices` must lie in [0, (3, 4)), or equal (3, 4)"),
    ({"sum_indices": [[2, 3], [0, 1]]}, ValueError, "`sum_indices` must be sorted as `sparse_add` returns them"),
]
PLAN_FAULTS = [
    ([], "`operands` must hold at least one operand"),
    ([[0, 1]], "`operands[0]` must be a matrix [nnz, ndims], got shape (2,)"),
    ([[[0, 1]], [[0]]], "`operands[1]` must have as many columns as `shape` has sizes; got 1 columns and (3, 4)"),
    ([[[0, 1]], [[3, 0]]], "`operands[1]` must lie in [0, (3, 4)), or equal (3, 4) in padding; row 0"),
]


def raises(error, message):
    return pytest.raises(error, match=".*".join(map(re.escape, message.split(" ... "))))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [(fault, TypeError, message) for fault, message in TYPE_FAULTS]
    + [(fault, ValueError, message) for fault, message in VALUE_FAULTS],
)
def test_sparse_add_names_the_fault_while_tracing_too(fault, error, message):
    arguments = A | fault
    with raises(error, message):
        jsg.sparse_add(**arguments)
    with raises(error, message):
        jax.jit(lambda: jsg.sparse_add(**arguments))()


@pytest.mark.parametrize(("fault", "message"), DATA_FAULTS)
def test_sparse_add_names_faults_of_concrete_data(fault, message):
    with raises(ValueError, message):
        jsg.sparse_add(**(A | fault))
    with raises(ValueError, message):  # indices closed over are concrete
        jax.jit(lambda values: jsg.sparse_add(**(A | fault | {"a_values": values})))(A["a_values"])


@pytest.mark.parametrize(("fault", "error", "message"), GRAD_FAULTS)
def test_sparse_add_grad_names_the_fault(fault, error, message):
    with raises(error, message):
        jsg.sparse_add_grad(**(G | fault))


def test_index_dtypes_without_a_common_integer(x64):
    with raises(TypeError, "`a_indices`, `b_indices` must have a common integer dtype, got int64, uint64; cast one of"):
        jsg.sparse_add(**(A | {"b_indices": np.array([[0, 1]], np.uint64)}))


@pytest.mark.parametrize(("indices", "message"), PLAN_FAULTS)
def test_plan_sparse_add_names_the_fault(indices, message):
    with raises(ValueError, message):
        jsg.plan_sparse_add(*indices, shape=SHAPE)


def test_a_plan_names_the_fault_of_its_values():
    plan = jsg.plan_sparse_add([[0, 1]], [[0, 1], [2, 2]], shape=SHAPE)
    for values, error, message in (
        ([[1.0]], ValueError, "`values` must be given for each of the 2 operands of the plan, got 1"),
        ([[1.0], [1.0]], ValueError, "`values[1]` must have one row for each row of `operands[1]`; got shape (1,)"),
        ([[1.0], [[1.0], [2.0]]], ValueError, "`values[1]` must have the same dense dimensions as `values[0]`"),
        ([[1.0], ["x", "y"]], TypeError, "`values[1]` must have a numeric dtype, got <U1"),
    ):
        with raises(error, message):
            plan(*values)


def test_a_batched_plan_says_how_to_call_it():
    make = jax.vmap(lambda rows: jsg.plan_sparse_add(rows, shape=SHAPE))
    with raises(ValueError, "the plan is batched (`plan.nnz` has shape (2,)); call it under"):
        jax.eval_shape(lambda rows: make(rows)(jnp.ones((2, 1))), jax.ShapeDtypeStruct((2, 1, 2), np.int32))


def test_more_entries_than_int32_counts():
    rows = jax.ShapeDtypeStruct((2**30, 1), np.int32)
    with raises(ValueError, "`operands[0]`, `operands[1]` must have at most 2147483647 rows together, got 2147483648"):
        jax.eval_shape(lambda a, b: jsg.plan_sparse_add(a, b, shape=(2**31 - 1,)), rows, rows)


@pytest.mark.parametrize("name", ["a_shape", "b_shape", "nse", "assume_canonical"])
def test_static_arguments_say_that_they_must_be(name):
    with raises(TypeError, f"`{name}` must be known while tracing, got a traced array"):
        jax.jit(lambda value: jsg.sparse_add(**(A | {name: value})))(jnp.array(SHAPE))


def test_sizes_that_are_symbolic_say_that_they_must_be_static():
    (size,) = jax.export.symbolic_shape("n")
    plan = jsg.plan_sparse_add([[0, 1], [2, 2]], shape=SHAPE)
    values, rows = jax.ShapeDtypeStruct((size,), np.float32), jax.ShapeDtypeStruct((size, 2), np.int32)
    for function, argument, error, message in (
        (
            lambda i: jsg.plan_sparse_add(i, shape=SHAPE).nnz,
            rows,
            TypeError,
            "must have a static shape, got (n, 2); exp",
        ),
        (
            plan,
            values,
            ValueError,
            "`values[0]` must have one row for each row of `operands[0]`; got shape (n,) and 2 rows",
        ),
        (
            lambda v: jsg.sparse_add(**(A | {"a_shape": v.shape})),
            rows,
            TypeError,
            "must be a sequence of ints ... (n, 2)",
        ),
        (lambda v: jsg.sparse_add(**A, nse=v.shape[0]), values, TypeError, "`nse` must be an int or None, got n"),
    ):
        with raises(error, message):
            jax.export.export(jax.jit(function))(argument)
    exported = jax.export.export(jax.jit(plan))(jax.ShapeDtypeStruct((2, size), np.float32))
    assert str(exported.out_avals[0].shape) == "(2, n)"  # dense dimensions may be symbolic


X = BCOO((A["a_values"], A["a_indices"]), shape=SHAPE)


def stand_in(name):
    """A container of another library, which need not be installed."""

    def fail(*_):
        raise AssertionError("read element by element")

    return type(name, (), {"shape": (10**6, 4), "__getitem__": fail, "__iter__": fail, "__len__": lambda _: 10**6})()


CONTAINERS = {
    "BCOO": lambda: X,
    "BCSR": lambda: BCSR((A["a_values"], np.array([1, 3]), np.array([0, 1, 1, 2])), shape=SHAPE),
    "SparseAddPlan": lambda: jsg.plan_sparse_add([[0, 1]], shape=SHAPE),
    "RowSharded": lambda: jsg.sharded.partition(X, jax.make_mesh((1,), ("rows",)), "rows"),
    "CSC": lambda: CSC((A["a_values"], np.array([0, 2]), np.array([0, 0, 1, 1, 2])), shape=SHAPE),
    "csr_array": lambda: stand_in("csr_array"),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_container_instead_of_its_arrays_says_what_to_pass(kind):
    x = CONTAINERS[kind]()
    plan = jsg.plan_sparse_add([[0, 1]], shape=SHAPE)
    for name, call in {
        "values[0]": lambda: plan(x),
        "a_values": lambda: jsg.sparse_add(**(A | {"a_values": x})),
        "backprop_val_grad": lambda: jsg.sparse_add_grad(**(G | {"backprop_val_grad": x})),
    }.items():
        with raises(TypeError, f"`{name}` must be an array, got {kind}; pass its values, `x.data`"):
            call()
    with raises(TypeError, f"`a_indices` must be an array, got {kind}; pass its index rows [nnz, ndims], `x.indices`"):
        jsg.sparse_add(**(A | {"a_indices": x}))
    with raises(TypeError, f"`thresh` must be a real number, got {kind}"):
        jsg.sparse_add(**A, thresh=x)
    with raises(TypeError, "`nse` must be an int or None, got"):
        jsg.sparse_add(**A, nse=x)


def test_arrays_in_a_list_or_a_tuple_are_not_taken_apart():
    plan = jsg.plan_sparse_add([[0, 1]], shape=SHAPE)
    for values, kind in (([X], "list"), (jsg.sparse_add(**A), "SparseAddOutput"), ((X.data, X.indices), "tuple")):
        with raises(
            TypeError, f"`values[0]` must be an array, got {kind} of JAX arrays; join them with `jnp.stack`, or"
        ):
            plan(jax.device_put(values))
    with raises(TypeError, "`values[0]` must be an array, got list of JAX arrays"):
        jax.jit(lambda v: plan([[v]]))(1.0)


class Wrapper:
    """What `flax.nnx.Param` is to JAX."""

    def __init__(self, array):
        self.array = array

    def __jax_array__(self):
        return self.array


def test_arrays_in_a_wrapper_are_taken_everywhere():
    wrapped = {name: Wrapper(jnp.asarray(A[name])) for name in ("a_indices", "a_values", "b_indices", "b_values")}
    expected = jsg.sparse_add(**A, thresh=4.5)
    for call in (
        lambda: jsg.sparse_add(**(A | wrapped), thresh=Wrapper(np.float32(4.5))),
        lambda: jsg.sparse_add(**(A | {"b_values": Wrapper(Wrapper(A["b_values"]))}), thresh=4.5),
    ):
        chex.assert_trees_all_equal(call(), expected)
    with pytest.raises(TypeError, match="`a_values` must be an array, got BCOO"):
        jsg.sparse_add(**(A | {"a_values": Wrapper(X)}))


def test_a_wrapper_may_hold_a_tracer():
    plan = jsg.plan_sparse_add(A["a_indices"], A["b_indices"], shape=SHAPE)
    grad = jax.grad(lambda v: plan(Wrapper(v), A["b_values"])[0])(A["a_values"])
    np.testing.assert_array_equal(grad, [1, 0])


def test_what_the_caller_writes_to_afterwards_changes_nothing():
    indices, values = (aligned(np.arange(4096, dtype=dtype)) for dtype in (np.int32, np.float32))
    x = BCOO((np.ones(4096, np.float32), np.arange(4096)[:, None]), shape=(4096,))
    sharded = jsg.sharded.partition(x, jax.make_mesh((1,), ("rows",)), "rows")
    with_data = sharded.with_data(values)
    plan = jsg.plan_sparse_add(indices[:, None], shape=(4096,), assume_canonical=True)
    total = jsg.sparse_add(indices[:, None], values, (4096,), np.zeros((0, 1), np.int32), np.zeros(0), (4096,))
    planned = plan(values)
    indices[:], values[:] = 0, -1
    np.testing.assert_array_equal(with_data.data, np.arange(4096))
    np.testing.assert_array_equal(plan.indices[:, 0], np.arange(4096))
    np.testing.assert_array_equal(total.sum_indices[:, 0], np.arange(4096))
    for sums in (total.sum_values, planned):
        np.testing.assert_array_equal(sums, np.arange(4096))


def test_64_bit_arrays_of_jax_lose_no_integer_without_x64():
    with jax.enable_x64(True):
        wide, fitting = jnp.array([[0, 1], [2**32 + 1, 2]]), jnp.asarray(A["a_indices"])
        floats, sizes = jnp.array([1.0, 2.0]), jnp.array(SHAPE)
    message = "`a_indices` must fit int32, got values from 0 to 4294967297; set `jax_enable_x64`"
    with pytest.raises(ValueError, match=message):
        jsg.sparse_add(**(A | {"a_indices": wide}))
    with pytest.raises(ValueError, match=re.escape("`values[0]` must fit int32, got values from 2 to 4294967297")):
        jsg.plan_sparse_add([[0, 1]], shape=SHAPE)(wide[1:])
    with pytest.raises(TypeError, match="`a_indices` must not be traced as int64 while `jax_enable_x64` is off"):
        jax.jit(lambda rows: jsg.sparse_add(**(A | {"a_indices": rows})))(fitting)
    total = jsg.sparse_add(**(A | {"a_indices": fitting, "a_values": floats}))
    chex.assert_trees_all_equal(total, jsg.sparse_add(**A))
    assert total.sum_indices.dtype == np.int32
    assert jsg.sparse_add(**(A | {"a_shape": sizes})).sum_shape == SHAPE


@pytest.mark.parametrize("thresh", [7, 2**40, 0, -(2**40)])
def test_a_threshold_may_be_any_kind_of_number(thresh):
    given = [thresh, float(thresh), np.asarray(thresh), np.float64(thresh), Wrapper(np.asarray(thresh))]
    with jax.enable_x64(True):
        given.append(jnp.asarray(np.asarray(thresh)))
    sums, rows = np.array([6, 7, 8, 2**32 - 1], np.uint32), np.arange(4)[:, None]
    for each in given:
        total = jsg.sparse_add(rows, sums, (4,), rows, np.zeros(4, np.uint32), (4,), each)
        assert total.sum_values.tolist() == [value for value in sums.tolist() if value >= thresh]


@pytest.mark.parametrize("thresh", [1e39, np.float64(1e300), np.inf])
def test_a_threshold_beyond_the_dtype_acts_as_infinity(thresh):
    """Again and again: where warnings are errors, JAX's own second call would end the process."""
    largest = np.array([np.finfo(np.float32).max, np.nan], np.float32)
    for _ in range(3):
        total = jsg.sparse_add([[0], [1]], largest, (2,), [[0], [1]], [0.0, 0.0], (2,), thresh)
        np.testing.assert_array_equal(total.sum_values, [np.nan])
    total = jsg.sparse_add([[0], [1]], largest, (2,), [[0], [1]], [0.0, 0.0], (2,), -thresh)
    np.testing.assert_array_equal(total.sum_values, largest)


def test_operands_on_different_devices_are_named():
    first, second = devices(2)
    plan = jsg.plan_sparse_add([[0, 1]], [[0, 1]], shape=SHAPE)
    value = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=re.escape("`values[1]` must be on the devices of `values[0]`; got ")):
        plan(jax.device_put(value, first), jax.device_put(value, second))
    indices = [jax.device_put(np.array([[0, 1]]), device) for device in (first, second)]
    with pytest.raises(ValueError, match=re.escape("`operands[1]` must be on the devices of `operands[0]`; got ")):
        jsg.plan_sparse_add(*indices, shape=SHAPE)
    moved = plan(jnp.asarray(value), jax.device_put(value, second))  # what was put nowhere goes where the other is
    np.testing.assert_array_equal(moved, [2])


def test_lists_numbers_and_buffers_are_arrays():
    expected = jsg.sparse_add(**A)
    for values in (
        [1.0, 2],
        (np.float32(1), 2.0),
        [np.float64(1), np.float64(2)],
        range(1, 3),
        memoryview(A["a_values"]),
        A["a_values"].astype(">f4"),
        np.asfortranarray(A["a_values"]),
    ):
        chex.assert_trees_all_equal(jsg.sparse_add(**(A | {"a_values": values})), expected)
