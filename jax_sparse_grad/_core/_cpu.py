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

    keys of each operand
       | ascending?   else a radix sort of that operand alone
       | merge        two ascending lists, in which keys may repeat
    slots             for each entry the number of its key among the distinct ones in order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad._core import _keys
from jax_sparse_grad._core._keys import ONES, Keys
from jax_sparse_grad._primitives import NONE, vary_alike

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


def _pad(keys: Keys, size: int) -> Keys:
    return tuple(lax.pad(word, ONES, [(0, size, 0)]) for word in keys)


def _ascends(keys: Keys, *, strictly: bool) -> jax.Array:
    """Whether each key but the first is larger than the one before it, or at least as large; padding may repeat."""
    before, after = tuple(word[:-1] for word in keys), tuple(word[1:] for word in keys)
    bad = ~(_keys.is_less(before, after) | _keys.is_padding(after)) if strictly else _keys.is_less(after, before)
    return ~jnp.any(bad)


def merge(a: Keys, b: Keys) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The slots of the keys of two ascending lists among their distinct keys (uint32), and how many of these there are.

    Keys may repeat within a list. Slots of padding mean nothing.
    """
    sizes = a[0].shape[0], b[0].shape[0]
    spare = BLOCK + STEPS + 1
    a, b = _pad(a, spare), _pad(b, spare)  # so that no look is out of bounds
    ahead = np.arange(BLOCK, dtype=U)

    def more(i: jax.Array, j: jax.Array) -> jax.Array:
        return (_read(a[0], i)[0] != ONES) | (_read(b[0], j)[0] != ONES)

    # Only keys that do not repeat are copied in blocks.
    a_unique, b_unique = _ascends(a, strictly=True), _ascends(b, strictly=True)

    def look(i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Whether a block of a lies before b, one of b before a, or both are the same."""
        (a0, b0), (a1, b1) = ((_read_key(a, i + U(k)), _read_key(b, j + U(k))) for k in (0, BLOCK - 1))
        blocks = (tuple(_read(word, at, BLOCK) for word in keys) for keys, at in ((a, i), (b, j)))
        same = _keys.is_equal(a0, b0) & ~_keys.is_padding(a1) & jnp.all(_keys.is_equal(*blocks))
        return _keys.is_less(a1, b0) & a_unique, _keys.is_less(b1, a0) & b_unique, same & a_unique & b_unique

    def take_block(state: Any) -> Any:
        i, j, k, a_slots, b_slots = state
        of_a, of_b, _ = look(i, j)
        # What is not taken is overwritten later.
        a_slots, b_slots = _write(a_slots, i, k + ahead), _write(b_slots, j, k + ahead)
        step = U(BLOCK)
        return i + jnp.where(of_b, U(0), step), j + jnp.where(of_a, U(0), step), k + step, a_slots, b_slots

    def take_one(state: Any) -> Any:
        i, j, k, a_slots, b_slots = state
        x, y = _read_key(a, i), _read_key(b, j)
        of_a, of_b = ~_keys.is_less(y, x), ~_keys.is_less(x, y)
        low = tuple(jnp.where(of_a, p, q) for p, q in zip(x, y, strict=True))
        a_slots, b_slots = _write(a_slots, i, k), _write(b_slots, j, k)
        i, j = i + of_a.astype(U), j + of_b.astype(U)
        repeats = _keys.is_equal(_read_key(a, i), low) | _keys.is_equal(_read_key(b, j), low)
        return i, j, k + (~repeats).astype(U), a_slots, b_slots

    def take_some(state: Any) -> Any:
        state = lax.while_loop(
            lambda state: more(state[0], state[1]) & jnp.any(jnp.stack(look(state[0], state[1]))), take_block, state
        )
        return lax.fori_loop(0, STEPS // 2, lambda _, state: take_one(take_one(state)), state)

    start = (U(0), U(0), U(0), *(jnp.zeros(size + spare, U) for size in sizes))
    *_, count, a_slots, b_slots = _loop(lambda state: more(state[0], state[1]), take_some, start, a)
    return (a_slots[: sizes[0]], b_slots[: sizes[1]]), count


def argsort(keys: Keys) -> jax.Array:
    """The stable order of keys, uint32, by a radix sort; that of keys that ascend already is found by a look."""
    size = keys[0].shape[0]
    unsorted = jnp.where(_ascends(keys, strictly=False), U(0), U(size))
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


def find_slots(lists: Sequence[Keys], *, sorted_: bool = False) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """For each list the slot of each key among the distinct keys of all, `NONE` for padding; and their number, int32.

    Lists may be in any order, and keys may repeat. `sorted_`: all ascend, which need not be looked at.
    """
    sizes = [keys[0].shape[0] for keys in lists]
    joined = _keys.join(lists)
    if not sum(sizes):
        return tuple(keys[0].astype(np.int32) for keys in lists), jnp.zeros_like(joined[0], np.int32, shape=())

    def sort_all() -> tuple[tuple[jax.Array, ...], jax.Array]:
        numbers, count = _number(joined, argsort(joined))
        return tuple(jnp.split(numbers, np.cumsum(sizes)[:-1])), count

    def merge_two() -> tuple[tuple[jax.Array, ...], jax.Array]:
        return merge(*lists)

    def sort_and_merge() -> tuple[tuple[jax.Array, ...], jax.Array]:
        orders = [argsort(keys) for keys in lists]
        in_order = [tuple(word[order] for word in keys) for keys, order in zip(lists, orders, strict=True)]
        slots, count = merge(*in_order)
        back = (jnp.zeros_like(each).at[order].set(each) for each, order in zip(slots, orders, strict=True))
        return tuple(back), count

    if len(lists) != 2 or 0 in sizes:
        slots, count = sort_all()
    elif sorted_:
        slots, count = merge_two()
    else:
        ascend = [_ascends(keys, strictly=False) for keys in lists]
        slots, count = lax.cond(ascend[0] & ascend[1], merge_two, sort_and_merge)
    placed = (
        jnp.where(_keys.is_padding(keys), NONE, each.astype(np.int32)) for keys, each in zip(lists, slots, strict=True)
    )
    return tuple(placed), count.astype(np.int32)


def locate(total: Keys, lists: Sequence[Keys]) -> tuple[jax.Array, ...]:
    """For each list the place of each key in an ascending one, `NONE` where it is not there and for padding."""
    return tuple(_locate(total, keys) for keys in lists)


def _locate(total: Keys, keys: Keys) -> jax.Array:
    """A walk along both lists if both ascend, a binary search otherwise.

    Not `jnp.searchsorted`, which goes through memory in each of its rounds: this takes a tenth of its time.
    """
    nse, size = total[0].shape[0], keys[0].shape[0]
    if 0 in (nse, size):
        return jnp.full_like(keys[0], NONE, np.int32, shape=(size,))
    table = _pad(total, 1)

    def walk() -> jax.Array:
        def step(state: Any) -> Any:
            i, place, places = state
            places = _write(places, i, place)
            behind = _keys.is_less(_read_key(table, place), _read_key(keys, i)) & (place < U(nse))
            return i + (~behind).astype(U), place + behind.astype(U), places

        start = (U(0), U(0), jnp.zeros(size, U))
        return _loop(lambda state: state[0] < U(size), step, start, keys)[2]

    def bisect() -> jax.Array:
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

        return _loop(lambda state: state[0] < U(size), step, (U(0), jnp.zeros(size, U)), keys)[1]

    places = lax.cond(_ascends(keys, strictly=False), walk, bisect)
    found = _keys.is_equal(tuple(word[places] for word in table), keys) & ~_keys.is_padding(keys)
    return jnp.where(found & (places < U(nse)), places.astype(np.int32), NONE)
