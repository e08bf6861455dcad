"""The symbolic phase: the union of the patterns of some operands, as the slot of each of their entries.

    host   `_host.py`   concrete indices, in numpy
    CPU    `_cpu.py`    loops: a merge of two operands, a radix sort
    GPU    `_gpu.py`    ranks of two operands that are in order, else one sort
    TPU    `_tpu.py`    one sort of everything

All four give the same indices and slots, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad import _cpu, _gpu, _host, _keys, _tpu
from jax_sparse_grad._keys import NONE
from jax_sparse_grad._platforms import Methods

Arrays = tuple[jax.Array, ...]


class Union(NamedTuple):
    """The distinct entries of some operands, and where the entries of each went.

    indices: `[nse, ndims]`, lexicographically sorted and unique, padding last.
    slots: for operand k `[nnz_k]` int32, the row of `indices` that each of its entries has become; `NONE`, which is out
      of bounds for any array, for padding and for what was dropped.
    nnz: scalar int32, the true number of distinct entries, which may exceed `nse`.
    """

    indices: jax.Array
    slots: Arrays
    nnz: jax.Array


class _Static(NamedTuple):
    """What is static in a union. `canonical`: the caller asserts that all operands are."""

    shape: tuple[int, ...]
    nse: int
    canonical: bool


def find_union(shape: tuple[int, ...], nse: int, operands: Sequence[Any], *, canonical: bool = False) -> Union:
    """The union of index rows `[n_k, ndims]` of one dtype, in `nse` rows. `canonical`: all are, the caller asserts."""
    indices, nnz, *slots = _find(_Static(shape, nse, canonical), *operands)
    return Union(indices, tuple(slots), nnz)


def _find_on_host(static: _Static, *operands: Any) -> Sequence[Any]:
    indices, slots, nnz = _host.find_union(operands, static.shape, static.nse)
    return [indices, nnz, *slots]


def _find_on_cpu(static: _Static, *operands: jax.Array) -> Sequence[jax.Array]:
    lists = _join(operands, _cpu.MOST_MERGED)
    keys = [_keys.ravel(rows, static.shape) for rows in lists]
    # What was joined is not in order, even if each operand is.
    slots, nnz = _cpu.find_slots(keys, canonical=static.canonical and len(lists) == len(operands))
    dtype = operands[0].dtype
    indices = jnp.broadcast_to(np.asarray(static.shape, dtype), (static.nse, len(static.shape)))
    for rows, slot in zip(lists, slots, strict=True):
        indices = indices.at[slot].set(rows.astype(dtype), mode="drop", wrap_negative_indices=False)
    return [indices, nnz, *_split(operands, slots)]


def _find_on_gpu(static: _Static, *operands: jax.Array) -> Sequence[jax.Array]:
    keys = [_keys.ravel(rows, static.shape) for rows in _join(operands)]
    heads, slots, nnz = _gpu.find_union(keys, static.nse, canonical=static.canonical)
    return [_keys.unravel(heads, static.shape, operands[0].dtype), nnz, *_split(operands, slots)]


def _find_on_tpu(static: _Static, *operands: jax.Array) -> Sequence[jax.Array]:
    keys = [_keys.ravel(rows, static.shape) for rows in _join(operands)]
    heads, slots, nnz = _tpu.find_union(keys, static.nse)
    return [_keys.unravel(heads, static.shape, operands[0].dtype), nnz, *_split(operands, slots)]


def _join(operands: Sequence[jax.Array], most: int = 2) -> Sequence[jax.Array]:
    """The operands, or all in one list if they are more than can be merged: that is sorted as a whole."""
    if len(operands) <= most:
        return operands
    if jnp.iinfo(operands[0].dtype).bits < 8:  # XLA:CPU aborts when it concatenates these
        operands = [rows.astype(np.int8) for rows in operands]
    return [jnp.concatenate(operands)]


def _split(operands: Sequence[jax.Array], slots: Arrays) -> Sequence[jax.Array]:
    """The slots of each operand, also if these were joined."""
    if len(slots) == len(operands):
        return slots
    return jnp.split(slots[0], np.cumsum([rows.shape[0] for rows in operands])[:-1])


_find = Methods(_find_on_host, _find_on_cpu, _find_on_gpu, _find_on_tpu)


def lookup(shape: tuple[int, ...] | None, total: Any, operands: Sequence[Any]) -> Arrays:
    """For each operand the slot of each of its index rows among the sorted rows of a sum, `NONE` where it has none.

    Without a shape, padding cannot be recognised, and keys have a word or two for each column.
    """
    return tuple(_lookup(shape, total, *operands))


def _lookup_on_host(shape: tuple[int, ...] | None, total: Any, *operands: Any) -> Sequence[Any]:
    batch = np.broadcast_shapes(*(rows.shape[:-2] for rows in (total, *operands)))
    lists = [np.broadcast_to(rows, (*batch, *rows.shape[-2:])) for rows in (total, *operands)]
    slots = [np.empty(rows.shape[:-1], np.int32) for rows in lists[1:]]
    for k in np.ndindex(batch):
        for whole, own in zip(slots, _host.lookup(lists[0][k], [rows[k] for rows in lists[1:]], shape), strict=True):
            whole[k] = own
    return slots


def _lookup_on_cpu(shape: tuple[int, ...] | None, *rows: jax.Array) -> Sequence[jax.Array]:
    return list(_cpu.lookup_rows(rows[0], rows[1:])) if shape is None else _lookup_by(_cpu.lookup)(shape, *rows)


def _lookup_by(find: Any) -> Any:
    def lookup(shape: tuple[int, ...] | None, *rows: jax.Array) -> Sequence[jax.Array]:
        keys = [_keys.columns_as_words(each) if shape is None else _keys.ravel(each, shape) for each in rows]
        places = find(keys[0], keys[1:])
        if shape is None:
            return list(places)
        return [jnp.where(_keys.is_padding(each), NONE, place) for each, place in zip(keys[1:], places, strict=True)]

    return lookup


_lookup = Methods(_lookup_on_host, _lookup_on_cpu, _lookup_by(_gpu.lookup), _lookup_by(_tpu.lookup))
