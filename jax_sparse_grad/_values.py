"""The numeric phase: values to their slots, and back.

The slots of all entries are the columns of a sparse matrix S of zeros and ones. A sum of values is S @ values, a
scatter-add for each operand; the gradient with respect to them is its transpose, a gather for each operand.

    place(slots, values)   the sum                             tangents: the same     transpose: gather
    gather(slots, total)   for each entry what its slot holds  tangents: the same     transpose: place

A dense sum is the same: its slots are the index rows, and the dense array is an operand whose every cell is a slot.

JAX has these rules for its own scatters and gathers. Here they are a primitive nevertheless, because

- concrete arrays go through numpy, in derivatives too, so that calls outside of `jit` compile nothing for a new length;
- casts, signs and weights stand inside it for the same reason;
- a sum that has overflowed is poisoned in tangents and cotangents too;
- empty batches work, and `checkify` does not take a slot that is out of bounds for an error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from jax_sparse_grad import _keys
from jax_sparse_grad._auto_axes import on_auto_mesh
from jax_sparse_grad._batching import pvary_alike
from jax_sparse_grad._concrete import allow_transfers, is_concrete, on_cpu, put_like, read
from jax_sparse_grad._platforms import Levels, map_levels, move_axes, with_batch_axes

Arrays = tuple[jax.Array, ...]


class _Static(NamedTuple):
    """What is static in a sum of K operands.

    sizes: the number of slots along each dimension: `(nse,)`, or the shape that index rows refer to.
    dtype: of the sum; products with weights have it too.
    dtypes: of the values of each operand.
    negated: whether each operand is subtracted.
    dense: how many operands, the first ones, have a value for every slot, and no slots of their own.
    weighted: whether each operand has a weight.
    gathers: whether values come from the slots instead of going there.
    levels: for each `vmap`, the outermost last, which of `nnz` and the slots have its axis. All values and weights do.
    """

    sizes: tuple[int, ...]
    dtype: np.dtype
    dtypes: tuple[np.dtype, ...]
    negated: tuple[bool, ...]
    dense: int = 0
    weighted: bool = False
    gathers: bool = False
    levels: Levels = ()

    @property
    def arity(self) -> int:
        """The number of operands."""
        return len(self.dtypes)

    @property
    def integers(self) -> int:
        """The number of arrays that are not differentiated: `nnz` and the slots."""
        return 1 + self.arity - self.dense

    def split(self, operands: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any], Sequence[Any]]:
        """`nnz`, slots, weights, and what is placed or gathered from."""
        end = self.integers + self.arity * self.weighted
        return operands[0], operands[1 : self.integers], operands[self.integers : end], operands[end:]

    def overflows(self, nnz: Any) -> Any:
        """Whether there are more entries than slots."""
        return nnz > self.sizes[0]


def place(
    nse: int,
    nnz: jax.Array,
    slots: Sequence[jax.Array],
    values: Sequence[jax.Array],
    *,
    dtype: np.dtype,
    negated: Sequence[bool] | None = None,
    weights: Sequence[Any] = (),
) -> jax.Array:
    """The sum of values `[n_k, *dense]` at slots `[n_k]`: `[nse, *dense]`, of which the first `nnz` are in use.

    Operand after operand, and each in its stored order; floats below 32 bits in float32, rounded once. Slots out of
    bounds are dropped. If `nnz` exceeds `nse`, all values are poison: NaN, or the extreme that `jnp.take` fills with.
    `weights` are scalars of the dtype, by which the values of each operand are multiplied.
    """
    static = _static((nse,), dtype, values, negated, weights)
    return _bind(static, nnz, *slots, *weights, *values)[0]


def place_onto(
    dense: Sequence[jax.Array],
    rows: Sequence[jax.Array],
    values: Sequence[jax.Array],
    *,
    sizes: tuple[int, ...],
    dtype: np.dtype,
    negated: Sequence[bool] | None = None,
    weights: Sequence[Any] = (),
) -> jax.Array:
    """The sum of dense arrays `[*sizes, *dense]`, at least one, and of values `[n_k, *dense]` at index rows.

    `negated` and `weights` are those of the dense arrays, followed by those of the others.
    """
    static = _static(sizes, dtype, (*dense, *values), negated, weights)._replace(dense=len(dense))
    return _bind(static, np.int32(0), *rows, *weights, *dense, *values)[0]


def gather(
    nnz: jax.Array | np.int32, slots: Sequence[jax.Array], total: jax.Array, dtypes: Sequence[np.dtype] | None = None
) -> Arrays:
    """What each entry's slot of `total [nse, *dense]` holds, 0 where it has none: the transpose of `place`.

    `dtypes` are those of the results for each list of slots, by default that of `total`.
    """
    kinds = tuple(np.dtype(each) for each in dtypes or [total.dtype] * len(slots))
    static = _Static((total.shape[0],), np.dtype(total.dtype), kinds, (False,) * len(slots), gathers=True)
    return tuple(_bind(static, nnz, *slots, total))


def _static(sizes: tuple[int, ...], dtype: Any, values: Sequence[Any], negated: Any, weights: Any) -> _Static:
    dtypes = tuple(np.dtype(each.dtype) for each in values)
    return _Static(sizes, np.dtype(dtype), dtypes, tuple(negated or [False] * len(values)), weighted=bool(weights))


def _bind(static: _Static, *operands: Any) -> Sequence[jax.Array]:
    results: Sequence[jax.Array] = _values.bind(*pvary_alike(operands), static=static)
    return results


# --- By XLA ---

MOST_SCATTERS: dict[str | None, int] = {"cpu": 4, "tpu": 0}
"""How many operands can have a scatter of their own. If there are more, one scatter adds them all.

On a TPU, a scatter that follows another one runs element by element. XLA:CPU takes two seconds to compile 50 of them.
On a GPU, one scatter adds in any order, so each operand has its own.
"""


def _place(
    static: _Static,
    platform: str | None,
    nnz: jax.Array,
    slots: Sequence[jax.Array],
    weights: Sequence[Any],
    values: Sequence[jax.Array],
) -> Sequence[jax.Array]:
    dtype, wide = static.dtype, _accumulator_dtype(static.dtype)
    terms = [
        scale(each.astype(dtype), weight, negated).astype(wide)
        for each, weight, negated in zip(values, weights, static.negated, strict=True)
    ]
    dense, terms = terms[: static.dense], terms[static.dense :]
    if dense:
        return [_scatter_add(static.sizes, platform, functools.reduce(jnp.add, dense), slots, terms).astype(dtype)]

    def finish(total: jax.Array, poison: Any) -> jax.Array:
        """The sum with zeros in slots that are not in use, poisoned if it has overflowed."""
        used = jnp.arange(static.sizes[0], dtype=np.int32) < nnz
        total = jnp.where(used.reshape(-1, *[1] * (total.ndim - 1)), total, np.zeros((), total.dtype))
        return jnp.where(static.overflows(nnz), poison.astype(total.dtype), total)

    # x + -0.0 is x for every x. NaN plus anything is NaN: so the sum may start from poison.
    poison, last = _poison(dtype), platform == "tpu" or not jnp.issubdtype(dtype, jnp.inexact)
    start = pvary_alike((jnp.full((*static.sizes, *terms[0].shape[1:]), -np.zeros((), wide)), terms[0]))[0]
    total = _scatter_add(static.sizes, platform, start if last else finish(start, poison), slots, terms).astype(dtype)
    return [finish(total, poison) if last else total]


def _scatter_add(
    sizes: tuple[int, ...],
    platform: str | None,
    total: jax.Array,
    slots: Sequence[jax.Array],
    terms: Sequence[jax.Array],
) -> jax.Array:
    """The array with terms added at slots. For TPUs, parts of complex numbers are added separately."""
    if platform == "tpu" and jnp.iscomplexobj(total):
        parts = (jnp.real, jnp.imag)
        return lax.complex(*(_scatter_add(sizes, platform, of(total), slots, list(map(of, terms))) for of in parts))
    if len(terms) > MOST_SCATTERS.get(platform, len(terms)):
        slots, terms = [jnp.concatenate(slots)], [jnp.concatenate(terms)]
    for slot, term in zip(slots, terms, strict=True):
        if sizes:
            total = total.at[_index(slot)].add(term, mode="drop", wrap_negative_indices=False)
        else:
            total = total + jnp.sum(term, axis=0, dtype=total.dtype)
    return total


def _gather(
    static: _Static, nnz: jax.Array, slots: Sequence[jax.Array], weights: Sequence[Any], x: Sequence[jax.Array]
) -> Sequence[jax.Array]:
    (total,) = x
    zero, dense_axes = np.zeros((), total.dtype), [1] * (total.ndim - len(static.sizes))
    gathered = [total] * static.dense
    for slot in slots:
        if 0 in static.sizes or not static.sizes:
            own = total if not static.sizes else zero
            gathered.append(jnp.broadcast_to(own, (slot.shape[0], *total.shape[len(static.sizes) :])))
        else:
            gathered.append(total.at[_index(slot)].get(mode="clip", wrap_negative_indices=False))
    results = []
    for k, each in enumerate(gathered):
        each = scale(each, weights[k], static.negated[k])
        if not static.dense:
            each = jnp.where(static.overflows(nnz), _poison(total.dtype), each)
        if k >= static.dense:
            inside = _is_inside(slots[k - static.dense], static.sizes)
            each = jnp.where(inside.reshape(-1, *dense_axes), each, zero)
        results.append(_cast(each, static.dtypes[k]))
    return results


def _index(slot: jax.Array) -> Any:
    """What to index an array of slots by: the slots, or the columns of index rows."""
    if slot.dtype.itemsize < 4:
        slot = slot.astype(np.int32)
    return slot if slot.ndim == 1 else tuple(slot[:, dim] for dim in range(slot.shape[1]))


def _is_inside(slot: Any, sizes: tuple[int, ...]) -> Any:
    """Whether there is such a slot, `[...]` bool; by numpy if the slots are numpy's."""
    return _keys.is_entry(slot if slot.ndim == 2 else slot[:, None], sizes)


def scale(values: Any, weight: Any, negated: bool) -> Any:
    """Values times their weight, if there is one, with the sign that they have in the sum."""
    values = values if weight is None else values * weight
    return -values if negated else values


def _cast(values: jax.Array, dtype: np.dtype) -> jax.Array:
    if jnp.iscomplexobj(values) and not jnp.issubdtype(dtype, jnp.complexfloating):
        values = values.real
    return values.astype(dtype)


def _accumulator_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype to sum in: sums of narrow floats would stop growing, and few platforms add integers of half a byte."""
    if jnp.issubdtype(dtype, jnp.integer):
        # The lowest bits of the wide sum are the narrow sum.
        return np.dtype(np.int8) if jnp.iinfo(dtype).bits < 8 else dtype
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def _poison(dtype: np.dtype) -> Any:
    """What `jnp.take(mode="fill")` fills with."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.asarray(np.nan, dtype)
    limits = jnp.iinfo(dtype)
    return np.asarray(limits.min if jnp.issubdtype(dtype, jnp.signedinteger) else limits.max, dtype)


@partial(jax.jit, static_argnums=(0, 1))
def _run(static: _Static, platform: str | None, operands: Arrays) -> Sequence[jax.Array]:
    shapes = _shapes(static, operands)
    if any(0 in each.shape[: len(static.levels)] for each in shapes):  # JAX cannot gather over an empty batch
        zeros = [jnp.zeros(each.shape, each.dtype) for each in shapes]
        return pvary_alike((zeros, operands))[0]

    def run(*operands: jax.Array) -> Sequence[jax.Array]:
        nnz, slots, weights, x = static.split(operands)
        weights = weights or [None] * static.arity
        return (
            _gather(static, nnz, slots, weights, x)
            if static.gathers
            else _place(static, platform, nnz, slots, weights, x)
        )

    results: Sequence[jax.Array] = map_levels(run, static.levels)(*operands)
    return results


def _lower(platform: str | None, *operands: jax.Array, static: _Static) -> Sequence[jax.Array]:
    return _run(static, platform, operands)


# --- By numpy ---


def _execute(*operands: Any, static: _Static) -> Sequence[jax.Array]:
    with jax.disable_jit(False), allow_transfers():
        if not on_cpu(operands):
            return jax.jit(partial(_values.bind, static=static))(*map(on_auto_mesh, operands))
        results: Sequence[jax.Array] = _on_host(static, [np.asarray(each) for each in operands])
        placed: Sequence[jax.Array] = put_like(operands[::-1], results, len(static.levels))
        return placed


def _on_host(static: _Static, operands: Sequence[Any]) -> list[Any]:
    """The same in numpy, with the slots of all batches in one list, and behind them one for what has no slot."""
    _, _, weights, x = static.split(operands)
    batch = x[0].shape[: len(static.levels)]
    count, cells, dense = math.prod(batch), math.prod(static.sizes), _dense_of(static, x)
    nnz, *slots = (
        _broadcast_batch(with_batch_axes(each, k, static.levels), batch)
        for k, each in enumerate(operands[: static.integers])
    )
    flat = [_flatten(slot, static.sizes, cells) for slot in slots]
    weights = [each.reshape(count, *[1] * (1 + len(dense))) for each in weights] or [None] * static.arity
    x = [each.reshape(count, -1 if each.size else _rows_of(static, each), *dense) for each in x]
    with np.errstate(all="ignore"):  # as XLA
        results = (
            _gather_on_host(static, flat, weights, x) if static.gathers else _place_on_host(static, flat, weights, x)
        )
        if not static.dense:
            overflows = static.overflows(nnz)
            for each, slot in zip(results, flat, strict=False):
                if not static.gathers:
                    each[np.arange(cells) >= nnz[:, None]] = 0
                    each[overflows] = _poison(each.dtype)
                elif overflows.any():
                    each[overflows[:, None] & (slot < count * cells)] = _poison(each.dtype)
    shapes = _shapes(static, operands)
    return [_cast(each, like.dtype).reshape(like.shape) for each, like in zip(results, shapes, strict=True)]


def _broadcast_batch(array: Any, batch: tuple[int, ...]) -> Any:
    own = array.shape[len(batch) :]
    return np.broadcast_to(array, (*batch, *own)).reshape(math.prod(batch), *own)


def _rows_of(static: _Static, array: Any) -> int:
    """The number of rows of an array without elements, whose number of batches may be 0."""
    depth = len(static.levels)
    is_dense = array.shape[depth : depth + len(static.sizes)] == static.sizes and (static.gathers or static.dense)
    return math.prod(static.sizes) if is_dense else array.shape[depth]


def _flatten(slot: Any, sizes: tuple[int, ...], cells: int) -> Any:
    """Slots `[batches, n]` as numbers of rows among those of all batches."""
    count = slot.shape[0]
    rows = slot[..., None] if slot.ndim == 2 else slot
    inside, number = _keys.is_entry(rows, sizes), np.zeros(rows.shape[:-1], np.int64)
    for dim, size in enumerate(sizes):
        number = number * size + rows[..., dim]
    return np.where(inside, number + np.arange(count)[:, None] * cells, count * cells)


def _place_on_host(static: _Static, slots: Sequence[Any], weights: Sequence[Any], x: Sequence[Any]) -> list[Any]:
    dtype, wide = static.dtype, _accumulator_dtype(static.dtype)
    terms = [
        scale(each.astype(dtype), weight, negated).astype(wide)
        for each, weight, negated in zip(x, weights, static.negated, strict=True)
    ]
    count, dense = x[0].shape[0], x[-1].shape[2:]
    cells, width = math.prod(static.sizes), math.prod(dense)
    total = np.empty((count * cells + 1, *dense), wide)
    start = (
        functools.reduce(np.add, terms[: static.dense]) if static.dense else -np.zeros((1, 1, *[1] * len(dense)), wide)
    )
    total[:-1].reshape(count, cells, *dense)[...] = start
    total[-1] = 0
    for slot, term in zip(slots, terms[static.dense :], strict=True):
        place = slot.reshape(-1)
        if dense:
            place = (place[:, None] * width + np.arange(width)).reshape(-1)
        np.add.at(total.reshape(-1), place, term.reshape(-1))  # in stored order, as XLA does
    return [total[:-1].reshape(count, cells, *dense).astype(dtype)]


def _gather_on_host(static: _Static, slots: Sequence[Any], weights: Sequence[Any], x: Sequence[Any]) -> list[Any]:
    (total,) = x
    dense = total.shape[2:]
    cells = total.shape[0] * total.shape[1]
    rows = np.concatenate([total.reshape(cells, *dense), np.zeros((1, *dense), total.dtype)])
    gathered = []
    for k, (weight, negated) in enumerate(zip(weights, static.negated, strict=True)):
        if k < static.dense:
            gathered.append(scale(total.copy(), weight, negated))
            continue
        slot = slots[k - static.dense]
        each = scale(np.take(rows, slot, axis=0), weight, negated)
        if weight is not None or negated:
            each[slot == len(rows) - 1] = 0
        gathered.append(each)
    return gathered


# --- As a primitive ---


def _dense_of(static: _Static, x: Sequence[Any]) -> tuple[int, ...]:
    """The dense dimensions of what is placed or gathered from."""
    depth = len(static.levels)
    shape: tuple[int, ...] = x[-1].shape[depth + (len(static.sizes) if static.gathers else 1) :]
    return shape


def _shapes(static: _Static, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    _, slots, _, x = static.split(operands)
    batch, dense = x[0].shape[: len(static.levels)], _dense_of(static, x)
    if not static.gathers:
        return [jax.ShapeDtypeStruct((*batch, *static.sizes, *dense), static.dtype)]
    has_rows = static.dense > 0  # index rows, not slots
    counts = [static.sizes] * static.dense + [(each.shape[-1 - has_rows],) for each in slots]
    return [
        jax.ShapeDtypeStruct((*batch, *count, *dense), dtype)
        for count, dtype in zip(counts, static.dtypes, strict=True)
    ]


def _abstract(*kinds: Any, static: _Static) -> list[Any]:
    x = kinds[-1]
    return [x.update(shape=each.shape, dtype=each.dtype, weak_type=False) for each in _shapes(static, kinds)]


def _batch(operands: Sequence[Any], dims: Sequence[int | None], *, static: _Static) -> tuple[Sequence[Any], list[int]]:
    count = next(x.shape[dim] for x, dim in zip(operands, dims, strict=True) if dim is not None)
    moved = move_axes(operands, dims)
    # Values that the batch shares are broadcast: so it is JAX that sums their cotangents.
    for k in range(static.integers, len(moved)):
        if dims[k] is None:
            moved[k] = _broadcast(moved[k], count)
    level = tuple(dim is not None for dim in dims[: static.integers])
    results = _values.bind(*moved, static=static._replace(levels=(*static.levels, level)))
    return results, [0] * len(results)


def _broadcast(array: Any, count: int) -> Any:
    if is_concrete(array):
        return put_like([array], np.broadcast_to(read(array), (count, *array.shape)))
    return jnp.broadcast_to(array, (count, *array.shape))


def _differentiate(operands: Sequence[Any], tangents: Sequence[Any], *, static: _Static) -> tuple[Any, Any]:
    results = _values.bind(*operands, static=static)
    begin = static.integers + static.arity * static.weighted
    parts = slice(static.integers, begin), slice(begin, len(operands))
    terms = []
    for part in parts:  # linear in the weights, and in the values
        if any(type(each) is not ad.Zero for each in tangents[part]):
            filled = list(operands)
            filled[part] = map(_filled, operands[part], tangents[part])
            terms.append(_values.bind(*filled, static=static))
    if not terms:
        return results, [ad.Zero(jax.typeof(each).to_tangent_aval()) for each in results]
    return results, [each[0] if len(terms) == 1 else each[0] + each[1] for each in zip(*terms, strict=True)]


def _filled(primal: Any, tangent: Any) -> Any:
    return ad.instantiate_zeros(tangent) if type(tangent) is not ad.Zero else _zeros(primal)


def _zeros(kind: Any) -> Any:
    """Zeros made by numpy, which compiles nothing for a new shape."""
    return pvary_alike((np.zeros(kind.shape, kind.dtype), kind))[0]


def _transpose(cotangents: Sequence[Any], *operands: Any, static: _Static) -> list[Any]:
    if all(type(each) is ad.Zero for each in cotangents):
        return [None] * len(operands)
    nnz, slots, weights, x = static.split(operands)
    y = [_zeros(each.aval) if type(each) is ad.Zero else each for each in cotangents]
    if any(map(ad.is_undefined_primal, weights)):
        results = [*_pull_back_weights(static, nnz, slots, x, y), *[None] * len(x)]
    else:
        pulled = _values.bind(nnz, *slots, *weights, *y, static=static._replace(gathers=not static.gathers))
        results = [*[None] * len(weights), *pulled]
    wanted = zip(operands[static.integers :], results, strict=True)
    return [None] * static.integers + [each if ad.is_undefined_primal(operand) else None for operand, each in wanted]


def _pull_back_weights(
    static: _Static, nnz: Any, slots: Sequence[Any], x: Sequence[Any], y: Sequence[Any]
) -> list[Any]:
    """The cotangents of the weights: for each the sum over its entries of value times what their slot holds."""
    total, values = (x[0], y) if static.gathers else (y[0], x)
    alone = static._replace(gathers=True, weighted=False, dtypes=(static.dtype,) * static.arity)
    gathered = _values.bind(nnz, *slots, total, static=alone)

    def contract(_: Any, *rest: Any) -> list[Any]:
        slots, rest = rest[: static.integers - 1], rest[static.integers - 1 :]
        results = []
        for k, (value, own) in enumerate(zip(rest[static.arity :], rest[: static.arity], strict=True)):
            if k >= static.dense:  # values at padding may be anything
                inside = _is_inside(slots[k - static.dense], static.sizes).reshape(-1, *[1] * (value.ndim - 1))
                value = jnp.where(inside, value, np.zeros((), value.dtype))
            results.append(jnp.sum(own * value.astype(own.dtype), dtype=own.dtype))
        return results

    contracted: list[Any] = jax.jit(map_levels(contract, static.levels))(nnz, *slots, *gathered, *values)
    return contracted


_values = jax.extend.core.Primitive("sparse_add_values")
_values.multiple_results = True
_values.def_impl(_execute)
_values.def_abstract_eval(_abstract)
for _platform in (None, *MOST_SCATTERS):
    _rule = mlir.lower_fun(partial(_lower, _platform), multiple_results=True)
    mlir.register_lowering(_values, _rule, platform=_platform)
batching.primitive_batchers[_values] = _batch
ad.primitive_jvps[_values] = _differentiate
ad.primitive_transposes[_values] = _transpose
