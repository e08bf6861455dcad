"""What `add` and `add_n` refuse as an operand, and the messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.samples import SHAPE, random_bcoo, random_bcsr


@pytest.fixture
def x(rng):
    return random_bcoo(rng)


OTHERS = {
    "shape": (lambda x: jnp.ones((6, 6)), ValueError, r"`y` must have the shape of `x`; got \(6, 6\) and \(6, 7\)"),
    "transposed": (lambda x: jnp.ones((7, 6)), ValueError, r"got \(7, 6\) and \(6, 7\); is one of them transposed\?"),
    "broadcast": (lambda x: jnp.ones(7), ValueError, r"got \(7,\) and \(6, 7\); operands are not broadcast"),
    "number": (lambda x: 1.0, TypeError, r"got float; a sparse matrix plus a number is dense: `x.todense\(\) \+ 1.0`"),
    "scalar": (lambda x: jnp.ones(()), ValueError, r"got \(\) and .* a number is dense: `x.todense\(\) \+ number`"),
    "scipy": (lambda x: scipy.sparse.csr_array(SHAPE), TypeError, r"got csr_array; .* `BCOO.from_scipy_sparse`"),
    "objects": (lambda x: np.full(SHAPE, None), TypeError, "`y` must have a numeric dtype, got object"),
    "list": (lambda x: [x], TypeError, "got list of BCOO; `add_n` adds the matrices of a list"),
    "arrays": (lambda x: (x.data, x.indices), TypeError, r"tuple of JAX arrays; .* `BCOO\(\(data, indices\), shape"),
    "an output": (
        lambda x: jsg.sparse_add(x.indices, x.data, SHAPE, x.indices, x.data, SHAPE),
        TypeError,
        r"got SparseAddOutput; .* `BCOO\(\(data, indices\), shape=...\)` make a BCOO",
    ),
    "none": (lambda x: None, TypeError, "`y` must be a BCOO, a BCSR or an array, got NoneType"),
    "sharded": (
        lambda x: jsg.sharded.partition(x, jax.make_mesh((1,), ("rows",)), "rows"),
        TypeError,
        "got RowSharded; call `jsg.sharded.add` or .*partition",
    ),
    "bool": (
        lambda x: BCOO((x.data > 0, x.indices), shape=SHAPE),
        TypeError,
        "`y.data` must have a numeric dtype, got bool",
    ),
    "layout": (
        lambda x: BCOO((jnp.ones((6, 1)), jnp.zeros((6, 1, 1), int)), shape=SHAPE),
        ValueError,
        r"`y` .*; got \(1, 1, 0\) and \(0, 2, 0\); `BCOO.update_layout\(n_batch=0, n_dense=0\)` of `y` changes",
    ),
    "scanned": (
        lambda x: jax.tree.map(lambda leaf: leaf[None], x),
        ValueError,
        r"`y` must have as many sizes as .* together; got \(1, 2, 0\) and shape \(6, 7\); arrays that `scan`",
    ),
    "gradient": (
        lambda x: jax.grad(lambda x: x.data.sum(), allow_int=True)(x),
        TypeError,
        "`y.indices` must be an array of numbers, got float0, which stands for no gradient",
    ),
}


@pytest.mark.parametrize(("other", "error", "message"), OTHERS.values(), ids=OTHERS)
def test_a_refused_operand_says_what_to_do(x, other, error, message):
    other = other(x)
    for add in (jsg.add, lambda x, other: jax.jit(lambda: jsg.add(x, other))()):
        with pytest.raises(error, match=message):
            add(x, other)


def test_refused_arguments(x):
    dense = jnp.ones(SHAPE)
    with pytest.raises(TypeError, match="one of the operands must be a BCOO or a BCSR, got only arrays"):
        jsg.add(dense, dense)
    with pytest.raises(TypeError, match=r"got only arrays; .*under `sparsify`, sparse arguments look like arrays"):
        sparse.sparsify(jsg.add)(x, x)
    with pytest.raises(ValueError, match=r"`nse` must not be given if an operand is dense: .* got 3"):
        jsg.add(x, dense, nse=3)
    for operands, kind in ((x, "BCOO"), (dense, "an array"), ({"x": x}, "dict"), (3, "int")):
        with pytest.raises(TypeError, match=f"`operands` must be a list or tuple of operands .*, got {kind}"):
            jsg.add_n(operands)
    with pytest.raises(ValueError, match="`operands` must hold at least one operand"):
        jsg.add_n([])
    with pytest.raises(ValueError, match=r"`operands\[1\]` must have the shape of `operands\[0\]`"):
        jsg.add_n([x, random_bcoo(np.random.default_rng(0), ((7, 6), 0, 0))])


def test_index_dtypes_that_are_too_narrow(x):
    wide = BCSR((x.data, x.indices[:, 1].astype(jnp.int8), jnp.zeros(201, jnp.int8)), shape=(200, 7))
    with pytest.raises(ValueError, match=r"`x.shape` must not exceed 127, the largest index of int8"):
        jsg.add(wide, wide)
    narrow = BCSR((jnp.ones(100), jnp.zeros(100, jnp.int8), jnp.array([0, 100], jnp.int8)), shape=(1, 100))
    with pytest.raises(ValueError, match="`nse` must not exceed 127, the most that the operands' `indptr`"):
        jax.jit(jsg.add)(narrow, narrow)


def test_arrays_that_do_not_fit_together(rng):
    x, y = random_bcoo(rng, ((3, *SHAPE), 1, 0)), random_bcsr(rng)
    broken = [
        (x, "data", jnp.ones((3, 5)), r"batch dimensions \(3,\) \(or 1\) and then \(7,\); got shape \(3, 5\)"),
        (x, "indices", x.indices[:2], r"batch .* and then \(7, 2\); got shape \(2, 7, 2\)"),
        (y, "data", y.data[1:], r"shape \(7,\); got shape \(6,\)"),
        (y, "indptr", y.indptr[1:], r"shape \(7,\); got shape \(6,\)"),
    ]
    for operand, name, array, message in broken:
        _, treedef = jax.tree.flatten(operand)
        names = ["data", "indices", "indptr"][: treedef.num_leaves]
        leaves = [array if each == name else getattr(operand, each) for each in names]
        with pytest.raises(ValueError, match=rf"`x.{name}` must have {message}"):
            jsg.add(jax.tree.unflatten(treedef, leaves), operand)
