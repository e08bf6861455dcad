"""What the values of operands are multiplied by: the weights of `add_n`, and the minus of `subtract`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jax_sparse_grad import _keys, _validation
from jax_sparse_grad._eager import in_buckets, is_concrete, read
from jax_sparse_grad._primitives import map_batches


class Minus:
    """The weight of what is subtracted: -1 would not flip the sign of NaN, and unsigned integers lack it."""


MINUS = Minus()


Scale = complex | jax.Array | np.ndarray[Any, Any] | Minus | None
"""What the values of an operand are multiplied by: a number, or an array without dimensions."""


def as_weights(weights: Any, count: int) -> list[Scale]:
    weights = _validation.unwrap(weights)
    if isinstance(weights, jax.Array | np.ndarray) and weights.ndim:
        vector = read(weights) if is_concrete(weights) else weights
        scales = [vector[k] for k in range(vector.shape[0])]
    elif isinstance(weights, Iterable) and not isinstance(
        weights, jax.Array | np.ndarray | str | bytes | Mapping | set | frozenset
    ):
        scales = list(weights)
    else:
        got = "an array without dimensions" if hasattr(weights, "ndim") else type(weights).__name__
        raise TypeError(f"`weights` must be a list, tuple or vector with a scalar for each operand, got {got}")
    if len(scales) != count:
        raise ValueError(f"`weights` must hold one scalar for each of the {count} operands, got {len(scales)}")
    return [_as_weight(f"weights[{k}]", scale) for k, scale in enumerate(scales)]


def _as_weight(name: str, weight: Any) -> Scale:
    """A Python number, whose dtype is weak, or an array without dimensions."""
    weight = _validation.unwrap(weight)
    if isinstance(weight, jax.Array | np.ndarray | np.generic):
        if weight.ndim:
            raise ValueError(f"`{name}` must be a scalar, got shape {weight.shape}")
        if not jnp.issubdtype(weight.dtype, jnp.number):
            raise TypeError(f"`{name}` must be a real or complex number, got dtype {weight.dtype}")
        return weight if isinstance(weight, jax.Array) else _validation.as_numeric(name, np.asarray(weight))
    if isinstance(weight, bool) or not isinstance(weight, int | float | complex):
        raise TypeError(f"`{name}` must be a real or complex number, got {type(weight).__name__}")
    return weight


def promote(
    names: Sequence[str], values: Sequence[jax.Array], places: Sequence[int], scales: Sequence[Scale]
) -> tuple[tuple[jax.Array, ...], list[Scale]]:
    """Values and their weights in one dtype; `places` are the numbers of the operands, for messages."""
    # A Python number may not fit the array that JAX would make of it: a zero takes its place.
    arrays: dict[int, jax.Array] = {}
    for k, scale in enumerate(scales):
        if isinstance(scale, jax.Array):
            arrays[k] = scale
        elif isinstance(scale, int | float | complex):
            arrays[k] = jnp.asarray(scale * 0)
    all_names = (*names, *(f"weights[{places[k]}]" for k in arrays))
    promoted = _validation.promote_values([*values, *arrays.values()], all_names)
    weights = list(scales)
    for k, array in zip(arrays, promoted[len(values) :], strict=True):
        number = scales[k]
        weights[k] = array
        if isinstance(number, int | float | complex):
            weights[k] = _number_as(f"weights[{places[k]}]", number, array.dtype)
    return promoted[: len(values)], weights


def _number_as(name: str, number: complex, dtype: np.dtype) -> np.ndarray:
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        if not limits.min <= number <= limits.max:  # type: ignore[operator]
            raise ValueError(f"`{name}` must fit {dtype}, the dtype of the sum; got {number}")
    with np.errstate(over="ignore"):  # to infinity, as in `jnp`
        return np.asarray(number, dtype)


def scale(rows: jax.Array, values: jax.Array, scale: Scale, shape: tuple[int, ...]) -> jax.Array:
    """Values `[*batch, nse, *dense]` at index rows, times a weight."""
    if scale is None:
        return values
    weight = None if scale is MINUS else scale
    if is_concrete(values, weight):
        return in_buckets(partial(_times, weight=weight), rows.ndim - 2, values)
    return _times(values, weight) if weight is None else _weigh(shape, rows, values, weight)


def scale_dense(values: jax.Array, scale: Scale) -> jax.Array:
    return values if scale is None else _times(values, None if scale is MINUS else scale)


@jax.jit
def _times(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    """Values times a weight, or their negatives if there is no weight."""
    return -values if weight is None else values * weight


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weigh(shape: tuple[int, ...], rows: jax.Array, values: jax.Array, weight: jax.Array) -> jax.Array:
    """Values at index rows times a weight; the derivative ignores what stands at padding."""
    del shape, rows
    return _times(values, weight)


def _weigh_jvp(
    shape: tuple[int, ...], primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    rows, values, weight = primals
    _, of_values, of_weight = tangents
    product = _weigh(shape, rows, values, weight)
    terms = []
    if not isinstance(of_values, SymbolicZero):
        # Clear padding before weighing: in the backward pass it is then cleared last, when 0 times an infinite weight
        # has already given NaN.
        terms.append(_times(_without_padding(rows, of_values, shape), weight))
    if not isinstance(of_weight, SymbolicZero):
        terms.append(_times(_without_padding(rows, values, shape), of_weight))
    return product, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(product)


_weigh.defjvp(_weigh_jvp, symbolic_zeros=True)


@partial(jax.jit, static_argnums=2)
def _without_padding(rows: jax.Array, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    def clear(rows: jax.Array, values: jax.Array) -> jax.Array:
        inside = _keys.is_entry(rows, shape).reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(inside, values, np.zeros((), values.dtype))

    return map_batches(clear, rows.ndim - 2)(rows, values)
