"""The threshold of TensorFlow's `SparseAdd`: which slots of a sum it drops."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_sparse_grad._numeric import add_values
from jax_sparse_grad._primitives import NONE
from jax_sparse_grad._tree import UnionTree
from jax_sparse_grad._types import Limit


def is_kept(union: UnionTree, values: tuple[jax.Array, ...], thresh: Limit) -> jax.Array:
    """Which slots do not hold an entry of both operands whose sum is less than `thresh` in magnitude, `[nse]` bool."""
    total = add_values(union, values, in_passing=True)
    a, b = union.placements
    shared = (a.sources != NONE) & (b.sources != NONE)
    dense_axes = tuple(range(1, total.ndim))
    return ~(shared & jnp.all(_is_below(total, thresh), axis=dense_axes))


def _is_below(total: jax.Array, thresh: Limit) -> jax.Array:
    """`abs(total) < thresh`; false for NaN."""
    if jnp.issubdtype(total.dtype, jnp.inexact):
        magnitude = jnp.abs(total)
        return magnitude < thresh.astype(magnitude.dtype)
    if jnp.iinfo(total.dtype).bits < 8:  # XLA has no abs() for these
        total = total.astype(jnp.int8 if jnp.issubdtype(total.dtype, jnp.signedinteger) else jnp.uint8)
    # abs() of the least integer overflows, but is right when read as unsigned.
    unsigned = jnp.dtype(f"uint{8 * total.dtype.itemsize}")
    magnitude = jnp.abs(total).astype(unsigned)
    # Whole numbers are less than `thresh` if they are at most `last`; a `thresh` beyond the dtype is above them all.
    largest = jnp.iinfo(unsigned).max
    if jnp.issubdtype(thresh.dtype, jnp.integer):
        reachable = thresh.dtype.type(min(largest, jnp.iinfo(thresh.dtype).max))
        last = jnp.minimum(thresh - 1, reachable).astype(unsigned)
    else:
        whole = jnp.ceil(thresh)
        beyond = whole >= 2.0 ** (8 * unsigned.itemsize)
        last = jnp.where(beyond, unsigned.type(largest), whole.astype(unsigned) - unsigned.type(1))
    return jnp.logical_and(thresh > 0, magnitude <= last)
