"""The numeric phase: values to their slots, and back.

The slots of all entries are the columns of a sparse matrix S of zeros and ones. A sum of values is S @ values, a
scatter-add for each operand; the gradient with respect to them is its transpose, a gather for each operand.

    place(slots, values)   the sum                             tangents: the same     transpose: pick
    pick(slots, total)     for each entry what its slot holds  tangents: the same     transpose: place

JAX knows these rules of its own scatters and gathers. They are a primitive nevertheless, because

- concrete arrays go through numpy, in derivatives too, so that calls outside of `jit` compile nothing for a new length;
- casts, signs and weights stand inside it for the same reason;
- a sum that has overflowed is poisoned in tangents and cotangents too;
- a batch of none is a batch, and `checkify` does not take a slot that is out of bounds for an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from jax_sparse_grad._eager import own_transfers
from jax_sparse_grad._primitives import vary_alike

Arrays = tuple[jax.Array, ...]


class _Sum(NamedTuple):
    """What is static in a sum of K operands.

    nse: the number of slots.
    dtype: of the sum; products with weights have it too.
    dtypes: of the values of each operand.
    negated: whether each operand is subtracted.
    weighted: whether each operand has a weight.
    picks: whether values come from the slots instead of going there.
    levels: for each `vmap`, the outermost last, which of `nnz` and the slots have its axis. All values and weights do.
    """

    nse: int
    dtype: np.dtype
    dtypes: tuple[np.dtype, ...]
    negated: tuple[bool, ...]
    weighted: bool
    picks: bool
    levels: tuple[tuple[bool, ...], ...] = ()

    @property
    def arity(self) -> int:
        """The number of operands."""
        return len(self.dtypes)

    def split(self, operands: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any], Sequence[Any]]:
        """`nnz`, slots, weights, and what is placed or picked from."""
        ends = 1 + self.arity, 1 + self.arity * (1 + self.weighted)
        return operands[0], operands[1 : ends[0]], operands[ends[0] : ends[1]], operands[ends[1] :]


def place(
    nse: int,
    nnz: jax.Array,
    slots: Sequence[jax.Array],
    values: Sequence[jax.Array],
    *,
    dtype: np.dtype,
    negated: Sequence[bool] | None = None,
    weights: Sequence[jax.Array] = (),
) -> jax.Array:
    """The sum of values `[n_k, *dense]` at slots `[n_k]`: `[nse, *dense]`, of which the first `nnz` are in use.

    Operand after operand, and each in its stored order; floats below 32 bits in float32, rounded once. Slots out of
    bounds are dropped. If `nnz` exceeds `nse`, all values are poison: NaN, or the extreme that `jnp.take` fills with.
    `weights` are scalars of the dtype, by which the values of each operand are multiplied.
    """
    static = _Sum(
        nse,
        np.dtype(dtype),
        tuple(np.dtype(each.dtype) for each in values),
        tuple(negated or [False] * len(values)),
        bool(weights),
        picks=False,
    )
    total: jax.Array
    (total,) = _values.bind(*vary_alike((nnz, *slots, *weights, *values)), static=static)
    return total


def pick(nnz: jax.Array, slots: Sequence[jax.Array], total: jax.Array) -> Arrays:
    """What each entry's slot of `total [nse, *dense]` holds, 0 where it has none: the transpose of `place`."""
    dtypes = (np.dtype(total.dtype),) * len(slots)
    static = _Sum(total.shape[0], dtypes[0] if dtypes else total.dtype, dtypes, (False,) * len(slots), False, True)
    return tuple(_values.bind(*vary_alike((nnz, *slots, total)), static=static))


# --- By XLA ---


def _apply(static: _Sum, operands: Sequence[jax.Array]) -> Sequence[jax.Array]:
    nnz, slots, weights, x = static.split(operands)
    terms = (_pick if static.picks else _place)(static, nnz, slots, weights or [None] * static.arity, x)
    return list(terms)


def _place(
    static: _Sum, nnz: jax.Array, slots: Sequence[jax.Array], weights: Sequence[Any], values: Sequence[jax.Array]
) -> Arrays:
    nse, dtype = static.nse, static.dtype
    wide, poison = _wide(dtype), _poison(dtype)
    column = (nse, *[1] * (values[0].ndim - 1))
    # x + -0.0 is x for every x. Slots that are not in use hold 0.0.
    start = jnp.where(jnp.arange(nse, dtype=np.int32) < nnz, -np.zeros((), wide), np.zeros((), wide))
    if jnp.issubdtype(dtype, jnp.inexact):  # NaN stays, whatever is added
        start = jnp.where(nnz > nse, poison.astype(wide), start)
    total = vary_alike((jnp.broadcast_to(start.reshape(column), (nse, *values[0].shape[1:])), values[0]))[0]
    for each, slot, weight, negated in zip(values, slots, weights, static.negated, strict=True):
        term = _scale(each.astype(dtype), weight, negated).astype(wide)
        total = total.at[slot].add(term, mode="drop", wrap_negative_indices=False)
    total = total.astype(dtype)
    return (total if jnp.issubdtype(dtype, jnp.inexact) else jnp.where(nnz > nse, poison, total),)


def _pick(
    static: _Sum, nnz: jax.Array, slots: Sequence[jax.Array], weights: Sequence[Any], x: Sequence[jax.Array]
) -> Arrays:
    (total,) = x
    picked = []
    for slot, weight, negated, dtype in zip(slots, weights, static.negated, static.dtypes, strict=True):
        has_slot = (slot < static.nse).reshape(-1, *[1] * (total.ndim - 1))
        if static.nse:
            rows = total.at[slot].get(mode="clip", wrap_negative_indices=False)
        else:
            rows = jnp.zeros((*slot.shape, *total.shape[1:]), total.dtype)
        rows = jnp.where(has_slot, _scale(rows, weight, negated), np.zeros((), total.dtype))
        picked.append(_cast(jnp.where(nnz > static.nse, _poison(total.dtype), rows), dtype))
    return tuple(picked)


def _scale(values: Any, weight: Any, negated: bool) -> Any:
    values = values if weight is None else values * weight
    return -values if negated else values


def _cast(values: jax.Array, dtype: np.dtype) -> jax.Array:
    if jnp.iscomplexobj(values) and not jnp.issubdtype(dtype, jnp.complexfloating):
        values = values.real
    return values.astype(dtype)


def _wide(dtype: np.dtype) -> np.dtype:
    """The dtype to sum in: narrow floats would stop growing, and few machines can add integers of half a byte."""
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


def _map_levels(static: _Sum, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of all operands for one batch, mapped over all levels of batches."""

    def mapped(*operands: jax.Array) -> Any:
        inner = function
        for level in static.levels:
            axes = [0 if has else None for has in level] + [0] * (len(operands) - len(level))
            inner = jax.vmap(inner, in_axes=axes)
        return inner(*operands)

    return mapped


@partial(jax.jit, static_argnums=0)
def _run(static: _Sum, operands: Arrays) -> Sequence[jax.Array]:
    shapes = _shapes(static, operands)
    if any(0 in each.shape[: len(static.levels)] for each in shapes):  # JAX cannot gather over an empty batch
        zeros = [jnp.zeros(each.shape, each.dtype) for each in shapes]
        return vary_alike((zeros, operands))[0]
    results: Sequence[jax.Array] = _map_levels(static, lambda *each: _apply(static, each))(*operands)
    return results


def _lower(*operands: jax.Array, static: _Sum) -> Sequence[jax.Array]:
    return _run(static, operands)


# --- By numpy ---


def _execute(*operands: Any, static: _Sum) -> Sequence[jax.Array]:
    with jax.disable_jit(False), own_transfers():
        placed = [each for each in operands if isinstance(each, jax.Array)]
        devices = set().union(*(each.devices() for each in placed))
        if len(devices) > 1 or any(device.platform != "cpu" for device in devices):
            return _run(static, operands)
        results = _on_host(static, [np.asarray(each) for each in operands])
        where = next((each.sharding for each in placed if each.committed), None)
        return [jax.device_put(each, where) for each in results]


def _on_host(static: _Sum, operands: Sequence[Any]) -> list[Any]:
    """The same, all batches as one list of slots."""
    x = operands[-1]
    batch = x.shape[: len(static.levels)]
    flags = [tuple(level[k] for level in reversed(static.levels)) for k in range(1 + static.arity)]
    nnz, *slots = (_with_batch(each, has, batch) for each, has in zip(operands[: 1 + static.arity], flags, strict=True))
    _, _, weights, x = static.split(operands)
    overflows = (nnz > static.nse).reshape(-1)
    batches, dense = len(overflows), x[0].shape[len(batch) + 1 :]
    flat = []  # slots in all batches together; those out of bounds at the end
    for each in slots:
        own = each.reshape(batches, each.shape[-1]).astype(np.int64)
        shift = np.arange(batches)[:, None] * static.nse
        flat.append(np.where(own < static.nse, own + shift, batches * static.nse))
    scales = [each.reshape(batches, *[1] * (1 + len(dense))) for each in weights] or [None] * static.arity
    terms = _pick_on_host if static.picks else _place_on_host
    with np.errstate(all="ignore"):  # as XLA
        results = terms(static, nnz.reshape(-1), overflows, flat, scales, x, dense)
    return [each.reshape(*batch, each.shape[1], *dense) for each in results]


def _with_batch(array: Any, has: Sequence[bool], batch: tuple[int, ...]) -> Any:
    own = iter(array.shape)
    expanded = array.reshape([next(own) if each else 1 for each in has] + list(array.shape[sum(has) :]))
    return np.broadcast_to(expanded, (*batch, *expanded.shape[len(has) :]))


def _place_on_host(
    static: _Sum, nnz: Any, overflows: Any, slots: Any, scales: Any, x: Any, dense: tuple[int, ...]
) -> list[Any]:
    nse, dtype = static.nse, static.dtype
    wide = _wide(dtype)
    total = np.zeros((len(nnz) * nse + 1, *dense), wide)  # the last one for what is dropped
    total[:-1][(np.arange(nse) < nnz[:, None]).reshape(-1)] = -np.zeros((), wide)
    width = int(np.prod(dense))
    for each, slot, scale, negated in zip(x, slots, scales, static.negated, strict=True):
        rows = each.reshape(*slot.shape, *dense).astype(dtype)
        rows = _scale(rows, scale, negated).astype(wide).reshape(-1)
        cells = slot.reshape(-1)
        if dense:
            cells = (cells[:, None] * width + np.arange(width)).reshape(-1)
        np.add.at(total.reshape(-1), cells, rows)  # in stored order, as XLA does
    result = total[:-1].reshape(len(nnz), nse, *dense).astype(dtype)
    result[overflows] = _poison(dtype)
    return [result]


def _pick_on_host(
    static: _Sum, nnz: Any, overflows: Any, slots: Any, scales: Any, x: Any, dense: tuple[int, ...]
) -> list[Any]:
    (total,) = x
    rows = np.concatenate([total.reshape(len(nnz) * static.nse, *dense), np.zeros((1, *dense), total.dtype)])
    picked = []
    for slot, scale, negated, dtype in zip(slots, scales, static.negated, static.dtypes, strict=True):
        each = _scale(np.take(rows, slot, axis=0), scale, negated)
        if scale is not None or negated:
            each[slot == len(rows) - 1] = 0
        each[overflows] = _poison(each.dtype)
        real = np.iscomplexobj(each) and not jnp.issubdtype(dtype, jnp.complexfloating)
        picked.append((each.real if real else each).astype(dtype))
    return picked


# --- As a primitive ---


def _shapes(static: _Sum, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    _, slots, _, x = static.split(operands)
    depth = len(static.levels)
    batch, dense = x[0].shape[:depth], x[0].shape[depth + 1 :]
    if not static.picks:
        return [jax.ShapeDtypeStruct((*batch, static.nse, *dense), static.dtype)]
    return [
        jax.ShapeDtypeStruct((*batch, each.shape[-1], *dense), dtype)
        for each, dtype in zip(slots, static.dtypes, strict=True)
    ]


def _abstract(*kinds: Any, static: _Sum) -> list[Any]:
    x = kinds[-1]
    return [x.update(shape=each.shape, dtype=each.dtype, weak_type=False) for each in _shapes(static, kinds)]


def _batch(operands: Sequence[Any], dims: Sequence[int | None], *, static: _Sum) -> tuple[Sequence[Any], list[int]]:
    count = next(x.shape[dim] for x, dim in zip(operands, dims, strict=True) if dim is not None)
    moved = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(operands, dims, strict=True)]
    # All values are broadcast: the transpose then need not sum over what was shared, because JAX does.
    for k in range(1 + static.arity, len(moved)):
        if dims[k] is None:
            moved[k] = jnp.broadcast_to(moved[k], (count, *moved[k].shape))
    level = tuple(dim is not None for dim in dims[: 1 + static.arity])
    results = _values.bind(*moved, static=static._replace(levels=(*static.levels, level)))
    return results, [0] * len(results)


def _differentiate(operands: Sequence[Any], tangents: Sequence[Any], *, static: _Sum) -> tuple[Any, Any]:
    results = _values.bind(*operands, static=static)
    begin = 1 + static.arity * (1 + static.weighted)
    parts = slice(1 + static.arity, begin), slice(begin, len(operands))
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
    """Zeros of a shape, made by numpy if that can be: nothing is compiled for a new one."""
    return vary_alike((np.zeros(kind.shape, kind.dtype), kind))[0]


def _transpose(cotangents: Sequence[Any], *operands: Any, static: _Sum) -> list[Any]:
    if all(type(each) is ad.Zero for each in cotangents):
        return [None] * len(operands)
    nnz, slots, weights, x = static.split(operands)
    y = [_zeros(each.aval) if type(each) is ad.Zero else each for each in cotangents]
    if any(map(ad.is_undefined_primal, weights)):
        results = [*_pull_back_weights(static, nnz, slots, x, y), *[None] * len(x)]
    else:
        pulled = _values.bind(nnz, *slots, *weights, *y, static=static._replace(picks=not static.picks))
        results = [*[None] * len(weights), *pulled]
    wanted = zip(operands[1 + static.arity :], results, strict=True)
    return [None] * (1 + static.arity) + [each if ad.is_undefined_primal(operand) else None for operand, each in wanted]


def _pull_back_weights(static: _Sum, nnz: Any, slots: Sequence[Any], x: Sequence[Any], y: Sequence[Any]) -> list[Any]:
    """The cotangents of the weights: for each the sum over its entries of value times what their slot holds."""
    total, values = (x[0], y) if static.picks else (y[0], x)
    alone = static._replace(picks=True, weighted=False, dtypes=(static.dtype,) * static.arity)
    picked = _values.bind(nnz, *slots, total, static=alone)
    axes = tuple(range(len(static.levels), total.ndim))

    def contract(each: Any, slot: Any, value: Any) -> Any:
        return each * jnp.where((slot < static.nse).reshape(-1, *[1] * (value.ndim - 1)), value, 0).astype(each.dtype)

    def contract_all(_: Any, *rest: Any) -> list[Any]:
        parts = rest[: static.arity], rest[static.arity : 2 * static.arity], rest[2 * static.arity :]
        return [contract(each, slot, value) for slot, each, value in zip(*parts, strict=True)]

    products = _map_levels(static, contract_all)(nnz, *slots, *picked, *values)
    return [jnp.sum(each, axis=axes, dtype=each.dtype) for each in products]


_values = jax.extend.core.Primitive("sparse_add_values")
_values.multiple_results = True
_values.def_impl(_execute)
_values.def_abstract_eval(_abstract)
mlir.register_lowering(_values, mlir.lower_fun(_lower, multiple_results=True))
batching.primitive_batchers[_values] = _batch
ad.primitive_jvps[_values] = _differentiate
ad.primitive_transposes[_values] = _transpose
