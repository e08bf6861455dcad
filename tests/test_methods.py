"""All platforms' methods, run on the CPU: the same unions and sums, bit for bit, and those of a plain reference."""

from functools import cache, partial

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from jax_sparse_grad import _keys, _tree, _union
from jax_sparse_grad._primitives import NONE
from jax_sparse_grad._types import Form, Order
from meshes import mesh_of
from methods import OTHERS, jit_for
from samples import is_entry, random_values, union_indices

pytestmark = pytest.mark.usefixtures("merges")

SIZES = (20, 13, 9, 16, 5)  # of the operands, so that few compilations serve all data
SIDE = 30  # cells are drawn from so many
SHAPES = {
    "one word": (5, 6),
    "two words": (2**31 - 1, 2**31 - 1),
    "three words": (2**31 - 1,) * 3,
    "a scalar": (),
}
OVERLAPS = ["none", "half", "all", "blocks"]


def cells_of(rng, overlap, counts):
    """Cells of each operand, sorted and unique."""
    most = SIDE // len(counts) if overlap == "none" else SIDE
    counts = [min(count, most) for count in counts]
    if overlap == "none":
        parts = np.array_split(rng.permutation(SIDE), len(counts))
        return [np.sort(part[:count]) for part, count in zip(parts, counts, strict=True)]
    if overlap == "all":
        cells = rng.permutation(SIDE)
        return [np.sort(cells[:count]) for count in counts]
    if overlap == "blocks":
        starts = rng.permutation(len(counts)) * SIDE // len(counts)
        return [np.arange(start, min(start + count, SIDE)) for start, count in zip(starts, counts, strict=True)]
    return [np.sort(rng.choice(SIDE, count, replace=False)) for count in counts]


def rows_of(cells, shape):
    """The index rows of cells, in order, spread so that every word decides for some of them."""
    if not shape:
        return np.zeros((len(cells), 0), np.int32)
    digits = np.stack(np.unravel_index(np.asarray(cells, int), (5, 6)[: len(shape)] if len(shape) < 3 else (2, 3, 5)))
    return (digits.T * (1 if shape == (5, 6) else 2**24)).astype(np.int32)


@st.composite
def operands(draw, shape, sizes, canonical=False):
    """Index rows of operands: in any order, with duplicates and padding anywhere, unless canonical."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    limit = min(1, SIDE) if not shape else SIDE
    counts = [draw(st.sampled_from([0, 1, size // 2, size])) for size in sizes]
    lists = cells_of(rng, draw(st.sampled_from(OVERLAPS)), [min(count, limit) for count in counts])
    in_order = canonical or draw(st.booleans())
    result = []
    for cells, size in zip(lists, sizes, strict=True):
        cells = cells % limit if not shape else cells
        place = np.arange(len(cells))
        if not in_order:
            again = rng.choice(cells, rng.integers(0, size - len(cells) + 1)) if len(cells) else cells
            cells = rng.permutation(np.concatenate([cells, again]))
            place = np.sort(rng.choice(size, len(cells), replace=False))
        rows = np.tile(np.array(shape, np.int32).reshape(1, -1), (size, 1))
        rows[place] = rows_of(cells, shape)
        result.append(rows)
    if shape or not in_order:
        return tuple(result)
    return tuple(rows[:1] if canonical else rows for rows in result)  # a scalar has no padding


@cache
def uniting(method, shape, nse, order=Order.UNKNOWN, joined=None, tree=True):
    """`(indices, union, total)` of operands and their values, by a platform's method; and the slots of all entries."""
    form = Form(nse, order if joined is None else Order.ANY, joined)

    def run(rows, values):
        result = _union.unite_and_add(form, _keys.space_of(shape, np.int32), rows, values, tree=tree)
        return result, _tree.slots_of(result[1])

    return jit_for(method, run)


def check(shape, rows, nse, **options):
    """All methods agree, and with the plain reference."""
    rng = np.random.default_rng(0)
    values = tuple(random_values(rng, each.shape[:1]) for each in rows)
    parts = tuple(np.split(np.concatenate(values), np.cumsum(options.get("joined") or ())[:-1]))
    values = parts if "joined" in options else values
    expected, slots = uniting("cpu", shape, nse, **options)(rows, values)
    check_plainly(shape, rows, values, nse, *expected, slots)
    for method in OTHERS:
        found, _ = uniting(method, shape, nse, **options)(rows, values)
        if options.get("tree", True):
            chex.assert_trees_all_equal(found, expected)
        chex.assert_trees_all_equal((found[0], found[1].nnz, found[2]), (expected[0], expected[1].nnz, expected[2]))


def check_plainly(shape, rows, values, nse, indices, union, total, found):
    """Against sets of rows, and a loop over the entries."""
    cells = union_indices(*rows, shape=shape)
    padding = np.tile(np.array(shape, np.int32).reshape(1, -1), (max(nse - len(cells), 0), 1))
    np.testing.assert_array_equal(indices, np.concatenate([cells, padding])[:nse])
    assert int(union.nnz) == len(cells)
    place = {tuple(cell): k for k, cell in enumerate(cells.tolist())}
    entries = np.concatenate(rows)
    inside = is_entry(entries, shape)
    slots = [place[tuple(row)] if is_in else NONE for row, is_in in zip(entries.tolist(), inside, strict=True)]
    sums = np.zeros(max(nse, len(cells)), np.float32)
    for slot, value in zip(slots, np.concatenate(values), strict=True):
        if slot != NONE:
            sums[slot] += value
    np.testing.assert_array_equal(total, sums[:nse] if len(cells) <= nse else np.full(nse, np.nan, np.float32))
    if union.placements:
        np.testing.assert_array_equal(np.minimum(np.concatenate(found), nse), np.minimum(slots, nse))


few = hypothesis.settings(max_examples=25)


@pytest.mark.slow(but="shape1-35")
@few
@hypothesis.given(st.data())
@pytest.mark.parametrize(("shape", "nse"), [*((shape, SIDE + 5) for shape in SHAPES.values()), (SHAPES["one word"], 7)])
def test_two_operands(shape, nse, data):
    check(shape, data.draw(operands(shape, SIZES[:2])), nse if shape else 1)


@pytest.mark.slow
@few
@hypothesis.given(st.data())
def test_keys_of_64_bits(data):
    with jax.enable_x64(True):
        shape = SHAPES["two words"]
        rows = data.draw(operands(shape, SIZES[:2]))
        space = _keys.space_of(shape, np.int32)
        assert space.layout.dtype == np.uint64
        assert len(space.layout.words) == 1
        check(shape, rows, SIDE + 4)


@pytest.mark.slow(but="1")
@few
@hypothesis.given(st.data())
@pytest.mark.parametrize("count", [1, 3, 4])
def test_one_operand_and_trees(count, data):
    shape = SHAPES["one word"]
    check(shape, data.draw(operands(shape, SIZES[:count])), SIDE + 5)


@pytest.mark.slow(but="2")
@few
@hypothesis.given(st.data())
@pytest.mark.parametrize("count", [2, 4])
def test_operands_that_are_promised_to_be_sorted(count, data):
    shape = SHAPES["two words"]
    check(shape, data.draw(operands(shape, SIZES[:count], canonical=True)), SIDE + 5, order=Order.CANONICAL)


@pytest.mark.slow
@few
@hypothesis.given(st.data())
def test_operands_in_one_list(data):
    shape = SHAPES["one word"]
    rows = data.draw(operands(shape, SIZES[:3]))
    check(shape, (np.concatenate(rows),), SIDE + 5, joined=SIZES[:3])
    check(shape, (np.concatenate(rows),), SIDE + 5, joined=SIZES[:3], tree=False)


@pytest.mark.slow
@few
@hypothesis.given(st.data())
@pytest.mark.parametrize(("shape", "nse"), [(SHAPES["two words"], 60), (SHAPES["one word"], 7)])  # more than all, few
def test_sums_that_serve_once(shape, nse, data):
    check(shape, data.draw(operands(shape, SIZES[:3])), nse, tree=False)


@pytest.mark.slow(but="sizes3")
@pytest.mark.parametrize("sizes", [(0, 0), (0, 4), (1, 0), (1, 1)])
def test_nothing_and_almost_nothing(sizes):
    rows = tuple(rows_of(np.arange(size), (5, 6)) for size in sizes)
    check((5, 6), rows, 3)


KINDS = {
    "int8": (np.int8, ()),
    "bfloat16": (jnp.bfloat16, ()),
    "complex64": (np.complex64, ()),
    "dense": (np.float32, (3,)),
    "int4": (jnp.int4, ()),
}


@pytest.mark.slow(but="True-dense")
@pytest.mark.parametrize(
    ("tree", "kind"),
    # Without a tree, one that a sort on a TPU carries, and one that it cannot carry: see `_tpu._fits_a_sort`.
    [*((True, kind) for kind in KINDS), (False, "bfloat16"), (False, "complex64")],
)
def test_values_of_any_kind(rng, tree, kind):
    shape, (dtype, dense) = SHAPES["one word"], KINDS[kind]
    rows = tuple(rows_of(rng.permutation(rng.choice(SIDE, size)), shape) for size in SIZES[:2])
    values = tuple((random_values(rng, (size, *dense), np.int32) // 3).astype(dtype) for size in SIZES[:2])
    results = [uniting(method, shape, SIDE, tree=tree)(rows, values)[0][2] for method in ("cpu", *OTHERS)]
    assert results[0].dtype == dtype
    for total in results[1:]:
        chex.assert_trees_all_equal(total, results[0])


@pytest.mark.slow(but="both-tpu")
@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)], ids=["both", "values", "rows"])
def test_batches(rng, method, axes):
    shape = SHAPES["one word"]
    batch = [[rows_of(rng.choice(SIDE, size), shape) for size in SIZES[:2]] for _ in range(3)]
    batch[0] = [np.unique(rows, axis=0)[np.arange(len(rows)) % len(np.unique(rows, axis=0))] for rows in batch[0]]
    values = [[random_values(rng, size) for size in SIZES[:2]] for _ in range(3)]
    take = tuple(
        tuple(map(np.stack, zip(*each, strict=True))) if axis == 0 else tuple(each[0])
        for each, axis in zip((batch, values), axes, strict=True)
    )

    def add(rows, values):
        form = Form(SIDE + 5, Order.UNKNOWN)
        return _union.unite_and_add(form, _keys.space_of(shape, np.int32), rows, values, tree=True)

    mapped = jit_for(method, jax.vmap(add, axes))(*take)
    for k in range(3):
        one, _ = uniting("cpu", shape, SIDE + 5)(
            tuple(batch[k if axes[0] == 0 else 0]), tuple(values[k if axes[1] == 0 else 0])
        )
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, k=k: np.asarray(leaf)[k], mapped), one)


@pytest.mark.parametrize("method", OTHERS)
def test_under_shard_map(rng, method):
    shape, devices = SHAPES["one word"], 4
    mesh = mesh_of((devices,))
    batch = [[rows_of(rng.choice(SIDE, size), shape) for size in SIZES[:2]] for _ in range(devices)]
    values = [[random_values(rng, size) for size in SIZES[:2]] for _ in range(devices)]
    take = [tuple(map(np.concatenate, zip(*each, strict=True))) for each in (batch, values)]

    def add(rows, values):
        form = Form(SIDE + 5, Order.UNKNOWN)
        result = _union.unite_and_add(form, _keys.space_of(shape, np.int32), rows, values, tree=True)
        return jax.tree.map(lambda leaf: leaf[None], result)

    spec = PartitionSpec("rows")
    mapped = jit_for(method, jax.shard_map(add, mesh=mesh, in_specs=spec, out_specs=spec))(*take)
    for k in range(devices):
        one, _ = uniting("cpu", shape, SIDE + 5)(tuple(batch[k]), tuple(values[k]))
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, k=k: np.asarray(leaf)[k], mapped), one)


@cache
def locating(method, shape, known):
    def run(total, rows, counts):
        return _union.locate(total, rows, counts, _keys.space_of(shape, np.int32) if known else None)

    return jit_for(method, run)


@pytest.mark.slow(but="shape1-with a shape")
@few
@hypothesis.given(st.data())
@pytest.mark.parametrize("known", [True, False], ids=["with a shape", "without"])
@pytest.mark.parametrize("shape", [SHAPES["one word"], SHAPES["two words"], SHAPES["three words"]])
def test_entries_are_located_alike(shape, known, data):
    rows = data.draw(operands(shape, SIZES[:2]))
    union = union_indices(*rows, shape=shape)
    total = np.tile(np.array([shape], np.int32), (SIDE + 3, 1))
    kept = union[:: data.draw(st.sampled_from([1, 3]))]
    total[: len(kept)] = kept
    counts = tuple(np.int32(data.draw(st.sampled_from([size, size // 2]))) for size in SIZES[:2])
    expected = locating("cpu", shape, known)(total, rows, counts)
    place = {tuple(cell): k for k, cell in enumerate(total.tolist())}
    for placement, each, count in zip(expected.placements, rows, counts, strict=True):
        inside = is_entry(each, shape)
        for k, (row, position) in enumerate(zip(each.tolist(), placement.positions.tolist(), strict=True)):
            if inside[k]:
                assert position == (place.get(tuple(row), NONE) if k < count else NONE)
    for method in OTHERS:
        chex.assert_trees_all_equal(locating(method, shape, known)(total, rows, counts), expected)


@pytest.mark.slow
def test_a_method_is_chosen_by_what_is_compiled_for():
    """Not by where it is compiled: one program traced for each, from the same jaxpr."""
    add = partial(_union.unite_and_add, Form(SIDE, Order.UNKNOWN), _keys.space_of((5, 6), np.int32))
    rows = tuple(np.zeros((size, 2), np.int32) for size in SIZES[:2])
    values = tuple(np.zeros(size, np.float32) for size in SIZES[:2])
    traced = jax.jit(add).trace(rows, values)
    texts = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda", "rocm", "tpu")
    }
    conditionals = {platform: text.count("stablehlo.case") for platform, text in texts.items()}
    assert conditionals["tpu"] == 0
    assert conditionals["cuda"] == conditionals["rocm"] == 1
    assert conditionals["cpu"] >= 1
    assert "ui64" in texts["cpu"]  # packed sort keys
    assert not any("ui64" in texts[platform] for platform in ("cuda", "rocm", "tpu"))
