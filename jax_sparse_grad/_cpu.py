"""Slots for XLA:CPU, by plain loops.

XLA:CPU compiles a `lax.while_loop` of scalars, `dynamic_slice` and `dynamic_update_slice` into one native function: 4
to 7 ns a step. What to know about such loops:

- Indices are unsigned: for signed ones JAX adds a comparison and a selection to every slice.
- What is carried lies in memory: few scalars, and two steps in a body.
- A body writes before it reads, or XLA copies the whole array. So a count that is read and then written is written in
  the next step.
- No `cond` inside a loop, whose arrays it would copy: an inner loop of none or more rounds takes its place.
- Write unconditionally what a later step overwrites.
- `vmap` would make vectors of the scalars: `sequential_vmap` loops over the batch instead.

    keys of one or two lists
       | two that ascend strictly     a merge
       | else                         a radix sort of each that is out of order, and a merge in which keys may repeat
       | one                          a radix sort, and numbering
    slots                             for each entry the number of its key among the distinct ones in order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _keys
from jax_sparse_grad._batching import vary_alike
from jax_sparse_grad._keys import NONE, ONES, Keys

U = np.uint32

BLOCK = 16  # entries copied at once where one list is behind the other, or both are the same
STEPS = 256  # single steps between two looks for such blocks; 64 take a third longer where there are none
DIGIT = 11  # bits that a pass of the radix sort looks at, at most


def _read(array: jax.Array, index: jax.Array, size: int = 1) -> jax.Array:
    return lax.dynamic_slice(array, (index,), (size,))


def _read_key(keys: Keys, index: jax.Array) -> Keys:
    return tuple(_read(word, index)[0] for word in keys)


def _write(array: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice(array, value.reshape(-1), (index,))


def _loop(more: Callable[[Any], jax.Array], body: Callable[[Any], Any], start: Any, like: Keys) -> Any:
    """`lax.while_loop` whose carry varies over a mesh as the keys do, which `shard_map` demands."""
    return lax.while_loop(more, body, vary_alike((start, like))[0])


def _pad(keys: Keys) -> Keys:
    """The same keys, and padding behind them, so that no look is out of bounds."""
    return tuple(lax.pad(word, ONES, [(0, BLOCK + STEPS, 0)]) for word in keys)


def merge(a: Keys, b: Keys, *, unique: bool) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """The slots of the keys of two ascending lists among their distinct keys (uint32), and how many of these there are.

    Both lists end with what `_pad` adds. Slots of padding mean nothing. `unique`: no key repeats within a list.
    """
    ahead = np.arange(BLOCK, dtype=U)

    def more(i: jax.Array, j: jax.Array) -> jax.Array:
        return (_read(a[0], i)[0] != ONES) | (_read(b[0], j)[0] != ONES)

    def take_one(state: Any) -> Any:
        i, j, k, a_slots, b_slots = state
        x, y = _read_key(a, i), _read_key(b, j)
        a_slots, b_slots = _write(a_slots, i, k), _write(b_slots, j, k)  # what is not taken is overwritten later
        of_a, of_b = ~_keys.is_less(y, x), ~_keys.is_less(x, y)
        i, j = i + of_a.astype(U), j + of_b.astype(U)
        if unique:
            return i, j, k + ((x[0] != ONES) | (y[0] != ONES)).astype(U), a_slots, b_slots
        low = tuple(jnp.where(of_a, p, q) for p, q in zip(x, y, strict=True))
        repeats = _keys.is_equal(_read_key(a, i), low) | _keys.is_equal(_read_key(b, j), low)
        return i, j, k + (~repeats).astype(U), a_slots, b_slots

    def look(i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Whether a block of a lies before b, one of b before a, or both are the same."""
        (a0, b0), (a1, b1) = ((_read_key(a, i + U(k)), _read_key(b, j + U(k))) for k in (0, BLOCK - 1))
        blocks = (tuple(_read(word, at, BLOCK) for word in keys) for keys, at in ((a, i), (b, j)))
        same = _keys.is_equal(a0, b0) & ~_keys.is_padding(a1) & jnp.all(_keys.is_equal(*blocks))
        return _keys.is_less(a1, b0), _keys.is_less(b1, a0), same

    def take_block(state: Any) -> Any:
        i, j, k, a_slots, b_slots = state
        of_a, of_b, _ = look(i, j)
        a_slots, b_slots = _write(a_slots, i, k + ahead), _write(b_slots, j, k + ahead)
        step = U(BLOCK)
        return i + jnp.where(of_b, U(0), step), j + jnp.where(of_a, U(0), step), k + step, a_slots, b_slots

    def take_some(state: Any) -> Any:
        if unique:
            state = lax.while_loop(
                lambda state: more(state[0], state[1]) & jnp.any(jnp.stack(look(state[0], state[1]))), take_block, state
            )
        return lax.fori_loop(0, STEPS // 2, lambda _, state: take_one(take_one(state)), state)

    start = (U(0), U(0), U(0), jnp.zeros_like(a[0]), jnp.zeros_like(b[0]))
    *_, count, a_slots, b_slots = _loop(lambda state: more(state[0], state[1]), take_some, start, a)
    return (a_slots, b_slots), count


def argsort(keys: Keys) -> jax.Array:
    """The stable order of keys, uint32, by a radix sort, which takes no step if they are in order."""
    size = keys[0].shape[0]
    falls = jnp.any(_keys.is_less(tuple(word[1:] for word in keys), tuple(word[:-1] for word in keys)))
    unsorted = jnp.where(falls, U(size), U(0))
    order = jnp.arange(size, dtype=U)
    for k, word in enumerate(reversed(keys)):
        digits = word[order] if k else word
        for shift in range(0, 32, DIGIT):
            digits, order = _sort_by_digit(digits, order, shift, min(DIGIT, 32 - shift), unsorted)
    return order


def _sort_by_digit(
    keys: jax.Array, order: jax.Array, shift: int, bits: int, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The first `count` keys and numbers, stably sorted by some bits of the keys."""

    def digit(i: jax.Array) -> jax.Array:
        return ((_read(keys, i) >> U(shift)) & U((1 << bits) - 1))[0]

    def tally(state: Any) -> Any:
        i, counts, late, number = state
        counts = _write(counts, late, number)
        own = digit(i)
        return i + U(1), counts, own, _read(counts, own) + U(1)

    def place(state: Any) -> Any:
        i, begins, late, number, new_keys, new_order = state
        begins = _write(begins, late, number)
        own = digit(i)
        to = _read(begins, own)
        new_keys, new_order = _write(new_keys, to[0], _read(keys, i)), _write(new_order, to[0], _read(order, i))
        return i + U(1), begins, own, to + U(1), new_keys, new_order

    nowhere = U(1 << bits), jnp.zeros(1, U)  # where what is written late is written first
    start: tuple[Any, ...] = (U(0), jnp.zeros((1 << bits) + 1, U), *nowhere)
    _, counts, late, number = _loop(lambda state: state[0] < count, tally, start, (keys,))
    counts = _write(counts, late, number)[:-1]
    begins = jnp.append(jnp.cumsum(counts, dtype=U) - counts, U(0))
    start = (U(0), begins, *nowhere, keys, order)
    *_, new_keys, new_order = _loop(lambda state: state[0] < count, place, start, (keys,))
    return new_keys, new_order


def _number(keys: Keys, order: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each key its number among the distinct ones (uint32), and how many there are, given their order."""
    size = keys[0].shape[0]

    def step(state: Any) -> Any:
        i, last, number, numbers = state
        at = _read(order, i)[0]
        key = _read_key(keys, at)
        number = number + (~_keys.is_equal(key, last)).astype(U)
        return i + U(1), key, number, _write(numbers, at, number)

    first = _read_key(keys, order[0])
    start = (U(0), first, U(0), jnp.zeros(size, U))
    _, last, number, numbers = _loop(lambda state: state[0] < U(size), step, start, keys)
    return numbers, number + (~_keys.is_padding(last)).astype(U)


def find_slots(lists: Sequence[Keys], *, canonical: bool = False) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """For each of one or two lists the slot of each key among the distinct ones of both, and their number, int32.

    `NONE` for padding. Lists may be in any order, and keys may repeat. `canonical`: all ascend strictly, with padding
    last, which need not be looked at.
    """
    sizes = [keys[0].shape[0] for keys in lists]
    if not sum(sizes):
        return tuple(keys[0].astype(np.int32) for keys in lists), jnp.zeros_like(lists[0][0], np.int32, shape=())
    if 0 in sizes:
        ((alone,), count) = find_slots([_keys.join(lists)])
        return tuple(alone[:size] for size in sizes), count
    slots: tuple[jax.Array, ...]
    if len(lists) == 1:
        numbers, count = _number(lists[0], argsort(lists[0]))
        return (_without_padding(lists[0], numbers),), count.astype(np.int32)
    a, b = map(_pad, lists)

    def merge_all() -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        return merge(a, b, unique=True)

    def sort_first() -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        orders = [argsort(keys) for keys in (a, b)]
        in_order = (tuple(word[order] for word in keys) for keys, order in zip((a, b), orders, strict=True))
        slots, count = merge(*in_order, unique=False)
        a_slots, b_slots = (jnp.zeros_like(x).at[order].set(x) for x, order in zip(slots, orders, strict=True))
        return (a_slots, b_slots), count

    if canonical:
        slots, count = merge_all()
    else:
        ascend = jnp.all(_keys.ascend_strictly(a)) & jnp.all(_keys.ascend_strictly(b))
        slots, count = lax.cond(ascend, merge_all, sort_first)
    found = tuple(_without_padding(keys, each[: keys[0].shape[0]]) for keys, each in zip(lists, slots, strict=True))
    return found, count.astype(np.int32)


def _without_padding(keys: Keys, slots: jax.Array) -> jax.Array:
    return jnp.where(_keys.is_padding(keys), NONE, slots.astype(np.int32))


def locate(total: Keys, lists: Sequence[Keys]) -> tuple[jax.Array, ...]:
    """For each of two lists the place of each key in an ascending one, `NONE` where it is not there.

    One walk along all three, if both lists ascend strictly; else a binary search. Not `jnp.searchsorted`, which goes
    through memory in each of its rounds: the walk takes a tenth of its time.
    """
    nse, sizes = total[0].shape[0], [keys[0].shape[0] for keys in lists]
    table, (a, b) = _pad(total), map(_pad, lists)

    def walk() -> tuple[jax.Array, ...]:
        def step(state: Any) -> Any:
            i, j, place, a_places, b_places = state
            a_places, b_places = _write(a_places, i, place), _write(b_places, j, place)
            key, x, y = _read_key(table, place), _read_key(a, i), _read_key(b, j)
            behind = _keys.is_less(x, key) | _keys.is_less(y, key)
            i = i + (~_keys.is_less(key, x) & (i < U(sizes[0]))).astype(U)
            j = j + (~_keys.is_less(key, y) & (j < U(sizes[1]))).astype(U)
            return i, j, place + (~behind).astype(U), a_places, b_places

        start = (U(0), U(0), U(0), *(jnp.full_like(keys[0], U(nse)) for keys in (a, b)))
        return _loop(lambda s: (s[2] < U(nse)) & ((s[0] < U(sizes[0])) | (s[1] < U(sizes[1]))), step, start, a)[3:]

    def bisect() -> tuple[jax.Array, ...]:
        return tuple(_bisect(table, nse, keys) for keys in (a, b))

    ascend = [jnp.all(_keys.is_less(tuple(x[:-1] for x in keys), tuple(x[1:] for x in keys))) for keys in lists]
    found = lax.cond(ascend[0] & ascend[1], walk, bisect)
    places = []
    for keys, each, size in zip(lists, found, sizes, strict=True):
        place = each[:size]
        is_there = (place < U(nse)) & _keys.is_equal(tuple(word[place] for word in table), keys)
        places.append(jnp.where(is_there, place.astype(np.int32), NONE))
    return tuple(places)


def _bisect(table: Keys, nse: int, keys: Keys) -> jax.Array:
    """The number of the first `nse` keys of a table that are less than each key."""

    def step(state: Any) -> Any:
        i, places = state
        key = _read_key(keys, i)

        def halve(bounds: Any) -> Any:
            low, high = bounds
            middle = (low + high) >> U(1)
            less = _keys.is_less(_read_key(table, middle), key)
            return jnp.where(less, middle + U(1), low), jnp.where(less, high, middle)

        low, _ = _loop(lambda bounds: bounds[0] < bounds[1], halve, (U(0), U(nse)), keys)
        return i + U(1), _write(places, i, low)

    size = keys[0].shape[0]
    places: jax.Array = _loop(lambda state: state[0] < U(size), step, (U(0), jnp.zeros_like(keys[0])), keys)[1]
    return places
