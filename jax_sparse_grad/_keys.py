"""Index rows <-> sort keys of one or more words; padding; order.

A row of indices is read as the digits of a number in the mixed radix of the shape, most significant first, so that rows
in lexicographic order are numbers in ascending order. The number is stored in as few unsigned words as can hold it:
consecutive dimensions share a word as long as the product of their sizes leaves the all-ones word free. All ones in
every word is the key of padding, which sorts behind every entry.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_sparse_grad import _xla_cpu
from jax_sparse_grad._primitives import at
from jax_sparse_grad._seam import per_platform
from jax_sparse_grad._xla_cpu import all_true

Keys = tuple[jax.Array, ...]
"""The words of n keys, most significant first: unsigned arrays `[n]`."""


class KeyLayout(NamedTuple):
    """How the dimensions of a shape are spread over words: `words[w]` lists the dimensions in word w."""

    words: tuple[tuple[int, ...], ...]
    dtype: np.dtype


def all_ones(dtype: np.dtype) -> np.unsignedinteger:
    """The word of padding: the largest number of an unsigned dtype."""
    return dtype.type(np.iinfo(dtype).max)


def x64_enabled() -> bool:
    """Whether JAX has 64-bit words at the moment."""
    return bool(jax.dtypes.canonicalize_dtype(np.uint64) == np.uint64)


def key_layout(shape: tuple[int, ...]) -> KeyLayout:
    """The narrowest layout for a shape: one 32-bit word, else (with x64) 64-bit words, else several 32-bit words."""
    radices = [max(size, 1) for size in shape]
    dtype: np.dtype = np.dtype(np.uint32)
    if math.prod(radices) > int(all_ones(dtype)) and x64_enabled():
        dtype = np.dtype(np.uint64)
    words: list[tuple[int, ...]] = [()]
    for dim, radix in enumerate(radices):
        # Filling each word as far as possible needs the fewest words.
        if words[-1] and math.prod(radices[d] for d in words[-1]) * radix > int(all_ones(dtype)):
            words.append(())
        words[-1] += (dim,)
    return KeyLayout(tuple(words), dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["sizes"], meta_fields=["layout"])
@dataclasses.dataclass(frozen=True)
class Space:
    """The space of the indices. Its sizes are data, so that one program serves all shapes of a layout.

    sizes: a scalar of the index dtype for each dimension.
    layout: how keys are laid out (static).
    """

    sizes: tuple[ArrayLike, ...]
    layout: KeyLayout


def space_of(shape: tuple[int, ...], dtype: np.dtype) -> Space:
    """The space of a shape, for indices of a dtype."""
    return Space(tuple(np.asarray(size, dtype) for size in shape), key_layout(shape))


def columns_of(indices: jax.Array) -> list[jax.Array]:
    """The columns of `indices [n, ndims]`, each `[n]`."""
    return [indices[:, dim] for dim in range(indices.shape[1])]


def stack_columns(columns: Sequence[jax.Array], size: int, dtype: np.dtype) -> jax.Array:
    """The inverse of `columns_of`; a scalar tensor has no columns."""
    return jnp.stack(columns, axis=1) if columns else jnp.zeros((size, 0), dtype)


def is_entry(indices: jax.Array, sizes: Sequence[ArrayLike]) -> jax.Array:
    """Whether each row lies inside a shape, `[n]` bool."""
    inside = jnp.ones(indices.shape[0], bool)
    for column, size in zip(columns_of(indices), sizes, strict=True):
        inside &= (column >= 0) & (column < jnp.asarray(size, column.dtype))
    return inside


def ravel(indices: jax.Array, space: Space) -> Keys:
    """The keys of index rows; rows outside the space get the key of padding."""
    dtype = space.layout.dtype
    inside = is_entry(indices, space.sizes)
    columns = columns_of(indices)
    keys = []
    for dims in space.layout.words:
        word = jnp.zeros(indices.shape[0], dtype)
        for dim in dims:
            word = word * jnp.asarray(space.sizes[dim]).astype(dtype) + columns[dim].astype(dtype)
        keys.append(jnp.where(inside, word, all_ones(dtype)))
    return tuple(keys)


def unravel(keys: Keys, space: Space, dtype: np.dtype) -> jax.Array:
    """The index rows of keys; the key of padding gives the row of padding."""
    columns: list[jax.Array] = []
    padding = is_padding(keys)
    for word, dims in zip(reversed(keys), reversed(space.layout.words), strict=True):
        rest = word
        for dim in reversed(dims):
            size = jnp.asarray(space.sizes[dim])
            radix = jnp.maximum(size.astype(word.dtype), 1)
            quotient = rest // radix
            index = (rest - quotient * radix).astype(dtype)
            columns.append(jnp.where(padding, size.astype(dtype), index))
            rest = quotient
    return stack_columns(columns[::-1], keys[0].shape[0], dtype)


def is_padding(keys: Keys) -> jax.Array:
    """Whether each key is that of padding. The first word alone tells, because no entry fills it with ones."""
    return keys[0] == all_ones(keys[0].dtype)


def count_entries(canonical_keys: Keys) -> jax.Array:
    """The number of entries before the padding (a scalar int32); by bisection, which is faster than a sum over all."""
    first = canonical_keys[0]
    if first.shape[0] == 0:
        return jnp.zeros_like(first, jnp.int32, shape=())  # varies over a mesh as the keys do
    return jnp.searchsorted(first, all_ones(first.dtype)).astype(jnp.int32)


def key_at(keys: Keys, index: jax.Array) -> Keys:
    """The keys at an index; any key where it is out of bounds."""
    return tuple(at(word, index) for word in keys)


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


def sort(keys: Keys) -> tuple[Keys, jax.Array]:
    """The keys in ascending order, and where each of them came from (`[n]` int32). The sort is stable."""
    order = _argsort(*digits_of(keys))
    return tuple(word[order] for word in keys), order


def argsort_in_pairs(digits: tuple[jax.Array, ...]) -> jax.Array:
    """The stable order of keys of 32-bit digits, `[n]` int32.

    Digit by digit, the least significant first, each beside its position: one key with one payload is what XLA:GPU can
    leave to CUB's radix sort.
    """
    order = jnp.arange(digits[0].shape[0], dtype=jnp.int32)
    for count, digit in enumerate(reversed(digits)):
        _, order = lax.sort((digit[order] if count else digit, order), num_keys=1, is_stable=True)
    return order


_argsort = per_platform(
    cpu=lambda *digits: _xla_cpu.argsort(digits), otherwise=lambda *digits: argsort_in_pairs(digits)
)


def digits_of(keys: Keys) -> tuple[jax.Array, ...]:
    """The 32-bit digits of keys, the most significant first."""
    return tuple(digit for word in keys for digit in _digits(word))


def words_of(digits: tuple[jax.Array, ...], dtype: np.dtype) -> Keys:
    """The inverse of `digits_of`, for words of a dtype."""
    if dtype.itemsize == 4:
        return digits
    pairs = zip(digits[::2], digits[1::2], strict=True)
    return tuple((high.astype(dtype) << np.asarray(32, dtype)) | low.astype(dtype) for high, low in pairs)


def _digits(word: jax.Array) -> list[jax.Array]:
    """32-bit digits of a word, the most significant first."""
    if word.dtype.itemsize == 4:
        return [word]
    return [(word >> np.asarray(32, word.dtype)).astype(np.uint32), word.astype(np.uint32)]


def starts_run(sorted_keys: Keys) -> jax.Array:
    """Whether each of the sorted keys is an entry that differs from the one before it."""
    differs = ~is_equal(tuple(k[1:] for k in sorted_keys), tuple(k[:-1] for k in sorted_keys))
    first = jnp.ones(min(1, sorted_keys[0].shape[0]), bool)
    return jnp.concatenate([first, differs]) & ~is_padding(sorted_keys)


def starts_run_of(members: jax.Array, starts: jax.Array, padding: jax.Array) -> jax.Array:
    """The first member of each run of sorted keys, whose members stand side by side."""
    before = jnp.concatenate([jnp.zeros_like(members[:1]), members[:-1]])
    return members & ~padding & (starts | ~before)


def ascends(keys: Keys) -> jax.Array:
    """Whether each key but the first is larger than the one before it, or padding: `[n - 1]` bool."""
    before, after = tuple(k[:-1] for k in keys), tuple(k[1:] for k in keys)
    return is_less(before, after) | is_padding(after)


def is_canonical(keys: Keys) -> jax.Array:
    """Whether the keys are strictly ascending up to the padding behind them (a scalar bool)."""
    return all_true(ascends(keys))


@jax.jit
def is_sorted(keys: Keys) -> jax.Array:
    """Whether the keys are ascending, equal neighbours allowed (a scalar bool)."""
    return all_true(~is_less(tuple(k[1:] for k in keys), tuple(k[:-1] for k in keys)))


def as_words(indices: jax.Array) -> Keys:
    """One word per column: keys that need no shape. A negative index becomes larger than all others."""
    if indices.shape[1] == 0:
        return (jnp.zeros(indices.shape[0], np.uint32),)
    dtype = np.dtype(np.uint64 if indices.dtype.itemsize == 8 else np.uint32)
    return tuple(column.astype(dtype) for column in columns_of(indices))


def keys_of(indices: jax.Array, space: Space | None) -> Keys:
    """The keys of index rows; without a space, one word per column."""
    return as_words(indices) if space is None else ravel(indices, space)


def join(lists: Iterable[Keys]) -> Keys:
    """The keys of several lists in one, list after list."""
    return tuple(map(jnp.concatenate, zip(*lists, strict=True)))


def fits_one_word(largest: Sequence[jax.Array], dtype: np.dtype) -> jax.Array:
    """Whether keys with digits from 0 to `largest` fit one word of `dtype`, besides the key of padding."""
    wide = np.dtype(np.uint64 if x64_enabled() else np.uint32)
    limit = all_ones(dtype).astype(wide)
    fits, size = jnp.array(True), jnp.ones((), wide)
    for digit in largest:
        # size * (digit + 1) <= limit, in a form that cannot overflow
        fits &= digit.astype(wide) < limit // size
        size = jnp.where(fits, size * (digit.astype(wide) + 1), size)
    return fits


def pack(words: Keys, largest: Sequence[jax.Array], dtype: np.dtype) -> Keys:
    """Keys of several words in one, with digits from 0 to `largest`; padding if a digit is larger."""
    packed, fits = jnp.zeros_like(words[0], dtype), jnp.ones_like(words[0], bool)
    for word, digit in zip(words, largest, strict=True):
        packed = packed * (digit.astype(dtype) + 1) + word.astype(dtype)
        fits &= word <= digit
    return (jnp.where(fits, packed, all_ones(dtype)),)
