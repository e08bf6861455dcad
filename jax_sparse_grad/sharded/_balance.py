"""Matrices on the host: their entries, and where to cut their rows so that no device has more than necessary.

Everything is numpy, and no array is as long as there are rows. What is sharded already is sampled where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR

from jax_sparse_grad import _arguments, _containers, _data_checks, _keys
from jax_sparse_grad._batching import take
from jax_sparse_grad._concrete import is_concrete, read
from jax_sparse_grad._types import HostMatrix
from jax_sparse_grad.sharded._mesh import Layout, on_shards, read_all
from jax_sparse_grad.sharded._operand import RowSharded

SAMPLE = 4096  # rows taken from each shard of a `RowSharded` to find cuts, which are exact to 1 / 4096 of a shard


def balanced_row_starts(
    operands: HostMatrix | RowSharded | Sequence[HostMatrix | RowSharded],
    shards: SupportsIndex | None = None,
) -> np.ndarray[Any, Any]:
    """Choose where to cut the rows of operands to be added, so that the fullest shard has as few entries as possible.

    Args:
      operands: a BCOO, a BCSR, a SciPy matrix or a `RowSharded`, or a list or tuple of these with equal numbers of
        rows. All their entries count together. If no process has all of them, a sample will do: every hundredth entry.
      shards: the number of shards. By default that of a `RowSharded` among the operands.

    Returns:
      `[shards + 1]` numpy int64 (uint64 if only that can hold the number of rows), ascending from 0 to the number of
      rows, for `partition`, `from_shards` and `repartition`. No other cut between rows has a smaller largest number of
      entries. (For `RowSharded` operands, within 1 / 4096 of a shard: these are sampled where they lie, and all
      processes get the same result.) Time and memory grow with the number of entries, not of rows.

    Raises:
      TypeError: an operand is neither sparse nor a `RowSharded`, or is traced; `shards` is not an int.
      ValueError: the numbers of rows differ; an index is negative; there is no operand; `shards` is not positive.

    Example:
      >>> import numpy as np, jax_sparse_grad as jsg
      >>> from scipy.sparse import coo_array
      >>> skewed = coo_array(np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]))
      >>> jsg.sharded.balanced_row_starts(skewed, 2).tolist()
      [0, 1, 4]

    This is the one-dimensional partitioning of sparse matrices ("chains on chains"), solved exactly.
    """
    listed = operands if isinstance(operands, list | tuple) else [operands]
    if not listed:
        raise ValueError("`operands` must hold at least one operand")
    count = _arguments.as_nse(shards, "shards")
    sizes: list[int] = []
    rows: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for k, operand in enumerate(listed):
        name = f"operands[{k}]" if listed is operands else "operands"
        if isinstance(operand, RowSharded):
            if not is_concrete(operand.indices):
                raise TypeError(f"`{name}` must be concrete, got a traced array; call this outside of `jit`")
            count = operand.shards if count is None else count
            sampled, nnz = (read_all(each) for each in _sample(operand.layout, None, None, operand.indices))
            # Each sampled row stands for as many entries as all others of its shard.
            sample, weight = sampled[np.repeat(nnz > 0, SAMPLE)], np.repeat(nnz[nnz > 0].astype(np.int64), SAMPLE)
            size = operand.shape[0]
        else:
            indices, _, (size, *_) = host_entries(name, operand)
            sample, weight = indices[:, 0], np.full(len(indices), SAMPLE, np.int64)
        sizes.append(size)
        if size != sizes[0]:
            raise ValueError(f"`{name}` must have as many rows as the first; got {size} and {sizes[0]}")
        rows.append(sample.astype(starts_dtype(size)))
        weights.append(weight)
    if not count:
        raise ValueError(f"`shards` must be a positive int if no operand is a `RowSharded`; got {shards}")
    return balance(np.concatenate(rows), np.concatenate(weights), sizes[0], count)


def host_entries(name: str, operand: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The index rows `[nnz, ndims]`, values `[nnz, *dense]` and shape of a BCOO, a BCSR or a SciPy matrix, in numpy.

    Padding is left out, that is, as everywhere in JAX, any row with an index beyond the shape.
    """
    if not is_concrete(operand):
        raise TypeError(f"`{name}` must be concrete, got a traced array; call this outside of `jit`")
    shape = tuple(operand.shape) if hasattr(operand, "shape") else ()
    if isinstance(operand, BCOO | BCSR):
        n_batch, n_sparse = _containers.common_layout({name: operand})
        if n_batch or not n_sparse:
            raise ValueError(f"`{name}` must have n_batch 0 and rows; got n_batch {n_batch} and n_sparse {n_sparse}")
        indices, values = read(_containers.indices_of(name, operand)), read(operand.data)
    elif hasattr(operand, "tocoo"):
        coordinates = operand.tocoo()
        indices = np.stack(coordinates.coords, axis=1).astype(_containers.index_dtype(shape))
        values = _arguments.as_host_array(f"{name}.data", coordinates.data)
    else:
        remedy = ""
        if isinstance(operand, jax.Array | np.ndarray):
            remedy = "; `BCOO.fromdense` converts an array"
        elif hasattr(operand, "todense"):
            remedy = "; `BCOO.fromdense(x.todense())` converts it"
        raise TypeError(f"`{name}` must be a BCOO, a BCSR or a SciPy matrix, got {_arguments.kind_of(operand)}{remedy}")
    _arguments.as_numeric(f"{name}.data", values[:0])
    sizes = shape[: indices.shape[1]]
    _arguments.check_sizes_fit(f"{name}.shape", sizes, indices.dtype)
    _data_checks.check_rows(f"{name}.indices", indices, None)
    inside = _keys.is_entry(indices, sizes)
    return (indices, values, shape) if inside.all() else (indices[inside], values[inside], shape)


@on_shards
def _sample(layout: Layout, _: None, __: None, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`SAMPLE` rows of each shard, at equal distances, and its number of entries."""
    entries = _keys.is_entry(rows, layout.shape)
    nnz = jnp.sum(entries, dtype=jnp.int32)
    # The rows of entries come first, sorted, even if padding lies between them.
    first = jnp.sort(jnp.where(entries, rows[:, 0], np.asarray(layout.shape[0], rows.dtype)))
    places = (jnp.arange(SAMPLE, dtype=np.float32) + 0.5) / SAMPLE
    return take(first, (places * nnz.astype(np.float32)).astype(jnp.int32)), nnz[None]


def balance(rows: np.ndarray, weights: np.ndarray, n_rows: int, shards: int) -> np.ndarray:
    """The starts of `shards` ranges of rows, the heaviest of which is as light as possible; `[shards + 1]`.

    Rows may be in any order, with repetitions; their weights are whole numbers. The smallest bound that greedily filled
    ranges can keep is found by bisection.
    """
    distinct, place = np.unique(rows.astype(starts_dtype(n_rows), copy=False), return_inverse=True)
    through = np.zeros(len(distinct) + 1, np.int64)  # the weight of all distinct rows before each
    np.add.at(through, place + 1, weights)
    heaviest = int(through.max(initial=0))
    np.cumsum(through, out=through)
    total = int(through[-1])

    def cut(bound: int) -> np.ndarray:
        ends = np.zeros(shards + 1, np.int64)
        for k in range(shards):
            ends[k + 1] = np.searchsorted(through, through[ends[k]] + bound, side="right") - 1
        return ends

    low, high = max(heaviest, -(-total // shards)), total
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cut(middle)[-1] == len(distinct) else (middle + 1, high)
    starts: np.ndarray = np.append(distinct, np.asarray(n_rows, distinct.dtype))[cut(low)]
    starts[0] = 0
    return starts


def starts_dtype(n_rows: int) -> np.dtype:
    """The dtype of starts on the host: it can hold every row number and the number of rows."""
    return np.dtype(np.int64 if n_rows <= np.iinfo(np.int64).max else np.uint64)


def as_row_starts(row_starts: Any, n_rows: int, shards: int) -> Any:
    """The starts of `shards` ranges that cover all rows: on the host, unless they are traced."""
    if isinstance(row_starts, RowSharded):
        raise TypeError("`row_starts` must be integers, got RowSharded; pass its `row_starts`")
    concrete = is_concrete(row_starts)
    starts: Any = read_all(row_starts) if concrete else _arguments.as_integers("row_starts", row_starts)
    if not np.issubdtype(starts.dtype, np.integer):
        raise TypeError(f"`row_starts` must be integers, got {starts.dtype}")
    if starts.shape != (shards + 1,):
        raise ValueError(f"`row_starts` must have shape {(shards + 1,)}, one more than shards; got {starts.shape}")
    if concrete and (starts[0] != 0 or starts[-1] != n_rows or np.any(starts[1:] < starts[:-1])):
        raise ValueError(f"`row_starts` must ascend from 0 to {n_rows}, the number of rows; got {starts}")
    return starts
