"""Index rows <-> sort keys of one or more words; padding; order.

A row of indices is read as the digits of a number in the mixed radix of the shape, most significant first, so that rows
in lexicographic order are numbers in ascending order. The number is stored in as few unsigned words as hold it:
consecutive dimensions share a word while the product of their sizes leaves the all-ones word free. All ones in every
word is the key of padding; it sorts behind every entry.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad._checks import guard

Keys = tuple[jax.Array, ...]
"""The words of n keys, most significant first: unsigned arrays `[n]`."""


class KeyLayout(NamedTuple):
    """How the dimensions of a shape are spread over words: `words[w]` names the dimensions that word w holds."""

    words: tuple[tuple[int, ...], ...]
    dtype: np.dtype


def all_ones(dtype: np.dtype) -> np.unsignedinteger:
    """The word of padding: the largest number of an unsigned dtype."""
    return dtype.type(np.iinfo(dtype).max)


def x64_enabled() -> bool:
    """Whether JAX has 64-bit words at present."""
    return bool(jax.dtypes.canonicalize_dtype(np.uint64) == np.uint64)


def key_layout(shape: tuple[int, ...]) -> KeyLayout:
    """The narrowest layout for a shape: one 32-bit word, else (with x64) 64-bit words, else several 32-bit words."""
    radices = [max(size, 1) for size in shape]
    dtype: np.dtype = np.dtype(np.uint32)
    if math.prod(radices) > int(all_ones(dtype)) and x64_enabled():
        dtype = np.dtype(np.uint64)
    words: list[tuple[int, ...]] = [()]
    for dim, radix in enumerate(radices):
        # Filling each word as far as it goes needs the fewest words.
        if words[-1] and math.prod(radices[d] for d in words[-1]) * radix > int(all_ones(dtype)):
            words.append(())
        words[-1] += (dim,)
    return KeyLayout(tuple(words), dtype)


def columns_of(indices: jax.Array) -> list[jax.Array]:
    """The columns of `indices [n, ndims]`, each `[n]`."""
    return [indices[:, dim] for dim in range(indices.shape[1])]


def stack_columns(columns: Sequence[jax.Array], size: int, dtype: np.dtype) -> jax.Array:
    """The inverse of `columns_of`; a scalar tensor has no columns."""
    return jnp.stack(columns, axis=1) if columns else jnp.zeros((size, 0), dtype)


def is_entry(indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Whether each row lies inside the shape, `[n]` bool."""
    inside = jnp.ones(indices.shape[0], bool)
    for column, size in zip(columns_of(indices), shape, strict=True):
        inside &= (column >= 0) & (column < np.asarray(size, column.dtype))
    return inside


def guard_rows(name: str, indices: jax.Array, shape: tuple[int, ...] | None) -> jax.Array:
    """The same rows, on the condition that all are entries or padding; without a shape, that none is negative."""
    if indices.shape[0] == 0:
        return indices
    ok, row, content = _first_bad_row(indices, shape)
    expected = "not be negative" if shape is None else f"lie in [0, {shape}), or equal {shape} in padding"
    message = f"`{name}` must {expected}; row {{row}} is {{indices}}"
    return guard(indices, ok, message, row=row, indices=content)


def guard_canonical(name: str, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The same rows, on the condition that they are what `assume_canonical=True` promises."""
    message = f"`{name}` must be sorted and unique, with padding last, for `assume_canonical=True`"
    return guard(indices, is_canonical(ravel(indices, shape)), message)


@partial(jax.jit, static_argnums=1)
def _first_bad_row(indices: jax.Array, shape: tuple[int, ...] | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether there is none; its number and its content (some row's if there is none)."""
    size = indices.shape[0]
    columns = columns_of(indices)
    if shape is None:
        bad = jnp.zeros(size, bool)
        for column in columns:
            bad |= column < 0
    else:
        padding = jnp.ones(size, bool)
        for column, length in zip(columns, shape, strict=True):
            padding &= column == np.asarray(length, column.dtype)
        bad = ~(is_entry(indices, shape) | padding)
    row = jnp.argmax(bad)
    return ~jnp.any(bad), row, indices[row]


def ravel(indices: jax.Array, shape: tuple[int, ...]) -> Keys:
    """The keys of index rows; rows outside the shape get the key of padding."""
    layout = key_layout(shape)
    inside = is_entry(indices, shape)
    columns = columns_of(indices)
    keys = []
    for dims in layout.words:
        word = jnp.zeros(indices.shape[0], layout.dtype)
        for dim in dims:
            word = word * np.asarray(shape[dim], layout.dtype) + columns[dim].astype(layout.dtype)
        keys.append(jnp.where(inside, word, all_ones(layout.dtype)))
    return tuple(keys)


def unravel(keys: Keys, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """The index rows of keys, `[n, ndims]`; padding becomes the row whose every index equals the shape."""
    layout = key_layout(shape)
    padding = is_padding(keys)
    columns: list[jax.Array] = []
    for dims, word in zip(reversed(layout.words), reversed(keys), strict=True):
        for dim in reversed(dims):
            size = np.asarray(max(shape[dim], 1), layout.dtype)
            # The first dimension of a word is what is left of it: no division needed.
            quotient, digit = (word, word) if dim == dims[0] else (word // size, word % size)
            columns.append(jnp.where(padding, np.asarray(shape[dim], dtype), digit.astype(dtype)))
            word = quotient
    return stack_columns(columns[::-1], keys[0].shape[0], dtype)


def is_padding(keys: Keys) -> jax.Array:
    """Whether each key is that of padding; the first word alone tells, since no entry fills it with ones."""
    return keys[0] == all_ones(keys[0].dtype)


def is_less(a: Keys, b: Keys) -> jax.Array:
    """Lexicographic a < b, word by word."""
    less = a[-1] < b[-1]
    for x, y in zip(a[-2::-1], b[-2::-1], strict=True):
        less = (x < y) | ((x == y) & less)
    return less


def is_equal(a: Keys, b: Keys) -> jax.Array:
    """Whether all words of a and b agree."""
    equal = a[0] == b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        equal &= x == y
    return equal


def starts_run(sorted_keys: Keys) -> jax.Array:
    """Whether each of the sorted keys is an entry that differs from the one before it."""
    differs = ~is_equal(tuple(k[1:] for k in sorted_keys), tuple(k[:-1] for k in sorted_keys))
    first = jnp.ones(min(1, sorted_keys[0].shape[0]), bool)
    return jnp.concatenate([first, differs]) & ~is_padding(sorted_keys)


def is_canonical(keys: Keys) -> jax.Array:
    """Whether the keys are strictly ascending up to the padding behind them (a scalar bool)."""
    before, after = tuple(k[:-1] for k in keys), tuple(k[1:] for k in keys)
    return jnp.all(is_less(before, after) | is_padding(after))


@jax.jit
def is_sorted(keys: Keys) -> jax.Array:
    """Whether the keys are ascending, equal neighbours allowed (a scalar bool)."""
    return ~jnp.any(is_less(tuple(k[1:] for k in keys), tuple(k[:-1] for k in keys)))


def as_words(indices: jax.Array) -> Keys:
    """One word a column: keys that need no shape. A negative index becomes larger than any other."""
    if indices.shape[1] == 0:
        return (jnp.zeros(indices.shape[0], np.uint32),)
    dtype = np.dtype(np.uint64 if indices.dtype.itemsize == 8 else np.uint32)
    return tuple(column.astype(dtype) for column in columns_of(indices))


def fits_one_word(largest: Sequence[jax.Array], dtype: np.dtype) -> jax.Array:
    """Whether keys with digits from 0 to `largest` fit one word of `dtype` beside the key of padding."""
    wide = np.dtype(np.uint64 if x64_enabled() else np.uint32)
    limit = all_ones(dtype).astype(wide)
    fits, size = jnp.array(True), jnp.ones((), wide)
    for digit in largest:
        # size * (digit + 1) <= limit, in a form that cannot overflow
        fits &= digit.astype(wide) < limit // size
        size = jnp.where(fits, size * (digit.astype(wide) + 1), size)
    return fits


def pack(words: Keys, largest: Sequence[jax.Array], dtype: np.dtype) -> Keys:
    """Keys of several words in one, whose digits go from 0 to `largest`."""
    packed = jnp.zeros_like(words[0], dtype)
    for word, digit in zip(words, largest, strict=True):
        packed = packed * (digit.astype(dtype) + 1) + word.astype(dtype)
    return (packed,)
