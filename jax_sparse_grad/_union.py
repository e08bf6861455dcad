"""The symbolic phase and the sum that it is for: one seam, behind which each platform has its own method.

    CPU     `_cpu.py`   merges in tiles, in conditionals that ask whether the operands are in order
    GPU     `_gpu.py`   merges by ranks, in one such conditional
    others  `_tpu.py`   one sort of everything

All of them give the same indices, positions, sources and counts, bit for bit. A sum that serves once takes its values
along: a CPU adds them in the branch that united the operands, so that no union leaves it, and a TPU sorts them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_sparse_grad import _cpu, _gpu, _tpu
from jax_sparse_grad._keys import Space
from jax_sparse_grad._numeric import add_in_passing, add_values, poison_overflow
from jax_sparse_grad._primitives import NONE, iota_like
from jax_sparse_grad._seam import Seam
from jax_sparse_grad._tree import Form, Placement, Union, restrict, skeleton, with_orders, without_tree

Values = tuple[jax.Array, ...]


def unite(form: Form, space: Space, operands: tuple[jax.Array, ...]) -> tuple[jax.Array, Union]:
    """The indices of a sum of index rows `[nnz_k, ndims]`, and the union, for keeping.

    Its structure does not depend on what is found out about the operands, so that a loop can carry plans that it makes.
    """
    return _sum(_Static(form, tree=True), (space, operands, None))[0]


def unite_and_add(
    form: Form,
    space: Space,
    operands: tuple[jax.Array, ...],
    values: Values,
    keep: Callable[..., jax.Array] | None = None,
    limit: Any = None,
    *,
    tree: bool = False,
) -> tuple[jax.Array, Union, jax.Array]:
    """The indices, the union and the values of a sum; without `tree`, the union is its number of entries alone.

    With `keep`, a module-level function, only the slots that `keep(union, values, limit)` selects stay. It has no
    derivative.
    """
    selection = None if keep is None else jax.lax.stop_gradient((values, limit))
    (indices, union), total = _sum(_Static(form, tree, keep), (space, operands, selection), values)
    return indices, union, total


class _Static(NamedTuple):
    form: Form
    tree: bool
    keep: Callable[..., jax.Array] | None = None


Data = tuple[Space, tuple[jax.Array, ...], Any]
"""The space, the operands, and what a selection depends on."""


def _sum_on(
    platform: Any, static: _Static, data: Data, values: Values, separate: bool
) -> tuple[tuple[jax.Array, Union], Any]:
    form, tree, keep = static
    space, operands, selection = data
    roomy = form if keep is None else form._replace(nse=sum(rows.shape[0] for rows in operands))

    def then(indices: jax.Array, union: Union, total: jax.Array | None) -> tuple[tuple[jax.Array, Union], Any]:
        if keep is not None:
            indices, union = restrict(indices, union, keep(union, *selection), space, form.nse)
        if not values:
            total = None
        elif total is None or separate or keep is not None:
            total = add_in_passing(union, values)
        else:
            total = poison_overflow(total, union.nnz, sum(rows.shape[0] for rows in operands))
        if not tree:
            union = without_tree(union)
        return (indices, union if form.promised else with_orders(union)), total

    if platform is _cpu:
        return _cpu.unite(operands, space, roomy, lambda indices, union: then(indices, union, None))
    carried = () if separate or keep is not None else values
    needs_tree = tree or (bool(values) and not carried)
    return platform.unite(operands, space, roomy, then, carried, tree=needs_tree)


def _shapes_of_sum(static: _Static, data: Data, values: Values) -> tuple[tuple[Any, Any], Any]:
    form = static.form
    _, operands, _ = data
    ndim = operands[0].shape[1]
    indices = jax.ShapeDtypeStruct((form.nse, ndim), operands[0].dtype)
    union = skeleton(tuple(rows.shape[0] for rows in operands), ndim, form)
    if not static.tree:
        union = without_tree(union)
    total = jax.ShapeDtypeStruct((form.nse, *values[0].shape[1:]), values[0].dtype) if values else None
    return (indices, union), total


def _tangent_of_sum(kept: tuple[jax.Array, Union], tangents: Values) -> jax.Array:
    return add_values(kept[1], tangents)


def _select(static: _Static, kept: tuple[jax.Array, Union]) -> tuple[jax.Array, Union]:
    indices, union = kept
    return indices, union if static.tree else without_tree(union)


_PLATFORMS = {"cpu": _cpu, "gpu": _gpu, "tpu": _tpu}

_sum = Seam(
    {name: partial(_sum_on, room) for name, room in _PLATFORMS.items()},
    _shapes_of_sum,
    _tangent_of_sum,
    keep=lambda static: static._replace(tree=True),
    select=_select,
)


def locate(
    total: jax.Array, operands: tuple[jax.Array, ...], counts: tuple[ArrayLike, ...], space: Space | None
) -> Union:
    """The places of the first `counts` index rows of each operand among those of a sum, as a union.

    Without a space, the width of keys is found from the data. Rows behind `counts`, and those that are not found, have
    no place.
    """
    return _locate(None, (total, operands, counts, space))[0]


def _locate_on(platform: Any, _: None, data: Any, __: tuple[()], ___: bool) -> tuple[Union, None]:
    total, operands, counts, space = data
    nse = total.shape[0]

    def place(positions: tuple[jax.Array, ...]) -> tuple[Placement, ...]:
        kept = (jnp.where(iota_like(each) < count, each, NONE) for each, count in zip(positions, counts, strict=True))
        return tuple(platform.placement_of(each, nse) for each in kept)

    placements = platform.locate((total, *operands), space, place)
    return Union(jnp.full_like(placements[0].positions, nse, shape=()), (None,) * len(operands), placements), None


def _shapes_of_location(_: None, data: Any, __: tuple[()]) -> tuple[Union, None]:
    total, operands, _counts, _space = data
    sizes = tuple(rows.shape[0] for rows in operands)
    return skeleton(sizes, total.shape[1], Form(total.shape[0], canonical=None)), None


_locate = Seam({name: partial(_locate_on, room) for name, room in _PLATFORMS.items()}, _shapes_of_location)
