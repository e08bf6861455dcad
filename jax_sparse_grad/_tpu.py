"""The symbolic phase by sorting, for XLA:TPU: one sort carries all that is needed, and nothing is asked about order.

    keys      of all operands, one list after the other; beside each its entry number, or its value
       | sort
    runs      of equal keys. Of the entries of one operand, or of several in a row, those with equal keys stand side by
       |      side: the first of them is where a mask begins
       | cumsum of these firsts
    slots     in every node of the tree, from the one sorted list
       | scatter, of unique indices
    positions, sources, sums

A TPU gathers 4 KB for an element, so binary searches are out of the question; its sorts are networks of vector
operations. What they cost is compile time: seconds to tens of seconds for each on two cores, growing with its length
and with the arrays it carries.

With a sort of its own (`in_pairs`), this is also the GPU's method for operands that are not in order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _keys
from jax_sparse_grad._keys import Keys, Space
from jax_sparse_grad._primitives import NONE, gather, iota_like, join_rows, scatter, split_rows
from jax_sparse_grad._runs import sum_runs
from jax_sparse_grad._tree import Joined, Placement, Then, UnionTree, halves, inner_nse
from jax_sparse_grad._types import Form, Order

T = TypeVar("T")


class Sort(Protocol):
    """Sorts keys by their digits, and what belongs to them.

    Returns the sorted digits, where they come from (`[n]` int32), and the payload. Equal keys keep their order if
    `stable`; otherwise nobody will look at where they come from.
    """

    def __call__(
        self, digits: Keys, payload: tuple[jax.Array, ...], *, stable: bool
    ) -> tuple[Keys, jax.Array, tuple[jax.Array, ...]]: ...


def at_once(
    digits: Keys, payload: tuple[jax.Array, ...], *, stable: bool
) -> tuple[Keys, jax.Array, tuple[jax.Array, ...]]:
    """One sort of everything; entry numbers as a last digit take the place of stability, and are a result."""
    order = jnp.arange(digits[0].shape[0], dtype=jnp.int32)
    keys = (*digits, order) if stable else digits
    results = lax.sort((*keys, *payload), num_keys=len(keys), is_stable=False)
    return results[: len(digits)], results[len(digits)] if stable else order, results[len(keys) :]


def in_pairs(
    digits: Keys, payload: tuple[jax.Array, ...], *, stable: bool
) -> tuple[Keys, jax.Array, tuple[jax.Array, ...]]:
    """Sorts of one digit and one payload each, for XLA:GPU; all else is gathered."""
    del stable
    order = _keys.argsort_in_pairs(digits)
    return tuple(digit[order] for digit in digits), order, tuple(each[order] for each in payload)


def unite(
    operands: tuple[jax.Array, ...],
    space: Space,
    form: Form,
    then: Then[T],
    values: tuple[jax.Array, ...] = (),
    *,
    tree: bool = True,
    sort: Sort = at_once,
) -> T:
    """`then(indices, union, total)` of the sorted, padded union of index rows, in whatever order these are.

    Without `tree`, the union is its number of entries alone. `total` are the sums of `values`, None if none were given.
    """
    sizes = tuple(rows.shape[0] for rows in operands)
    keys = _keys.join(_keys.ravel(rows, space) for rows in operands)
    listed = join_rows(values) if values else None
    carries = listed is not None and _fits_a_sort(listed)
    payload = (_encode(listed),) if listed is not None and carries else ()
    digits, order, carried = sort(_keys.digits_of(keys), payload, stable=tree or (listed is not None and not carries))
    words = _keys.words_of(digits, space.layout.dtype)
    entries = _Sorted(order, _keys.starts_run(words), _keys.is_padding(words))
    total = None
    if listed is not None:
        in_order = _decode(carried[0], listed.dtype) if carries else gather(listed, order, np.zeros((), listed.dtype))
        runs = jnp.where(entries.padding, NONE, jnp.cumsum(entries.starts, dtype=jnp.int32) - 1)
        total = sum_runs(in_order, runs)
    close = _close_gaps_by_sort if sort is at_once and (total is None or carries) else _close_gaps
    heads, total = close(entries.starts, words, total, form.nse)
    indices = _keys.unravel(heads, space, operands[0].dtype)
    if not tree:
        return then(indices, UnionTree(jnp.sum(entries.starts, dtype=jnp.int32), (), ()), total)
    return then(indices, _unite_node(entries, _List(0, sizes), form.nse, len(space.sizes), form)[0], total)


def _close_gaps(starts: jax.Array, words: Keys, total: jax.Array | None, nse: int) -> tuple[Keys, jax.Array | None]:
    """The keys and sums at the starts of runs, in `nse` slots; padding and zeros behind them."""
    slots = _within(starts, jnp.cumsum(starts, dtype=jnp.int32) - 1, nse)
    heads = tuple(scatter(nse, slots, word, fill=_keys.all_ones(word.dtype)) for word in words)
    if total is None:
        return heads, None
    if jnp.iscomplexobj(total):  # XLA:TPU cannot scatter complex128
        return heads, lax.complex(*(scatter(nse, slots, part, fill=0) for part in (total.real, total.imag)))
    return heads, scatter(nse, slots, total, fill=np.zeros((), total.dtype))


def _close_gaps_by_sort(
    starts: jax.Array, words: Keys, total: jax.Array | None, nse: int
) -> tuple[Keys, jax.Array | None]:
    """The same by another sort, of one word more than the keys."""
    heads = tuple(jnp.where(starts, word, _keys.all_ones(word.dtype)) for word in words)
    payload = [] if total is None else [_encode(total)]
    digits, _, carried = at_once(_keys.digits_of(heads), tuple(payload), stable=False)
    heads = tuple(_fit(word, nse, _keys.all_ones(word.dtype)) for word in _keys.words_of(digits, words[0].dtype))
    if total is None:
        return heads, None
    sums = _fit(_decode(carried[0], total.dtype), nse, 0)
    return heads, jnp.where(_keys.is_padding(heads), np.zeros((), total.dtype), sums)


def _fit(array: jax.Array, size: int, fill: Any) -> jax.Array:
    spare = jnp.full_like(array, fill, shape=(max(size - array.shape[0], 0),))
    return jnp.concatenate([array[:size], spare])


class _Sorted(NamedTuple):
    """The sorted list of all entries: where each comes from, whether it begins a run, whether it is padding."""

    order: jax.Array
    starts: jax.Array
    padding: jax.Array

    def members(self, begin: int, size: int) -> jax.Array:
        """Which are of the `size` entries from entry `begin` on."""
        return (self.order >= begin) & (self.order < begin + size)

    def first_of(self, members: jax.Array) -> jax.Array:
        """The first member of each run; members stand side by side."""
        return _keys.starts_run_of(members, self.starts, self.padding)


class _List(NamedTuple):
    """Some operands in a row: the number of their first entry, and their sizes."""

    begin: int
    sizes: tuple[int, ...]


class _Node(NamedTuple):
    """A child in the sorted list: its members, the first of each run of them, and the number of each member's entry.

    An entry of a union is a slot.
    """

    union: UnionTree | None
    members: jax.Array
    first: jax.Array
    numbers: jax.Array
    size: int


def _unite_node(entries: _Sorted, operands: _List, nse: int, ndim: int, form: Form) -> tuple[UnionTree, _Node]:
    """The union of some operands, as if they were sorted alone."""
    children = [_child(entries, part, ndim, form) for part in _parts(operands)]
    members = functools.reduce(jnp.logical_or, (child.members for child in children))
    first = entries.first_of(members)
    numbers = jnp.cumsum(first, dtype=jnp.int32) - 1
    slots = _within(members & ~entries.padding, numbers, nse)
    placements = [_place(child, slots, nse) for child in children]
    if form.order is not Order.CANONICAL and any(child.union is None for child in children):
        unique = functools.reduce(
            jnp.logical_and,
            (jnp.all(~child.members | entries.padding | child.first) for child in children if child.union is None),
        )
        placements = [
            _with_order(child, slots, nse, unique, place) for child, place in zip(children, placements, strict=True)
        ]
    inner = tuple(Joined(form.joined) if form.joined is not None else child.union for child in children)
    union = UnionTree(jnp.sum(first, dtype=jnp.int32), inner, tuple(placements))
    return union, _Node(union, members, first, numbers, nse)


def _parts(operands: _List) -> list[_List]:
    parts, begin = [], operands.begin
    for sizes in halves(operands.sizes):
        parts.append(_List(begin, tuple(sizes)))
        begin += sum(sizes)
    return parts


def _child(entries: _Sorted, operands: _List, ndim: int, form: Form) -> _Node:
    if len(operands.sizes) > 1:
        return _unite_node(entries, operands, inner_nse(operands.sizes, ndim), ndim, form)[1]
    size = sum(operands.sizes)  # of one operand
    members = entries.members(operands.begin, size)
    return _Node(None, members, entries.first_of(members), entries.order - operands.begin, size)


def _place(child: _Node, slots: jax.Array, nse: int) -> Placement:
    """Where the entries of a child are, given the slot of each member in the parent."""
    # Every entry of an operand has its own place here; of a union's, only the first of each run counts.
    counted = child.members if child.union is None else child.first
    positions = scatter(child.size, _within(counted, child.numbers, child.size), slots, fill=NONE)
    sources = scatter(nse, jnp.where(child.first, slots, NONE), child.numbers, fill=NONE)
    return Placement(positions, sources)


def _with_order(child: _Node, slots: jax.Array, nse: int, unique: jax.Array, placement: Placement) -> Placement:
    """The same with what duplicates need: see `Placement`."""
    order = entries = iota_like(placement.positions)
    sources = placement.sources
    if child.union is None:
        ranks = jnp.cumsum(child.members, dtype=jnp.int32) - 1
        by_rank = scatter(child.size, jnp.where(child.members, ranks, NONE), child.numbers, fill=NONE)
        order = jnp.where(unique, entries, by_rank)
        ranked = scatter(nse, jnp.where(child.first, slots, NONE), ranks, fill=NONE)
        sources = jnp.where(unique, sources, ranked)
    return placement._replace(sources=sources, unique=unique, order=order)


def _within(flags: jax.Array, numbers: jax.Array, size: int) -> jax.Array:
    """The numbers below `size` where flagged, `NONE` elsewhere."""
    return jnp.where(flags & (numbers < size), numbers, NONE)


def _fits_a_sort(values: jax.Array) -> bool:
    """Whether a sort can carry values as one word each; others are gathered."""
    return values.ndim == 1 and values.dtype.itemsize <= 4 and _bits(values.dtype) >= 8


def _bits(dtype: np.dtype) -> int:
    kind = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    return kind(dtype).bits


def _encode(values: jax.Array) -> jax.Array:
    unsigned = np.dtype(f"uint{_bits(values.dtype)}")
    return lax.bitcast_convert_type(values, unsigned).astype(np.uint32)


def _decode(words: jax.Array, dtype: np.dtype) -> jax.Array:
    return lax.bitcast_convert_type(words.astype(np.dtype(f"uint{_bits(dtype)}")), dtype)


def locate(rows: Sequence[jax.Array], space: Space | None, then: Callable[[tuple[jax.Array, ...]], T]) -> T:
    """`then(positions)`: for each list of rows but the first, the entry of the first list that is equal to each row.

    `NONE` where none is. Without a space, columns are compared one by one.
    """
    sizes = [each.shape[0] for each in rows]
    keys = _keys.join(_keys.keys_of(each, space) for each in rows)
    digits, order, _ = at_once(_keys.digits_of(keys), (), stable=True)
    words = _keys.words_of(digits, keys[0].dtype)
    starts = _keys.starts_run(words)
    # Entries of the first list come first in each run.
    of_total = starts & (order < sizes[0])
    places = iota_like(order)
    run_has_one = _latest(starts, places) == _latest(of_total, places)
    found = jnp.where(run_has_one & ~_keys.is_padding(words), _latest(of_total, order), NONE)
    everywhere = scatter(sum(sizes), order, found, fill=NONE)
    return then(tuple(split_rows(everywhere, sizes)[1:]))


def _latest(flags: jax.Array, numbers: jax.Array) -> jax.Array:
    """The largest of the flagged numbers so far; they ascend."""
    return lax.cummax(jnp.where(flags, numbers, -1))


def placement_of(positions: jax.Array, nse: int, sort: Sort = at_once) -> Placement:
    """The placement of entries whose slots are known; those without one are at `NONE`."""
    entries = iota_like(positions)
    (digit,), order, _ = sort((positions.astype(jnp.uint32),), (), stable=True)
    slots = digit.astype(jnp.int32)
    starts = jnp.concatenate([jnp.ones(min(1, slots.shape[0]), bool), slots[1:] != slots[:-1]])
    unique = jnp.all(starts | (slots == NONE))
    first = jnp.where(starts, slots, NONE)
    sources = scatter(nse, first, jnp.where(unique, order, entries), fill=NONE)
    return Placement(positions, sources, unique, jnp.where(unique, entries, order))
