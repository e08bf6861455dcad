"""Index rows <-> keys of one or more 32-bit words; padding; order.

A row of indices is read as the digits of a number in the mixed radix of the shape, most significant first, so that rows
in lexicographic order are numbers in ascending order. The number is stored in as few 32-bit words as can hold it:
consecutive dimensions share a word as long as the product of their sizes fits. All ones in every word is the key of
padding, which sorts behind every entry.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Keys = tuple[jax.Array, ...]
"""The words of n keys, most significant first: uint32 arrays `[n]`."""

ONES = np.uint32(2**32 - 1)
"""Each word of the key of padding."""


NONE = np.int32(2**31 - 1)
"""The slot of an entry that has none: out of bounds for any array, as no sum may have so many entries."""


class Digit(NamedTuple):
    """What a word holds of a dimension: 32 bits of its index from bit `shift` on, less than `radix`."""

    dim: int
    shift: int
    radix: int


@functools.lru_cache
def words_of(shape: tuple[int, ...]) -> tuple[tuple[Digit, ...], ...]:
    """How the dimensions of a shape are spread over words: the digits of each, both most significant first."""
    words: list[tuple[Digit, ...]] = [()]
    for dim, size in enumerate(shape):
        for shift in range(32 * ((size - 1).bit_length() > 32), -1, -32):
            largest = max(size - 1, 0) >> shift
            digit = Digit(dim, shift, min(largest, int(ONES)) + 1)
            # Filling each word as far as possible needs the fewest words. No entry fills the first one with ones.
            most = int(ONES) + (len(words) > 1)
            if math.prod(each.radix for each in words[-1]) * digit.radix > most:
                words.append(())
            words[-1] += (digit,)
    return tuple(words)


def is_entry(rows: Any, shape: tuple[int, ...]) -> Any:
    """Whether each index row `[..., ndims]` lies inside a shape, `[...]` bool; by numpy if the rows are numpy's."""
    inside = rows[..., :0].sum(-1) == 0  # of a scalar tensor, every row
    for dim, size in enumerate(shape):
        unsigned = np.dtype(f"uint{8 * rows.dtype.itemsize}")  # a negative index becomes too large
        if size <= np.iinfo(unsigned).max:
            inside &= rows[..., dim].astype(unsigned) < unsigned.type(size)
    return inside


def ravel(rows: jax.Array, shape: tuple[int, ...]) -> Keys:
    """The keys of index rows `[n, ndims]`; rows outside the shape get the key of padding."""
    inside = is_entry(rows, shape)
    keys = []
    for digits in words_of(shape):
        word = jnp.zeros(rows.shape[0], np.uint32)
        for dim, shift, radix in digits:
            index = rows[:, dim]
            digit = (index >> np.asarray(shift, index.dtype) if shift else index).astype(np.uint32)
            word = word * np.uint32(radix % 2**32) + digit  # alone in its word if the radix is 2**32
        keys.append(jnp.where(inside, word, ONES))
    return tuple(keys)


def unravel(keys: Keys, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """The index rows `[n, ndims]` of keys; the key of padding gives the row of padding."""
    padding = is_padding(keys)
    columns = [jnp.zeros(keys[0].shape[0], dtype) for _ in shape]
    for word, digits in zip(keys, words_of(shape), strict=True):
        rest = word
        for dim, shift, radix in reversed(digits):
            digit = rest
            if radix < 2**32:  # else nothing is left for the digits before it, which are all 0
                rest = rest // np.uint32(radix)
                digit = digit - rest * np.uint32(radix)
            else:
                rest = jnp.zeros_like(rest)
            columns[dim] += digit.astype(dtype) << np.asarray(shift, dtype) if shift else digit.astype(dtype)
    columns = [jnp.where(padding, np.asarray(size, dtype), column) for column, size in zip(columns, shape, strict=True)]
    return jnp.stack(columns, axis=1) if columns else jnp.zeros((keys[0].shape[0], 0), dtype)


def columns_as_words(rows: Any) -> Any:
    """Keys of rows whose shape is not known: a word or two for each column. By numpy if the rows are numpy's.

    None is known to be padding. Negative indices are the largest.
    """
    words = [] if rows.shape[1] else [rows[:, :0].sum(-1).astype(np.uint32)]
    for dim in range(rows.shape[1]):
        index = rows[:, dim]
        if index.dtype.itemsize == 8:
            words.append((index >> np.asarray(32, index.dtype)).astype(np.uint32))
        words.append(index.astype(np.uint32))
    return tuple(words)


def is_padding(keys: Keys) -> jax.Array:
    """Whether each key is that of padding. The first word alone tells, because no entry fills it with ones."""
    return keys[0] == ONES


def is_less(a: Keys, b: Keys) -> jax.Array:
    """Lexicographic a < b, word by word."""
    less = a[-1] < b[-1]
    for x, y in zip(a[-2::-1], b[-2::-1], strict=True):
        less = (x < y) | ((x == y) & less)
    return less


def is_equal(a: Keys, b: Keys) -> jax.Array:
    """Whether all words of a and b agree."""
    return functools.reduce(operator.and_, (x == y for x, y in zip(a, b, strict=True)))


def lesser(a: Keys, b: Keys) -> Keys:
    """The lesser of a and b."""
    if len(a) == 1:
        return (jnp.minimum(a[0], b[0]),)
    less = is_less(b, a)
    return tuple(jnp.where(less, y, x) for x, y in zip(a, b, strict=True))


def ascend_strictly(keys: Keys) -> jax.Array:
    """Whether each key but the first is larger than the one before it, or padding: `[n - 1]` bool."""
    before, after = tuple(word[:-1] for word in keys), tuple(word[1:] for word in keys)
    return is_less(before, after) | is_padding(after)


def join(lists: Iterable[Keys]) -> Keys:
    """The keys of several lists in one, list after list."""
    return tuple(map(jnp.concatenate, zip(*lists, strict=True)))
