"""The symbolic phase and the sum that it is for: one seam, behind which each platform has its own method.

    CPU     `_cpu.py`   merges in tiles, in conditionals that ask whether the operands are in order
    GPU     `_gpu.py`   merges by ranks, in one such conditional
    others  `_tpu.py`   one sort of everything

All of them give the same indices, positions, sources and counts, bit for bit. A sum that serves once takes its values
along: a CPU adds them in the branch that united the operands, so that no union leaves it, and a TPU sorts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_sparse_grad import _cpu, _gpu, _tpu
from jax_sparse_grad._keys import Space
from jax_sparse_grad._numeric import add_values, poison_overflow
from jax_sparse_grad._primitives import NONE, iota_like
from jax_sparse_grad._seam import Seam
from jax_sparse_grad._threshold import is_kept
from jax_sparse_grad._tree import Placement, Then, UnionTree, restrict, skeleton, with_orders, without_tree
from jax_sparse_grad._types import Arrays, Form, Limit, Order


def unite(form: Form, space: Space, operands: Arrays) -> tuple[jax.Array, UnionTree]:
    """The indices of a sum of index rows `[nnz_k, ndims]`, and the union, for keeping.

    Its structure does not depend on what is found out about the operands, so that a loop can carry plans that it makes.
    """
    return _sum(_Static(form, tree=True), (space, operands, None))[0]


def unite_and_add(
    form: Form,
    space: Space,
    operands: Arrays,
    values: Arrays,
    limit: Limit | None = None,
    *,
    tree: bool = False,
) -> tuple[jax.Array, UnionTree, jax.Array]:
    """The indices, the union and the values of a sum; without `tree`, the union is its number of entries alone.

    With a limit, a threshold, only the slots that it keeps stay. Which these are has no derivative.
    """
    selection = None if limit is None else jax.lax.stop_gradient((values, limit))
    (indices, union), total = _sum(_Static(form, tree), (space, operands, selection), values)
    return indices, union, total


class _Static(NamedTuple):
    form: Form
    tree: bool


Data = tuple[Space, Arrays, tuple[Arrays, Limit] | None]
"""The space, the operands, and what a threshold looks at: values and the limit."""


Sum = tuple[tuple[jax.Array, UnionTree], jax.Array | None]
"""What depends on the patterns, and the values, if any."""


class Platform(Protocol):
    """What the room of a platform offers."""

    def unite(
        self,
        operands: Arrays,
        space: Space,
        form: Form,
        then: Then[Sum],
        values: Arrays = ...,
        *,
        tree: bool = ...,
    ) -> Sum: ...

    def locate(
        self, rows: Sequence[jax.Array], space: Space | None, then: Callable[[Arrays], tuple[Placement, ...]]
    ) -> tuple[Placement, ...]: ...

    def placement_of(self, positions: jax.Array, nse: int) -> Placement: ...


def _sum_on(platform: Platform, static: _Static, data: Data, values: Arrays, separate: bool) -> Sum:
    form, tree = static
    space, operands, selection = data
    roomy = form if selection is None else form._replace(nse=sum(rows.shape[0] for rows in operands))

    def then(indices: jax.Array, union: UnionTree, total: jax.Array | None) -> Sum:
        if selection is not None:
            indices, union = restrict(indices, union, is_kept(union, *selection), space, form.nse)
        if not values:
            total = None
        elif total is None or separate or selection is not None:
            total = add_values(union, values, in_passing=True)
        else:
            total = poison_overflow(total, union.nnz, sum(rows.shape[0] for rows in operands))
        if not tree:
            union = without_tree(union)
        return (indices, union if form.order is Order.CANONICAL else with_orders(union)), total

    carried = () if separate or selection is not None else values
    needs_tree = tree or (bool(values) and not carried)
    return platform.unite(operands, space, roomy, then, carried, tree=needs_tree)


def _shapes_of_sum(
    static: _Static, data: Data, values: Arrays
) -> tuple[tuple[jax.ShapeDtypeStruct, UnionTree], jax.ShapeDtypeStruct | None]:
    form = static.form
    _, operands, _ = data
    ndim = operands[0].shape[1]
    indices = jax.ShapeDtypeStruct((form.nse, ndim), operands[0].dtype)
    union = skeleton(tuple(rows.shape[0] for rows in operands), ndim, form)
    if not static.tree:
        union = without_tree(union)
    total = jax.ShapeDtypeStruct((form.nse, *values[0].shape[1:]), values[0].dtype) if values else None
    return (indices, union), total


def _tangent_of_sum(kept: tuple[jax.Array, UnionTree], tangents: Arrays) -> jax.Array:
    return add_values(kept[1], tangents)


def _select(static: _Static, kept: tuple[jax.Array, UnionTree]) -> tuple[jax.Array, UnionTree]:
    indices, union = kept
    return indices, union if static.tree else without_tree(union)


_PLATFORMS: dict[str, Platform] = {"cpu": _cpu, "gpu": _gpu, "tpu": _tpu}

_sum = Seam(
    {name: partial(_sum_on, room) for name, room in _PLATFORMS.items()},
    _shapes_of_sum,
    _tangent_of_sum,
    keep=lambda static: static._replace(tree=True),
    select=_select,
)


def locate(total: jax.Array, operands: Arrays, counts: tuple[ArrayLike, ...], space: Space | None) -> UnionTree:
    """The places of the first `counts` index rows of each operand among those of a sum, as a union.

    Without a space, the width of keys is found from the data. Rows behind `counts`, and those that are not found, have
    no place.
    """
    union: UnionTree = _locate(None, (total, operands, counts, space))[0]
    return union


Location = tuple[jax.Array, Arrays, tuple[ArrayLike, ...], Space | None]
"""The rows of the sum and of the operands, the number of those that count, and the space."""


def _locate_on(platform: Platform, _: None, data: Location, __: tuple[()], ___: bool) -> tuple[UnionTree, None]:
    total, operands, counts, space = data
    nse = total.shape[0]

    def place(positions: Arrays) -> tuple[Placement, ...]:
        kept = (jnp.where(iota_like(each) < count, each, NONE) for each, count in zip(positions, counts, strict=True))
        return tuple(platform.placement_of(each, nse) for each in kept)

    placements = platform.locate((total, *operands), space, place)
    return UnionTree(jnp.full_like(placements[0].positions, nse, shape=()), (None,) * len(operands), placements), None


def _shapes_of_location(_: None, data: Location, __: tuple[()]) -> tuple[UnionTree, None]:
    total, operands, _counts, _space = data
    sizes = tuple(rows.shape[0] for rows in operands)
    return skeleton(sizes, total.shape[1], Form(total.shape[0], Order.UNKNOWN)), None


_locate = Seam({name: partial(_locate_on, room) for name, room in _PLATFORMS.items()}, _shapes_of_location)
