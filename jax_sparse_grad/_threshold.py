"""The threshold of TensorFlow's `SparseAdd`: which entries of a sum it drops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad import _cpu, _values
from jax_sparse_grad._keys import NONE
from jax_sparse_grad._platforms import Methods
from jax_sparse_grad._types import Arrays, Threshold
from jax_sparse_grad._union import Union


class _Static(NamedTuple):
    shape: tuple[int, ...]
    nse: int


def drop_below(
    union: Union, values: Arrays, thresh: Threshold, *, shape: tuple[int, ...], nse: int, dtype: np.dtype
) -> Union:
    """The union of two operands, in `nse` rows, without the entries that both hold and whose sum is below `thresh`.

    The given union stores all entries. Which of them are dropped has no derivative.
    """
    values = jax.lax.stop_gradient(values)
    total = _values.place(union.indices.shape[0], union.nnz, union.slots, values, dtype=dtype)
    indices, nnz, *slots = _drop(_Static(shape, nse), union.indices, union.nnz, *union.slots, total, thresh)
    return Union(indices, tuple(slots), nnz)


def _drop_by_numpy(static: _Static, *arrays: Any) -> list[Any]:
    batch = np.broadcast_shapes(*(each.shape[: arrays[1].ndim] for each in arrays))
    whole = [np.broadcast_to(each, (*batch, *each.shape[arrays[1].ndim :])) for each in arrays]
    with np.errstate(all="ignore"):  # as XLA
        results = [_drop_from(np, _count_before, static, *(each[k] for each in whole)) for k in np.ndindex(batch)]
    return [np.stack(each).reshape((*batch, *each[0].shape)) for each in zip(*results, strict=True)]


def _drop_on_cpu(static: _Static, *arrays: jax.Array) -> list[jax.Array]:
    return _drop_from(jnp, _cpu.count_before, static, *arrays)


def _drop_by_xla(static: _Static, *arrays: jax.Array) -> list[jax.Array]:
    return _drop_from(jnp, _count_before, static, *arrays)


def _count_before(flags: Any) -> Any:
    return flags.cumsum(dtype=np.int32) - flags.astype(np.int32)


def _drop_from(
    xp: Any,
    count_before: Callable[[Any], Any],
    static: _Static,
    indices: Any,
    nnz: Any,
    a: Any,
    b: Any,
    total: Any,
    thresh: Any,
) -> list[Any]:
    size = indices.shape[0]
    shared = _holds(xp, size, a) & _holds(xp, size, b)
    below = _is_below(xp, total, thresh).all(axis=tuple(range(1, total.ndim)))
    kept = (xp.arange(size, dtype=np.int32) < nnz) & ~(shared & below)
    number = xp.where(kept, count_before(kept), NONE)
    numbers = xp.append(number, NONE)  # the last for entries without a slot
    slots = [numbers[xp.minimum(slot, np.int32(size))] for slot in (a, b)]
    rows = xp.broadcast_to(np.asarray(static.shape, indices.dtype), (static.nse, indices.shape[1]))
    return [_scatter(xp, rows, number, indices), xp.sum(kept, dtype=np.int32), *slots]


def _holds(xp: Any, size: int, slots: Any) -> Any:
    """Whether an operand has an entry in each slot."""
    return _scatter(xp, xp.zeros(size, bool), slots, xp.ones(slots.shape, bool))


def _scatter(xp: Any, array: Any, index: Any, rows: Any) -> Any:
    """The array with rows set at an index; out of bounds, nothing is set."""
    if xp is jnp:
        return array.at[index].set(rows, mode="drop", wrap_negative_indices=False)
    array, inside = np.array(array), index < len(array)
    array[index[inside]] = rows[inside]
    return array


def _is_below(xp: Any, total: Any, thresh: Any) -> Any:
    """`abs(total) < thresh`; false for NaN. Integers are compared as floats: in float32 exactly up to 2**24."""
    if jnp.issubdtype(total.dtype, jnp.integer):
        # abs() of the least integer would overflow
        total = total.astype(jax.dtypes.canonicalize_dtype(float))
    magnitude = xp.abs(total)
    return magnitude < thresh.astype(magnitude.dtype)


_drop = Methods(_drop_by_numpy, _drop_on_cpu, _drop_by_xla, _drop_by_xla)
