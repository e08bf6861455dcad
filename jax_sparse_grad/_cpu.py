"""Slots for XLA:CPU, by plain loops.

XLA:CPU compiles a `lax.while_loop` of scalars, `dynamic_slice` and `dynamic_update_slice` into one native function: 4
to 7 ns a step. What to know about such loops:

- By XLA's cost model, a step may read and write a few hundred bytes; beyond that, each operation becomes a call. A
  test checks that no loop goes beyond.
- Indices are unsigned: for signed ones JAX adds a comparison and a selection to every slice.
- The carry is in memory: keep its scalars few, and do two steps in a body.
- A body writes to an array before it reads it, or XLA copies the whole array. So a count that has been read and
  increased is written in the next step.
- No `cond` inside a loop: it would copy its arrays. An inner loop of zero or more rounds takes its place.
- Write unconditionally where a later step overwrites it.
- `vmap` would turn the scalars into vectors: `sequential_vmap` loops over the batch instead.

    keys of some lists
       | a few that ascend strictly     a merge
       | a few, not all in order        a radix sort of each that is not, and a merge in which keys may repeat
       | more, joined by the caller     the same of one list
    slots                               for each entry the number of its key among the distinct ones in order
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _keys
from jax_sparse_grad._batching import pvary_alike, take
from jax_sparse_grad._keys import NONE, ONES, Keys

U = np.uint32
Scalar = jax.Array | np.uint32

BLOCK = 16  # words of the entries copied at once where one list is behind the other, or both are the same
STEPS = 256  # single steps between two looks for such blocks; 64 take a third longer where there are none
MARGIN = BLOCK + STEPS  # keys of padding behind a list, so that no look is out of bounds
WEAK, STRICT = U(1), U(2)  # orders of keys
AT_ONCE = 32  # words of keys or rows that a step compares with their neighbours, or takes the largest of
MOST_MERGED = 4  # lists: 4 of 10^5 keys take a fifth of the time of a sort; of 6, XLA may not make one function
DIGIT, DIGITS = 8, 256  # bits that a pass of the radix sort looks at; their values


def _read(array: Any, index: Scalar, size: int = 1) -> jax.Array:
    return lax.dynamic_slice(array, (index,), (size,))


def _read_key(keys: Keys, index: jax.Array) -> Keys:
    return tuple(_read(word, index)[0] for word in keys)


def _write(array: jax.Array, index: Scalar, value: Scalar) -> jax.Array:
    return lax.dynamic_update_slice(array, value.reshape(-1), (index,))


def _loop(more: Callable[[Any], jax.Array], body: Callable[[Any], Any], start: Any, like: Keys) -> Any:
    """`lax.while_loop` whose carry varies over a mesh as the keys do, which `shard_map` requires."""
    return lax.while_loop(more, body, pvary_alike((start, like))[0])


def _pad(keys: Keys) -> Keys:
    """The same keys, and behind them `MARGIN` keys of padding."""
    return tuple(lax.pad(word, ONES, [(0, MARGIN, 0)]) for word in keys)


def _order(keys: Keys) -> jax.Array:
    """`STRICT` if each key is larger than the one before it, where padding may repeat; `WEAK` if none is smaller; or 0.

    A loop, because otherwise XLA would compute the keys again inside the comparison.
    """
    at_once = max(AT_ONCE // len(keys), 1)

    def look(state: Any) -> Any:
        i, order = state
        before, after = (tuple(_read(word, i + U(k), at_once) for word in keys) for k in (0, 1))
        larger = _keys.is_less(before, after) | _keys.is_padding(after)
        orders = jnp.where(_keys.is_less(after, before), U(0), WEAK + larger.astype(U))
        return i + U(at_once), jnp.minimum(order, jnp.min(orders))

    last = keys[0].shape[0] - at_once - 1
    order: jax.Array = _loop(lambda state: (state[0] < U(last)) & (state[1] > U(0)), look, (U(0), STRICT), keys)[1]
    return order


def _more(lists: Sequence[Keys], places: Sequence[jax.Array]) -> jax.Array:
    """Whether a key is left in a list from its place on."""
    firsts = (_read(keys[0], i)[0] for keys, i in zip(lists, places, strict=True))
    return functools.reduce(operator.or_, (first != ONES for first in firsts))


def _take(lists: Sequence[Keys], places: Sequence[jax.Array]) -> tuple[Keys, Sequence[jax.Array]]:
    """The least of the keys at a place of each list, and the places behind it in the lists that have it there."""
    firsts = [_read_key(keys, i) for keys, i in zip(lists, places, strict=True)]
    least = functools.reduce(_keys.lesser, firsts)
    return least, [i + _keys.is_equal(key, least).astype(U) for key, i in zip(firsts, places, strict=True)]


def _repeat(step: Callable[[Any], Any], state: Any, lists: Sequence[Keys]) -> Any:
    """Many steps of a merge; two in a body, if that is not too much for one native function."""
    at_once = 2 if len(lists) * len(lists[0]) <= 2 else 1
    body = lambda _, state: functools.reduce(lambda state, _: step(state), range(at_once), state)  # noqa: E731
    return lax.fori_loop(0, STEPS // at_once, body, state)


def merge(lists: Sequence[Keys]) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The slots of the keys of strictly ascending lists among their distinct keys, and how many these are; uint32.

    All lists end with what `_pad` adds. Slots of padding mean nothing.
    """
    count, block = len(lists), max(BLOCK // len(lists[0]), 1)

    def step(state: Any) -> Any:
        places, slot, slots = state[:count], state[count], state[count + 1 :]
        # What is not taken is overwritten later.
        slots = [_write(each, i, slot) for each, i in zip(slots, places, strict=True)]
        least, places = _take(lists, places)
        return *places, slot + (~_keys.is_padding(least)).astype(U), *slots

    def look(state: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of two lists, whether a block of the first lies before the second, or the reverse, or both are the same."""
        (a, b), (i, j) = lists, state[:2]
        (a0, b0), (a1, b1) = ((_read_key(a, i + U(k)), _read_key(b, j + U(k))) for k in (0, block - 1))
        blocks = (tuple(_read(word, at, block) for word in keys) for keys, at in ((a, i), (b, j)))
        same = ~_keys.is_padding(a1) & jnp.all(_keys.is_equal(*blocks))
        return _keys.is_less(a1, b0), _keys.is_less(b1, a0), same

    def take_block(state: Any) -> Any:
        of_a, of_b, _ = look(state)
        i, j, slot, a_slots, b_slots = state
        ahead = slot + np.arange(block, dtype=U)
        a_slots, b_slots = _write(a_slots, i, ahead), _write(b_slots, j, ahead)
        size = U(block)
        return i + jnp.where(of_b, U(0), size), j + jnp.where(of_a, U(0), size), slot + size, a_slots, b_slots

    def body(state: Any) -> Any:
        if count == 2:
            more = lambda state: _more(lists, state[:2]) & functools.reduce(operator.or_, look(state))  # noqa: E731
            state = lax.while_loop(more, take_block, state)
        return _repeat(step, state, lists)

    start = (*[U(0)] * (count + 1), *(jnp.zeros_like(keys[0]) for keys in lists))
    state = _loop(lambda state: _more(lists, state[:count]), body, start, lists[0])
    return state[count + 1 :], state[count]


def merge_spans(keys: Keys, order: jax.Array, begins: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """`merge` of ascending spans of one list in which keys may repeat. Slots are where the keys were before sorting."""
    lists = [keys] * len(begins)

    def step(state: Any) -> Any:
        *places, slot, slots = state
        for i in places:
            slots = _write(slots, _read(order, i)[0], slot)
        least, places = _take(lists, places)
        again = (_keys.is_equal(_read_key(keys, i), least) for i in places)
        return *places, slot + (~functools.reduce(operator.or_, again)).astype(U), slots

    start = (*map(U, begins), U(0), jnp.zeros_like(order))
    *_, count, slots = _loop(
        lambda state: _more(lists, state[:-2]), lambda state: _repeat(step, state, lists), start, keys
    )
    return slots, count


def sort_spans(keys: Keys, ends: Sequence[int], unsorted: jax.Array) -> tuple[Keys, jax.Array]:
    """The keys of a list, sorted between one end and the next, and where each was before (uint32).

    A stable radix sort. `unsorted` tells for each span whether it has to be sorted; others take no time.
    """
    begins = np.array([0, *ends[:-1]], U)
    words, order = keys[-1], jnp.arange(keys[0].shape[0], dtype=U)
    for k, word in enumerate(reversed(keys)):

        def sort_twice(n: jax.Array, state: Any) -> Any:
            pair, spare, table = state
            number, half = n // U(2), n % U(2)
            begin, end = _read(begins, number)[0], _read(np.array(ends, U), number)[0]
            span = begin, jnp.where(_read(unsorted, number)[0], end, begin)
            shift = half * U(2 * DIGIT)
            spare, table = _sort_by_digit(shift, span, pair, spare, table)
            pair, table = _sort_by_digit(shift + U(DIGIT), span, spare, pair, table)
            return pair, spare, table

        words = word[order] if k else words
        spare, table = (jnp.zeros_like(words),) * 2, (jnp.zeros(DIGITS + 1, U),) * 2
        start = pvary_alike(((words, order), spare, table, keys))[:-1]
        (words, order), *_ = lax.fori_loop(U(0), U(2 * len(ends)), sort_twice, start)
    return (words,) if len(keys) == 1 else tuple(word[order] for word in keys), order


Pair = tuple[jax.Array, jax.Array]


def _sort_by_digit(shift: jax.Array, span: Pair, source: Pair, target: Pair, table: Pair) -> tuple[Pair, Pair]:
    """Words and the numbers beside them, those in a span written to the target in the order of one digit; stable.

    The table has two rows of a number for each digit. The first is zero before and after.
    """
    (begin, end), (words, _), (counts, places) = span, source, table

    def digit(i: jax.Array) -> jax.Array:
        return ((_read(words, i) >> shift) & U(DIGITS - 1))[0]

    def tally(state: Any) -> Any:
        i, counts, late, count = state
        counts = _write(counts, late, count)
        own = digit(i)
        return i + U(1), counts, own, _read(counts, own) + U(1)

    def add_up(state: Any) -> Any:  # `jnp.cumsum` takes a tenth of a second to compile
        i, place, counts, places = state
        counts, places = _write(counts, i - U(1), U(0)), _write(places, i, place)
        return i + U(1), place + _read(counts, i), counts, places

    def move(state: Any) -> Any:
        i, places, late, place, moved = state
        places = _write(places, late, place)
        own = digit(i)
        to = _read(places, own)
        moved = tuple(_write(each, to[0], _read(x, i)) for each, x in zip(moved, source, strict=True))
        return i + U(1), places, own, to + U(1), moved

    def loop(first: Scalar, last: Scalar, body: Callable[[Any], Any], *start: Any) -> Any:
        return _loop(lambda state: state[0] < last, body, (first, *start), (words,))[1:]

    late = U(DIGITS), jnp.zeros(1, U)  # at first, no digit's
    counts, *late = loop(begin, end, tally, counts, *late)
    _, counts, places = loop(U(0), U(DIGITS + 1), add_up, begin.reshape(1), _write(counts, *late), places)
    places, _, _, moved = loop(begin, end, move, places, U(DIGITS), jnp.zeros(1, U), target)
    return moved, (counts, places)


def find_slots(lists: Sequence[Keys], *, canonical: bool = False) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """For each list the slot of each key among the distinct ones of all, `NONE` for padding; and their number, int32.

    Lists may be in any order, and keys may repeat. `canonical`: all lists are known to ascend strictly, with padding
    last.
    """
    padded = list(map(_pad, lists))

    def sort_and_merge(orders: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        ends = list(itertools.accumulate(keys[0].shape[0] for keys in padded))
        keys, order = sort_spans(_keys.join(padded), ends, orders < WEAK)
        slots, count = merge_spans(keys, order, [0, *ends[:-1]])
        return tuple(jnp.split(slots, ends[:-1])), count

    if canonical:
        slots, count = merge(padded)
    else:
        orders = jnp.stack(list(map(_order, padded)))
        slots, count = lax.cond(jnp.all(orders == STRICT), lambda: merge(padded), lambda: sort_and_merge(orders))
    found = (
        jnp.where(_keys.is_padding(keys), NONE, each.astype(np.int32)) for keys, each in zip(padded, slots, strict=True)
    )
    sizes = (keys[0].shape[0] for keys in lists)
    return tuple(each[:size] for each, size in zip(found, sizes, strict=True)), count.astype(np.int32)


def count_before(flags: jax.Array) -> jax.Array:
    """For each flag the number of those before it that are set, `[n]` int32.

    `jnp.cumsum` takes a tenth of a second to compile. In what `jax.export` made for several platforms, jaxlib 0.11 even
    aborts on it.
    """
    size = flags.shape[0]
    steps = lax.pad(flags.astype(np.int32), np.int32(0), [(0, 1, 0)])

    def step(state: Any) -> Any:
        i, count, counts = state
        return i + U(1), count + _read(steps, i), _write(counts, i, count)

    start = U(0), jnp.zeros(1, np.int32), jnp.zeros_like(steps)
    counts: jax.Array = _loop(lambda state: state[0] < U(size), step, start, (steps,))[2]
    return counts[:size]


def lookup_rows(total: jax.Array, lists: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """`lookup` of index rows whose shape is not known: keys of one word if all rows of the sum fit that."""
    if total.shape[0] == 0 or total.shape[1] < 2 or total.dtype.itemsize > 4:
        return lookup(_keys.columns_as_words(total), [_keys.columns_as_words(rows) for rows in lists])
    largest = _largest(total.astype(U))
    fits, size = jnp.ones_like(total, bool, shape=()), jnp.ones_like(total, U, shape=())
    for dim in range(total.shape[1]):
        fits &= largest[dim] < ONES // size  # size * (largest + 1) <= ONES, without overflow
        size = jnp.where(fits, size * (largest[dim] + U(1)), U(1))

    def pack(rows: jax.Array) -> Keys:
        word, inside = jnp.zeros_like(rows, U, shape=rows.shape[:1]), jnp.ones_like(rows, bool, shape=rows.shape[:1])
        for dim in range(rows.shape[1]):
            index = rows[:, dim].astype(U)
            word, inside = word * (largest[dim] + U(1)) + index, inside & (index <= largest[dim])
        return (jnp.where(inside, word, ONES),)

    def lookup_by(keys_of: Callable[[jax.Array], Keys]) -> tuple[jax.Array, ...]:
        return lookup(keys_of(total), [keys_of(rows) for rows in lists])

    return lax.cond(fits, lambda: lookup_by(pack), lambda: lookup_by(_keys.columns_as_words))


def _largest(rows: jax.Array) -> jax.Array:
    """The maximum of each column; XLA's own reduction would take one element after the other."""
    size, ndims = rows.shape
    at_once = max(AT_ONCE // ndims, 1)
    padded = lax.pad(rows, U(0), [(0, at_once, 0), (0, 0, 0)])

    def step(state: Any) -> Any:
        i, most = state
        return i + U(at_once), jnp.maximum(most, lax.dynamic_slice(padded, (i, U(0)), (at_once, ndims)))

    start, end = (U(0), jnp.zeros_like(rows, shape=(at_once, ndims))), U(max(size, 2))  # of `i < 1`, XLA makes no round
    return jnp.max(_loop(lambda state: state[0] < end, step, start, (rows,))[1], axis=0)


def lookup(total: Keys, lists: Sequence[Keys]) -> tuple[jax.Array, ...]:
    """For each list the place of each key in an ascending one, `NONE` where it is not there.

    By `jnp.searchsorted`; but if the list ascends too, by a walk along both, which takes a tenth of the time.
    """
    table = _pad(total)

    def lookup_in_order(keys: Keys) -> jax.Array:
        size, padded = keys[0].shape[0], _pad(keys)
        return lax.cond(
            _order(padded) >= WEAK, lambda: _walk(table, padded)[:size], lambda: _search(table, padded)[:size]
        )

    return tuple(map(lookup_in_order, lists))


def _walk(table: Keys, keys: Keys) -> jax.Array:
    """The place of each key in a table, if both ascend and end with what `_pad` adds."""
    block = max(BLOCK // len(keys), 2)
    nse, size = (each[0].shape[0] - MARGIN for each in (table, keys))

    def more(i: jax.Array, place: jax.Array) -> jax.Array:
        return (i < U(size)) & (place < U(nse))

    def step(state: Any) -> Any:
        i, place, places = state
        key, entry = _read_key(keys, i), _read_key(table, place)
        places = _write(places, i, jnp.where(_keys.is_equal(key, entry), place, U(NONE)))
        return i + (~_keys.is_less(entry, key)).astype(U), place + _keys.is_less(entry, key).astype(U), places

    def look(state: Any) -> tuple[jax.Array, jax.Array]:
        """Whether a block of the table lies before the key, and whether both have the same block."""
        i, place, _ = state
        blocks = (tuple(_read(word, at, block) for word in each) for each, at in ((table, place), (keys, i)))
        next_to_last, last = (_read_key(table, place + U(block - k)) for k in (2, 1))
        # Of rows that repeat, which are padding, the first is to be found.
        same = jnp.all(_keys.is_equal(*blocks)) & _keys.is_less(next_to_last, last)
        return _keys.is_less(last, _read_key(keys, i)), same

    def take_block(state: Any) -> Any:
        before, _ = look(state)
        i, place, places = state
        places = _write(places, i, place + np.arange(block, dtype=U))  # overwritten later if the block is skipped
        return i + jnp.where(before, U(0), U(block)), place + U(block), places

    def body(state: Any) -> Any:
        worth = lambda state: more(*state[:2]) & functools.reduce(operator.or_, look(state))  # noqa: E731
        return _repeat(step, lax.while_loop(worth, take_block, state), [keys])

    start = U(0), U(0), jnp.full_like(keys[0], U(NONE))
    places = _loop(lambda state: more(*state[:2]), body, start, keys)[2]
    return jnp.where(places < U(nse), places.astype(np.int32), NONE)


def _search(table: Keys, keys: Keys) -> jax.Array:
    """The place of each key in a table that ascends and ends with what `_pad` adds."""
    place = jnp.searchsorted(table[0], keys[0]) if len(keys) == 1 else _bisect(table, keys)
    inside = place < table[0].shape[0] - MARGIN
    found = inside & _keys.is_equal(tuple(take(word, place) for word in table), keys)
    return jnp.where(found, place.astype(np.int32), NONE)


def _bisect(table: Keys, keys: Keys) -> jax.Array:
    """`jnp.searchsorted` for keys of several words."""

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) >> U(1)
        less = (low < high) & _keys.is_less(tuple(take(word, middle) for word in table), keys)
        return jnp.where(less, middle + U(1), low), jnp.where(less, high, middle)

    size = table[0].shape[0]
    start = pvary_alike((jnp.zeros_like(keys[0]), jnp.full_like(keys[0], U(size)), table))[:2]
    return lax.fori_loop(0, size.bit_length(), halve, start)[0]
