"""Bad arguments: a clear error that names the argument, what is expected, what was given, and what to do."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

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
P = {"shape": SHAPE}

ADD_FAULTS = [
    (
        {"a_indices": [[0.0, 1.0], [2.0, 3.0]]},
        TypeError,
        "`a_indices` must have an integer dtype, got float32; if these are indices, and not values, cast them with "
        "`a_indices.astype(int)`",
    ),
    (
        {"b_indices": [True, False]},
        TypeError,
        "`b_indices` must have an integer dtype, got bool; convert a mask with `np.argwhere(mask)`",
    ),
    (
        {"a_indices": [0, 1]},
        ValueError,
        "`a_indices` must be a matrix [nnz, ndims], got shape (2,); for a vector, pass `a_indices[:, None]`",
    ),
    ({"a_indices": []}, TypeError, "got an empty list; pass `np.zeros((0, ndims), np.int32)`"),
    (
        {"a_indices": np.zeros((1, 2, 2), int)},
        ValueError,
        "got shape (1, 2, 2); add a batch under `jax.vmap`, or with `jsg.add`",
    ),
    (
        {"a_indices": np.zeros((2, 5), int), "a_values": np.ones(5), "b_indices": np.zeros((2, 4), int)},
        ValueError,
        "got 4 and 5; if one of them is [ndims, nnz], pass its transpose (`.T`)",
    ),
    (
        {"a_indices": np.zeros((5, 2), int), "a_values": np.ones(5), "b_indices": np.zeros((2, 5), int)},
        ValueError,
        "`b_indices` must have as many columns (ndims) as `a_indices`; got 5 and 2; if one of them is [ndims, nnz], "
        "pass its transpose (`.T`)",
    ),
    (
        {"a_indices": np.zeros((2, 5), int), "b_indices": np.zeros((2, 5), int)},
        ValueError,
        "got (3, 4) and 5 columns; if these are [ndims, nnz], pass their transposes (`.T`)",
    ),
    ({"b_indices": [[0]]}, ValueError, "`b_indices` must have as many columns (ndims) as `a_indices`; got 1 and 2"),
    ({"a_indices": "abc"}, TypeError, "`a_indices` must be an array, got str"),
    ({"a_indices": None}, TypeError, "`a_indices` must be an array, got None"),
    ({"a_values": {1.0, 2.0}}, TypeError, "`a_values` must be an array, got set"),
    (
        {"a_values": [[1.0], [2.0, 3.0]]},
        TypeError,
        "`a_values` must be an array or a nested list of numbers, got a list of unequal lengths",
    ),
    (
        {"a_values": ([1.0, 2.0], [[0, 0], [1, 1]])},
        TypeError,
        "got a tuple of unequal lengths; a sparse operand is `BCOO((data, indices), shape=...)`",
    ),
    (
        {"a_values": [1.0, None]},
        TypeError,
        "`a_values` must be an array or a nested list of numbers, got a list that holds NoneType",
    ),
    ({"a_values": b"ab"}, TypeError, "`a_values` must be an array, got bytes"),
    ({"a_values": np.array([1, "a"], object)}, TypeError, "`a_values` must have a numeric dtype, got object"),
    ({"a_indices": np.array([["a"]])}, TypeError, "`a_indices` must have an integer dtype, got <U1"),
    ({"a_values": np.ones(2, np.longdouble)}, TypeError, "`a_values` must have a dtype that JAX has, got float128"),
    ({"a_values": np.zeros(2, jax.dtypes.float0)}, TypeError, "got float0, which stands for no gradient"),
    (
        {"a_values": np.ma.array([1.0, 2.0], mask=[0, 1])},
        TypeError,
        "`a_values` must be an array, got MaskedArray; fill masked elements with `x.filled(0)`",
    ),
    ({"a_shape": (3,), "b_shape": (3,)}, ValueError, "`a_shape` must have as many sizes as `a_indices` has columns"),
    ({"b_shape": (3, 3)}, ValueError, "`b_shape` must equal `a_shape`; got (3, 3) and (3, 4)"),
    ({"a_shape": (3, -4), "b_shape": (3, -4)}, ValueError, "`a_shape` must not have negative sizes, got (3, -4)"),
    (
        {"a_shape": (3.0, np.float32(4))},
        TypeError,
        "`a_shape` must be a sequence of ints, such as `(3, 4)` or `x.shape`; got (3.0, np.float32(4.0)) "
        "('float' object cannot be interpreted as an integer)",
    ),
    ({"a_shape": 3}, TypeError, "`a_shape` must be a sequence of ints, such as `(3, 4)` or `x.shape`; got 3 ("),
    ({"a_shape": np.array(3)}, TypeError, "`x.shape`; got array(3) ("),
    ({"a_shape": None}, TypeError, "`x.shape`; got None ('NoneType' object is not iterable)"),
    ({"a_shape": {3, 4}}, TypeError, "`x.shape`; got {3, 4} (set is not a sequence of sizes)"),
    ({"a_values": [1.0]}, ValueError, "`a_values` must have one row for each row of `a_indices`; got 1 and 2"),
    (
        {"b_values": 1.0},
        ValueError,
        "`b_values` must have shape [nnz, *dense], got a scalar; repeat it for each entry, `jnp.full(1, ...)`",
    ),
    (
        {"a_values": np.ones(2, jnp.int4)},
        TypeError,
        "`a_values`, `b_values` must have a common dtype, got int4, float32; cast one of them",
    ),
    ({"a_values": [True, False]}, TypeError, "`a_values` must have a numeric dtype, got bool"),
    (
        {"b_values": [[1.0, 2.0]]},
        ValueError,
        "`b_values` must have the same dense dimensions as `a_values`; got (2,) and ()",
    ),
    ({"nse": -1}, ValueError, "`nse` must not be negative, nor exceed 2147483647; got -1"),
    (
        {"nse": 2.0},
        TypeError,
        "`nse` must be an int or None, got 2.0 ('float' object cannot be interpreted as an integer)",
    ),
    ({"nse": (2,)}, TypeError, "`nse` must be an int or None, got (2,)"),
    ({"nse": True}, TypeError, "`nse` must be an int or None, got True"),
    ({"assume_canonical": 1}, TypeError, "`assume_canonical` must be a Python bool, got 1"),
    ({"thresh": np.array([0.5])}, ValueError, "`thresh` must be a scalar, got shape (1,)"),
    ({"thresh": [0.5]}, TypeError, "`thresh` must be a real number, got [0.5]"),
    ({"thresh": 1j}, TypeError, "`thresh` must be a real number, got dtype complex128"),
    ({"thresh": True}, TypeError, "`thresh` must be a real number, got dtype bool"),
    ({"thresh": np.nan}, ValueError, "`thresh` must not be NaN"),
    ({"thresh": None}, TypeError, "`thresh` must be a real number, got None"),
    ({"thresh": "0.5"}, TypeError, "`thresh` must be a real number, got '0.5'"),
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
        "got (3, 2147483648); cast the indices to uint32",
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
    (
        {"a_indices": [[0, 1], [2, 2**40]]},
        ValueError,
        "`a_indices` must fit int32, got values from 0 to 1099511627776; set `jax_enable_x64` to use 64-bit integers",
    ),
    ({"a_values": [1, 2**70]}, TypeError, "`a_values` must have a numeric dtype, got object"),
    ({"a_values": [1, np.int64(2**40)]}, ValueError, "`a_values` must fit int32, got values from 1 to 1099511627776"),
    ({"a_values": [jnp.ones(()), 2]}, TypeError, "got a list of JAX arrays; pass `jnp.stack(a_values)`"),
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
        ([], P, ValueError, "`operands` must hold at least one operand"),
        ([[0, 1]], P, ValueError, "`operands[0]` must be a matrix [nnz, ndims], got shape (2,)"),
        (
            [[[0, 1]], [[0]]],
            P,
            ValueError,
            "`operands[1]` must have as many columns (ndims) as `operands[0]`; got 1 and 2",
        ),
        ([[[0, 1]]], {"shape": (3,)}, ValueError, "`shape` must have as many sizes as `operands[0]` has columns"),
        (
            [[[0, 1]], [[3, 0]]],
            P,
            ValueError,
            "`operands[1]` must lie in [0, (3, 4)), or equal (3, 4) in padding; row 0",
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
        ([[1.0], [1.0]], ValueError, "`values[1]` must have one row for each row of `operands[1]`; got 1 and 2"),
        ([[1.0], [[1.0], [2.0]]], ValueError, "`values[1]` must have the same dense dimensions as `values[0]`"),
        (
            [[1.0], ["x", "y"]],
            TypeError,
            "`values[1]` must be an array or a nested list of numbers, got a list that holds str",
        ),
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
        match=re.escape("`operands[0]`, `operands[1]` must have at most 2147483647 rows together, got 2147483648"),
    ):
        jax.eval_shape(lambda a, b: jsg.plan_sparse_add(a, b, shape=(2**31 - 1,)), rows, rows)


@pytest.mark.parametrize("name", ["a_shape", "b_shape", "nse"])
def test_static_arguments_say_that_they_must_be(name):
    with pytest.raises(TypeError, match=f"`{name}` must be known while tracing, got a traced array"):
        jax.jit(lambda value: jsg.sparse_add(**(A | {name: value})))(jnp.array(SHAPE))
    with pytest.raises(TypeError, match="`assume_canonical` must be known while tracing"):
        jax.jit(lambda flag: jsg.sparse_add(**(A | {"assume_canonical": flag})))(True)


def test_sizes_that_are_symbolic_say_that_they_must_be_static():
    (size,) = jax.export.symbolic_shape("n")
    plan = jsg.plan_sparse_add([[0, 1], [2, 2]], shape=SHAPE)

    def float_of(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    rows = jax.ShapeDtypeStruct((size, 2), np.int32)
    for call, arguments, message in (
        (
            lambda i: jsg.plan_sparse_add(i, shape=SHAPE).nnz,
            [rows],
            "`operands[0]` must have a static shape, got (n, 2)",
        ),
        (plan, [float_of(size)], "`values[0]` must have a static number of rows, got shape (n,)"),
        (lambda v: jsg.sparse_add(**(A | {"a_shape": v.shape})), [float_of(size, 4)], "`a_shape` must be a sequence"),
        (lambda v: jsg.sparse_add(**A, nse=v.shape[0]), [float_of(size)], "`nse` must be an int or None, got n"),
    ):
        with pytest.raises(TypeError, match=re.escape(message) + ".*sparse sums need static sizes: export"):
            jax.export.export(jax.jit(call))(*arguments)
    exported = jax.export.export(jax.jit(plan))(float_of(2, size))  # dense dimensions may be symbolic
    assert str(exported.out_avals[0].shape) == "(2, n)"


MATRIX = np.array([[0, 1], [2, 0]], np.float32)
CONTAINERS = {
    "BCOO": (lambda: sparse.BCOO.fromdense(MATRIX), "`x.data`, or add it with `jsg.add`", "`x.indices`"),
    "BCSR": (lambda: sparse.BCSR.fromdense(MATRIX), "`x.data`, or add it with `jsg.add`", "`x.to_bcoo().indices`"),
    "SparseAddOutput": (lambda: jsg.sparse_add(**A), "`x.sum_values`", "`x.sum_indices`"),
    "SparseAddPlan": (
        lambda: jsg.plan_sparse_add([[0, 1]], shape=SHAPE),
        "the result of `plan(*values)`",
        "`plan.indices`",
    ),
    "RowSharded": (
        lambda: jsg.sharded.partition(sparse.BCOO.fromdense(MATRIX), jax.make_mesh((1,), ("rows",)), "rows"),
        "`x.data`, or add it with `jsg.sharded.add`",
        "`x.indices`",
    ),
    # Of JAX, but seldom seen; and of other libraries, which need not be installed.
    "CSC": (lambda: sparse.CSC.fromdense(MATRIX), "an array [nnz, *dense]", "an array [nnz, ndims]"),
    "csr_array": (lambda: stand_in("csr_array"), "an array [nnz, *dense]", "an array [nnz, ndims]"),
}


def stand_in(name):
    def fail(*_):
        raise AssertionError("read element by element")

    return type(name, (), {"shape": (10**6, 4), "__getitem__": fail, "__iter__": fail, "__len__": lambda _: 10**6})()


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_container_instead_of_its_values_says_what_to_pass(kind):
    make, values, indices = CONTAINERS[kind]
    x = make()
    plan = jsg.plan_sparse_add([[0, 1]], shape=SHAPE)
    for call in (
        lambda: plan(x),
        lambda: jsg.sparse_add(**(A | {"a_values": x})),
        lambda: jsg.sparse_add_grad(**(G | {"backprop_val_grad": x})),
    ):
        with pytest.raises(TypeError, match=f"` must be an array, got {kind}; pass its values.*{re.escape(values)}"):
            call()
    calls = [
        lambda: jsg.sparse_add(**(A | {"a_indices": x})),
        lambda: jsg.sparse_add_grad(**(G | {"sum_indices": x})),
    ]
    if kind not in ("BCOO", "BCSR"):  # of which there are plans
        calls.append(lambda: jsg.plan_sparse_add(x, shape=SHAPE))
    for call in calls:
        with pytest.raises(TypeError, match=f"` must be an array, got {kind}; pass its indices.*{re.escape(indices)}"):
            call()
    with pytest.raises(TypeError, match=re.escape("`values[0]` must be an array or a nested list of numbers, got a")):
        plan([x])
    with pytest.raises(TypeError, match="`thresh` must be a real number, got"):
        jsg.sparse_add(**A, thresh=x)
    with pytest.raises(TypeError, match="`nse` must be an int or None, got"):
        jsg.sparse_add(**A, nse=x)


def test_a_container_instead_of_its_shape_says_what_to_pass():
    for x in (sparse.BCOO.fromdense(MATRIX), jsg.sparse_add(**A)):
        with pytest.raises(
            TypeError, match=re.escape("`a_shape` must be a sequence of ints, such as `(3, 4)` or `x.sh")
        ):
            jsg.sparse_add(**(A | {"a_shape": x}))


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
        jsg.sparse_add(**(A | {"a_values": Wrapper(sparse.BCOO.fromdense(MATRIX))}))


def test_a_wrapper_may_hold_a_tracer():
    plan = jsg.plan_sparse_add(A["a_indices"], A["b_indices"], shape=SHAPE)
    total = jax.jit(lambda v: plan(Wrapper(v), A["b_values"]))(A["a_values"])
    np.testing.assert_array_equal(total, [4, 2])
    grad = jax.grad(lambda v: plan(Wrapper(v), A["b_values"])[0])(A["a_values"])
    np.testing.assert_array_equal(grad, [1, 0])


def test_what_the_caller_writes_to_afterwards_changes_nothing():
    indices, values = (aligned(np.arange(4096, dtype=dtype)) for dtype in (np.int32, np.float32))
    x = sparse.BCOO((np.ones(4096, np.float32), np.arange(4096)[:, None]), shape=(4096,))
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


@pytest.mark.parametrize("thresh", [2**24 + 1, 2**32 + 3, 2**40, 2**63, -1, -(2**40), 0])
def test_a_threshold_may_be_any_kind_of_number(thresh):
    """The sums are next to 2**24 and to the largest of the dtype. There float32 has gaps, but integers stay exact."""
    given = [thresh, np.asarray(thresh), np.asarray(thresh)[()], Wrapper(np.asarray(thresh))]
    with jax.enable_x64(True):
        given.append(jnp.asarray(np.asarray(thresh)))
    if thresh != 2**24 + 1:
        given += [float(thresh), np.float64(thresh)]
    sums = np.array([2**24, 2**24 + 1, 2**32 - 1, 3], np.uint32)
    rows = np.arange(4)[:, None]
    for each in given:
        total = jsg.sparse_add(rows, sums, (4,), rows, np.zeros(4, np.uint32), (4,), each)
        kept = [value for value in sums.tolist() if value >= thresh]
        assert np.asarray(total.sum_values).tolist() == kept, (each, type(each))


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
    assert jsg.sparse_add(**(A | {"a_shape": (size for size in SHAPE)})).sum_shape == SHAPE
