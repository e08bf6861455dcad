"""The symbolic phase against brute force: unions of sorted lists, and where every entry went."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sparse_grad import _cpu, _keys, _tree, _union
from jax_sparse_grad._primitives import NONE
from jax_sparse_grad._types import Form, Order
from samples import is_entry, random_coo, union_indices

pytestmark = pytest.mark.usefixtures("merges")

SMALL, LARGE = (6, 7), (2**31 - 1, 2**31 - 1)
LENGTH = 16  # of every operand, so that a few compilations serve all data
FORMS = {
    "sorted": {},
    "duplicates": {"duplicates": 4},
    "shuffled": {"shuffled": True},
    "shuffled duplicates, padding anywhere": {"shuffled": True, "duplicates": 4},
}


def operands(rng, shape, form, nnz):
    """Index lists that share cells, drawn in a 6 x 7 corner of the shape, and padding up to the common length."""
    result = []
    for count in nnz:
        indices, _ = random_coo(rng, SMALL, count, **(FORMS[form] if count else {}))
        rows = np.tile(np.array([shape], np.int32), (LENGTH, 1))
        place = np.arange(len(indices))
        if "anywhere" in form:
            place = np.sort(rng.choice(LENGTH, len(indices), replace=False))
        rows[place] = indices
        result.append(rows)
    return result


@partial(jax.jit, static_argnums=(1, 2))
def unite(operands, shape, nse):
    form = Form(nse, Order.UNKNOWN)
    return _union.unite(form, _keys.space_of(shape, operands[0].dtype), tuple(operands))


def check_placement(placement, rows, slots, shape):
    """`positions` names the slot of each row; `sources` a row of each slot, the first in `order` if several."""
    n, m = len(rows), len(slots)
    inside = is_entry(slots, shape)
    table = {tuple(slot): k for k, slot in enumerate(slots.tolist()) if inside[k]}
    expected = np.array([table.get(tuple(row), m) for row in rows.tolist()], int).reshape(-1)
    np.testing.assert_array_equal(np.minimum(placement.positions, m), expected)
    counts = np.bincount(expected, minlength=m + 1)[:m]
    unique = bool(placement.unique) if placement.unique is not None else True
    assert not unique or bool(np.all(counts <= 1))
    order = np.arange(n) if unique else np.asarray(placement.order)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    in_order = expected[order]
    if not unique:
        assert np.all(np.diff(in_order[in_order < m]) >= 0)
    first = {slot: k for k, slot in reversed(list(enumerate(in_order.tolist())))}
    np.testing.assert_array_equal(
        np.minimum(placement.sources, n), np.array([first.get(slot, n) for slot in range(m)], int).reshape(-1)
    )


@pytest.mark.slow(but="duplicates-nnz2-shape1-35")
@pytest.mark.parametrize("nse", [2 * LENGTH, 2 * LENGTH + 3])
@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("nnz", [(9, 9), (9, 0), (1, 12), (0, 0)])
@pytest.mark.parametrize("form", FORMS)
def test_two_operands(rng, shape, form, nnz, nse):
    rows = operands(rng, shape, form, nnz)
    expected = union_indices(*rows, shape=shape)
    indices, union = unite(rows, shape, nse)
    assert int(union.nnz) == len(expected)
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    np.testing.assert_array_equal(indices[len(expected) :], np.tile([shape], (nse - len(expected), 1)))
    for placement, operand in zip(union.placements, rows, strict=True):
        check_placement(placement, operand, np.asarray(indices), shape)


@pytest.mark.slow(but="duplicates-3")
@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_some_operands_in_a_tree(rng, form, count):
    rows = operands(rng, SMALL, form, [7] * count)
    expected = union_indices(*rows, shape=SMALL)
    indices, union = unite(rows, SMALL, count * LENGTH)
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    assert int(union.nnz) == len(expected)

    def depth(node):
        return 0 if node is None else 1 + max(map(depth, node.children))

    assert depth(union) == max(1, int(np.ceil(np.log2(count))))


@pytest.mark.parametrize("form", FORMS)
def test_many_operands_in_one_list(rng, form):
    count = _tree.MOST_IN_TREE + 1
    rows = operands(rng, SMALL, form, [7] * count)
    expected = union_indices(*rows, shape=SMALL)
    joined, sizes = _tree.join(tuple(rows), Order.UNKNOWN)
    assert sizes == (LENGTH,) * count
    space = _keys.space_of(SMALL, np.int32)
    form = Form(count * LENGTH, Order.ANY, sizes)
    indices, union = jax.jit(lambda *lists: _union.unite(form, space, lists))(*joined)
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    assert int(union.nnz) == len(expected)
    assert _tree.entry_counts(union) == (sizes,)
    check_placement(union.placements[0], np.concatenate(rows), np.asarray(indices), SMALL)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_operands_in_one_list_are_separated_if_each_is_unique(rng, batch):
    lists = [np.stack([operands(rng, SMALL, "shuffled", (7,))[0] for _ in range(2)]) for _ in range(3)]
    rows = [each if batch else each[0] for each in lists]
    form = Form(3 * LENGTH, Order.ANY, (LENGTH,) * 3)

    def unite(rows):
        return _union.unite(form, _keys.space_of(SMALL, rows.dtype), (rows,))

    def separated(rows):
        indices, union = jax.jit(jax.vmap(unite) if batch else unite)(np.concatenate(rows, axis=-2))
        return indices, _tree.separate(union)

    indices, union = separated(rows)
    assert union.children == (None,) * 3
    for placement, each in zip(union.placements, rows, strict=True):
        for k in np.ndindex(batch):
            check_placement(jax.tree.map(lambda leaf, k=k: leaf[k], placement), each[k], np.asarray(indices)[k], SMALL)
    rows[1] = np.where(np.arange(LENGTH)[:, None] == 3, rows[1][..., :1, :], rows[1])  # one entry twice, in all batches
    _, union = separated(rows)
    assert union.children == (_tree.Joined((LENGTH,) * 3),)


def test_operands_are_joined_if_they_are_many_or_short(monkeypatch):
    monkeypatch.setattr(_tree, "SORTED_BELOW", 100)

    def sizes(count, length, order=Order.UNKNOWN, batch=()):
        operands = tuple(np.zeros((*batch, length, 2), np.int32) for _ in range(count))
        return _tree.join(operands, order)[1]

    assert sizes(2, 100) == (100, 100)
    assert sizes(2, 100, batch=(3,)) == (100, 100)
    assert sizes(2, 101) is None
    assert sizes(4, 300) == (300,) * 4
    assert sizes(4, 301) is None
    assert sizes(2, 1, order=Order.CANONICAL) is None
    assert sizes(_tree.MOST_IN_TREE, 10**4) is None
    assert sizes(_tree.MOST_IN_TREE + 1, 10**4, order=Order.CANONICAL) is not None
    assert sizes(1, 1) is None
    other = np.zeros((3, 5, 2), np.int32), np.zeros((1, 5, 2), np.int32)
    assert _tree.join(other, False) == (other, None)


@pytest.mark.parametrize("form", FORMS)
def test_trimmed_tree_keeps_what_is_in_use(rng, form):
    rows = operands(rng, SMALL, form, [5, 6, 7])
    expected = union_indices(*rows, shape=SMALL)
    _, union = unite(rows, SMALL, 3 * LENGTH)
    trimmed = _tree.fit(union, len(expected), iter([(LENGTH,)] * 3))
    inner_slots = union_indices(*rows[:2], shape=SMALL)
    inner = trimmed.children[0]
    check_placement(trimmed.placements[0], inner_slots, expected, SMALL)
    check_placement(trimmed.placements[1], rows[2], expected, SMALL)
    for placement, operand in zip(inner.placements, rows[:2], strict=True):
        check_placement(placement, operand, inner_slots, SMALL)


def test_overflow_keeps_the_first_slots_and_the_true_count(rng):
    rows = operands(rng, SMALL, "shuffled", [9, 9])
    expected = union_indices(*rows, shape=SMALL)
    indices, union = unite(rows, SMALL, 4)
    assert int(union.nnz) == len(expected) > 4
    np.testing.assert_array_equal(indices, expected[:4])


def test_restriction_drops_slots_and_renumbers_the_rest(rng):
    rows = operands(rng, SMALL, "shuffled duplicates, padding anywhere", [9, 9])
    full = union_indices(*rows, shape=SMALL)
    indices, union = unite(rows, SMALL, len(full))
    keep = rng.random(len(full)) < 0.5
    restrict = jax.jit(_tree.restrict, static_argnums=4)
    indices, restricted = restrict(indices, union, keep, _keys.space_of(SMALL, np.int32), len(full))
    count = int(keep.sum())
    assert int(restricted.nnz) == count
    slots = np.concatenate([full[keep], np.tile([SMALL], (len(full) - count, 1))])
    np.testing.assert_array_equal(indices, slots)
    for placement, operand in zip(restricted.placements, rows, strict=True):
        check_placement(placement, operand, slots, SMALL)


@pytest.mark.slow(but="positions2")
@pytest.mark.parametrize("positions", [[0, 2, 4, 5], [4, 0, 9, 2], [1, 1, 0, 1], [9, 3, 9, 3], []])
def test_placement_of_known_positions(positions):
    nse = 5
    slots = np.arange(nse).reshape(-1, 1)
    rows = np.where(np.array(positions, int) < nse, positions, nse).reshape(-1, 1)
    known = jnp.array([position if position < nse else NONE for position in positions], jnp.int32)
    placement = jax.jit(_cpu.placement_of, static_argnums=1)(known, nse)
    check_placement(placement, rows, slots, (nse,))
