r"""The union of two canonical key lists: a merge path in tiles, in gathers and words of bits.

Merging draws a path through a grid: a step down takes the next entry of a, a step right the next entry of b, both at
once a shared key. Step d of the path lies on diagonal d of the grid, so it can be entered anywhere, after one binary
search along a diagonal:

               b: 1   4   5   9
             .   .   .   .   .        `_split`  finds where the path crosses every 32nd diagonal: it is cut into tiles
      a: 1     \                                of 32 inputs, which can be walked in parallel
             .   .   .   .   .        `_walk`   takes one step in every tile at a time, and writes two bits for it:
         2       |                              whether the output came from a, and whether from b
             .   . - .   .   .        `_align`  packs these bits into words of 32 outputs, a bitmap for each list, with
         5             \                        the number of its entries before the word
             .   .   .   . - .        `_expand` an output's place in a list is then that number and the population
                                                count of the bits before it: no search, no scatter

A word of bits stands for 32 outputs and is small; whatever is as long as the lists is read or written once.
`tests/test_tile_merge.py` holds the plain version.

Lessons from XLA:CPU (two cores), where this is most of the work of a sparse addition:
- A fusion recomputes its producers for each consumer, 32 times where a word is broadcast to its outputs. `materialise`
  prevents that; so does a loop or a conditional.
- An array constant in a fusion keeps it from being vectorised (3 to 10 times the time): hence `_places`.
- A step of the walk is three kernels: two gathers, and one word of code for both lists. Explicit cursors or a word for
  each list need four, and take half as long again. One gather a step, from the list last used, gained nothing;
  neither did blocks of tiles that fit a cache, nor tiles of 16, 64 or 128 (the search loses what the walk gains).
- Comparing the 32 x 32 pairs of a tile instead of walking it is as fast at 10^6 entries and half as fast below 10^5.
- Index rows are selected element by element from the operands. Dividing merged keys takes as long, and more memory.
- Positions are scattered, 2.5 ns a slot on one thread. Selecting them from the bitmaps by gathers took 4 times that.
- Touching new memory costs a page fault for each 4 KB, which on a virtual machine may take as long as merging 100
  entries. glibc returns blocks above 32 MiB after each call, and XLA allocates what all branches of a conditional need
  as one block: so the branch that merges must touch little memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_sparse_grad import _keys
from jax_sparse_grad._keys import Keys
from jax_sparse_grad._primitives import NONE, at, furthest, in_all_batches, scatter
from jax_sparse_grad._xla_cpu import materialise

TILE = 32  # inputs in a tile, and outputs in a word
COARSE_TILE = 512  # the search along diagonals goes in two strides; 256 ... 1024 are equally good
WALK = 16  # outputs in a word of code, at two bits each; no full tile has less
BLOCK = 1 << 13  # words scattered at a time: the indices of a scatter are written to memory, and so stay in the cache
ROUND = 64  # XLA:CPU divides an array evenly among threads only if its length is a multiple of a few of them

_FROM_A, _FROM_B = np.uint32(0x55555555), np.uint32(0xAAAAAAAA)


class Bitmap(NamedTuple):
    """Which slots hold an entry of a list: a bit for each slot, and the number of entries before each word of bits.

    Words behind the last slot in use have no bits set, and all entries before them.
    """

    words: jax.Array
    before: jax.Array


def merge(a: Keys, b: Keys, nse: int) -> tuple[jax.Array, tuple[Bitmap, Bitmap]]:
    """The number of distinct keys in two canonical lists, and which of the first `nse` are in either."""
    tiles = _split(a, b)
    return _align(tiles, _walk(a, b, tiles), nse)


def sources_of(bitmap: Bitmap, nse: int) -> jax.Array:
    """For each of `nse` slots the entry of a list in it; `NONE` if there is none."""
    entries, present = _expand(bitmap)
    return jnp.where(present, entries, NONE).reshape(-1)[:nse]


def select_rows(
    bitmaps: tuple[Bitmap, Bitmap], a: jax.Array, b: jax.Array, fill: Sequence[ArrayLike], nse: int
) -> jax.Array:
    """For each of `nse` slots the row of a or b `[n, width]` in it, or `fill` if there is none."""
    width = a.shape[1]
    if width == 0:
        return jnp.zeros((nse, 0), a.dtype)
    place = _places(bitmaps[0].words.shape[0], TILE * width)
    column = (place - place // np.uint32(width) * np.uint32(width)).astype(jnp.int32)
    selected = jnp.full(place.shape, fill[0], a.dtype)
    for k in range(1, width):
        selected = jnp.where(column == k, jnp.asarray(fill[k], a.dtype), selected)
    for rows, bitmap in zip((b, a), bitmaps[::-1], strict=True):
        entries, present = _expand(bitmap, width)
        selected = jnp.where(present, _element(rows, entries, column), selected)
    return selected.reshape(-1, width)[:nse]


def _element(rows: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    if rows.size <= np.iinfo(np.int32).max:
        return at(rows.reshape(-1), row * rows.shape[1] + column)
    row = jnp.clip(row, 0, rows.shape[0] - 1)
    return rows.at[row, column].get(mode="promise_in_bounds", wrap_negative_indices=False)


def positions_of(bitmap: Bitmap, size: int, nse: int) -> jax.Array:
    """For each entry of a list of `size` its slot; `NONE` if it has none.

    Every slot names its entry or, if it has none, the next entry, whose own slot is larger. So the largest slot that
    names an entry is its own, whatever order they are scattered in. (A scatter that drops slots takes twice the time.)
    """
    if size == 0 or nse == 0:
        return jnp.full(size, NONE)
    count = bitmap.words.shape[0]
    block = min(count, BLOCK)
    blocks = -(-count // block)

    def name(k: jax.Array, positions: jax.Array) -> jax.Array:
        first = jnp.minimum(k * block, count - block)
        part = Bitmap(*(lax.dynamic_slice(array, (first,), (block,)) for array in bitmap))
        entries = _expand(part)[0].reshape(-1)
        slots = first * TILE + jnp.arange(block * TILE, dtype=jnp.int32)
        slots = jnp.where((entries < size) & (slots < nse), slots, 0)
        return positions.at[jnp.minimum(entries, size - 1)].max(
            slots, mode="promise_in_bounds", wrap_negative_indices=False
        )

    # XLA must not know that these are zeros: it would make them once for all lists, and copy them for each.
    zeros = jnp.broadcast_to(jnp.minimum(bitmap.before[0], 0), (size,))
    named = lax.fori_loop(0, blocks, name, zeros) if blocks > 1 else name(jnp.int32(0), zeros)
    last, bits_of_last = (nse - 1) // TILE, (nse - 1) % TILE + 1
    in_last = bitmap.words[last] & np.uint32(2**bits_of_last - 1)
    stored = bitmap.before[last] + _count_bits(in_last)
    return jnp.where(jnp.arange(size, dtype=jnp.int32) < stored, named, NONE)


def count_before(flags: jax.Array) -> jax.Array:
    """For each flag the number of true ones before it, `[n]` int32: a sum over words of bits, then within the word."""
    size = flags.shape[0]
    count = _round_up(max(-(-size // TILE), 1))
    bits = jnp.concatenate([flags.astype(jnp.uint32), jnp.zeros(count * TILE - size, jnp.uint32)])
    words = jnp.sum(bits.reshape(count, TILE) << _places(count, TILE), axis=1, dtype=jnp.uint32)
    through = jnp.cumsum(_count_bits(words))
    bitmap = materialise(Bitmap(words, through - _count_bits(words)))
    return _expand(bitmap)[0].reshape(-1)[:size]


class _Tiles(NamedTuple):
    """Where tiles of the path begin and end: the number of entries of a and of b before that."""

    a_begin: jax.Array
    b_begin: jax.Array
    a_end: jax.Array
    b_end: jax.Array


def _split(a: Keys, b: Keys) -> _Tiles:
    """Cut the path every `TILE` inputs. Of a shared key, a comes first; no cut separates the two."""
    sizes = a[0].shape[0], b[0].shape[0]
    a_count, b_count = _keys.count_entries(a), _keys.count_entries(b)
    count = _round_up(-(-sum(sizes) // TILE) + 3)  # an output word reads up to two tiles beyond its own
    coarse_count = _round_up(-(-count * TILE // COARSE_TILE) + 1)

    def diagonals(count: int, stride: int) -> jax.Array:
        return jnp.minimum(jnp.arange(count, dtype=jnp.int32) * stride, a_count + b_count)

    d = diagonals(coarse_count, COARSE_TILE)
    coarse = _cross(a, b, d, jnp.maximum(d - b_count, 0), jnp.minimum(d, a_count), min(sizes).bit_length())
    d, before = diagonals(count, TILE), jnp.arange(count, dtype=jnp.int32) // (COARSE_TILE // TILE)
    d_before, d_after = diagonals(coarse_count, COARSE_TILE)[before], diagonals(coarse_count, COARSE_TILE)[before + 1]
    a_before, a_after = coarse[before], coarse[before + 1]
    low, high = jnp.maximum(a_before, a_after - (d_after - d)), jnp.minimum(a_after, a_before + (d - d_before))
    a_begin = _cross(a, b, d, low, high, (COARSE_TILE // 2).bit_length())
    b_begin = d - a_begin
    shared = _keys.is_equal(_keys.key_at(a, a_begin - 1), _keys.key_at(b, b_begin))
    divided = (a_begin > 0) & (b_begin < b_count) & shared
    b_begin += divided.astype(jnp.int32)
    a_end, b_end = (jnp.append(begin[1:], end) for begin, end in ((a_begin, a_count), (b_begin, b_count)))
    return materialise(_Tiles(a_begin, b_begin, a_end, b_end))


def _cross(a: Keys, b: Keys, diagonal: jax.Array, low: jax.Array, high: jax.Array, rounds: int) -> jax.Array:
    """Where the path crosses diagonals: the number of entries of a before that, within `low ... high`.

    It is the largest i for which entry i - 1 of a does not exceed entry d - i of b.
    """
    return furthest(lambda i: ~_keys.is_less(_keys.key_at(b, diagonal - i), _keys.key_at(a, i - 1)), low, high, rounds)


def _walk(a: Keys, b: Keys, tiles: _Tiles) -> tuple[jax.Array, jax.Array]:
    """For each tile, which of its outputs come from a and which from b: bit k of a word is output k."""

    def step(k: jax.Array, code: jax.Array, a_begin: jax.Array, b_begin: jax.Array) -> jax.Array:
        i, j = a_begin + _count_bits(code & _FROM_A), b_begin + _count_bits(code & _FROM_B)
        x, y = _keys.key_at(a, i), _keys.key_at(b, j)
        a_left, b_left = i < tiles.a_end, j < tiles.b_end
        from_a = a_left & ~(b_left & _keys.is_less(y, x))
        from_b = b_left & ~(a_left & _keys.is_less(x, y))
        bits = from_a.astype(jnp.uint32) | (from_b.astype(jnp.uint32) << 1)
        return code | (bits << (2 * k).astype(jnp.uint32))

    def walk_half(_: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        _, first, a_begin, b_begin = carry
        # The first half is the whole path if all keys are shared.
        done = in_all_batches(jnp.all((a_begin == tiles.a_end) & (b_begin == tiles.b_end)))
        code = lax.fori_loop(
            0, jnp.where(done, 0, WALK), lambda k, code: step(k, code, a_begin, b_begin), jnp.zeros_like(first)
        )
        return first, code, a_begin + _count_bits(code & _FROM_A), b_begin + _count_bits(code & _FROM_B)

    none = jnp.zeros_like(tiles.a_begin, jnp.uint32)
    first, second, _, _ = lax.fori_loop(0, TILE // WALK, walk_half, (none, none, tiles.a_begin, tiles.b_begin))

    def gather_bits(shift: int) -> jax.Array:
        return _every_other_bit(first >> shift) | (_every_other_bit(second >> shift) << WALK)

    return gather_bits(0), gather_bits(1)


def _align(tiles: _Tiles, codes: tuple[jax.Array, jax.Array], nse: int) -> tuple[jax.Array, tuple[Bitmap, Bitmap]]:
    """The number of outputs, and the bits of tiles packed into words of 32 outputs.

    A full tile has 16 to 32 outputs: a word gets its bits from at most three tiles, and a tile holds at most one first
    output of a word.
    """
    # 1. Count. Then tile t writes the outputs `begin[t] ... end[t] - 1`, and all of them are `nnz`.
    outputs = _count_bits(codes[0] | codes[1])
    end = jnp.cumsum(outputs)
    nnz, begin = end[-1], end - outputs

    # 2. Find where words begin. Then `tile[w]` is the tile that writes the first output of word w; tile 0 if none does.
    count = _round_up(max(-(-nse // TILE), 1))
    next_word = (begin + TILE - 1) // TILE
    begins_word = next_word * TILE < end
    numbers = jnp.arange(outputs.shape[0], dtype=jnp.int32)
    tile = scatter(count, jnp.where(begins_word, next_word, count), numbers, fill=0)

    # 3. Fit the pieces. The first `skipped` outputs of that tile are in earlier words; the next tile goes on at bit
    #    `next_bit`, and the one after it at `third_bit`.
    first_output = jnp.arange(count, dtype=jnp.int32) * TILE
    skipped = jnp.clip(first_output - begin[tile], 0, TILE - 1)
    next_bit = outputs[tile] - skipped
    third_bit = next_bit + outputs[tile + 1]
    in_use = first_output < nnz
    is_skipped = (np.uint32(1) << skipped.astype(jnp.uint32)) - np.uint32(1)

    # 4. Pack, for each list: the bits of a word, and the number of the list's entries before it. A word that is not in
    #    use has no bits, and all entries before it.
    def pack(code: jax.Array, list_begin: jax.Array, list_end: jax.Array) -> Bitmap:
        bits = code[tile] >> skipped.astype(jnp.uint32)
        bits |= _shift_left(code[tile + 1], next_bit) | _shift_left(code[tile + 2], third_bit)
        before = list_begin[tile] + _count_bits(code[tile] & is_skipped)
        return Bitmap(jnp.where(in_use, bits, 0), jnp.where(in_use, before, list_end[-1]))

    bitmaps = pack(codes[0], tiles.a_begin, tiles.a_end), pack(codes[1], tiles.b_begin, tiles.b_end)
    return nnz, materialise(bitmaps)


def _expand(bitmap: Bitmap, width: int = 1) -> tuple[jax.Array, jax.Array]:
    """For each slot its entry in the list (or the next one), and whether it has one there: `[words, 32 * width]`.

    Each slot stands `width` times in a row, for as many columns.
    """
    words, before = bitmap.words[:, None], bitmap.before[:, None]
    bit = np.uint32(1) << (_places(words.shape[0], TILE * width) // np.uint32(width))
    return before + _count_bits(words & (bit - np.uint32(1))), (words & bit) != 0


def _count_bits(words: jax.Array) -> jax.Array:
    return lax.population_count(words).astype(jnp.int32)


def _places(count: int, width: int) -> jax.Array:
    """0 ... width - 1 in each of `count` rows. An array constant would keep XLA:CPU from vectorising."""
    return lax.broadcasted_iota(jnp.uint32, (count, width), 1)


def _every_other_bit(code: jax.Array) -> jax.Array:
    """The even bits of 32-bit words, in their lower halves."""
    code &= _FROM_A
    for distance, mask in ((1, 0x33333333), (2, 0x0F0F0F0F), (4, 0x00FF00FF), (8, 0x0000FFFF)):
        code = (code | (code >> distance)) & np.uint32(mask)
    return code


def _shift_left(words: jax.Array, distance: jax.Array) -> jax.Array:
    """`words << distance`; 0 where that is 32 or more."""
    return jnp.where(distance < TILE, words << jnp.minimum(distance, TILE - 1).astype(jnp.uint32), 0)


def _round_up(count: int) -> int:
    return -(-count // ROUND) * ROUND
