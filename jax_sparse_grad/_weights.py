"""The weights of `add_n`, by which the values of its operands are multiplied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad import _arguments
from jax_sparse_grad._concrete import cast, is_concrete, read

Weight = complex | jax.Array | np.ndarray[Any, Any]
"""A number, or an array without dimensions."""


def as_weights(weights: Any, count: int) -> list[Weight]:
    """One weight for each operand."""
    weights = _arguments.unwrap(weights)
    if isinstance(weights, jax.Array) and is_concrete(weights):
        weights = read(weights)  # inside `jit`, its elements would be tracers
    try:
        if isinstance(weights, AbstractSet | Mapping):
            raise TypeError
        listed = list(weights)
    except TypeError:
        got = "an array without dimensions" if hasattr(weights, "ndim") else type(weights).__name__
        raise TypeError(
            f"`weights` must be a list, tuple or vector with a scalar for each operand, got {got}"
        ) from None
    if len(listed) != count:
        raise ValueError(f"`weights` must hold one scalar for each of the {count} operands, got {len(listed)}")
    return [_as_weight(f"weights[{k}]", weight) for k, weight in enumerate(listed)]


def _as_weight(name: str, weight: Any) -> Weight:
    """A Python number, whose dtype is weak, or an array without dimensions."""
    weight = _arguments.unwrap(weight)
    if isinstance(weight, jax.Array | np.ndarray | np.generic):
        if weight.ndim:
            raise ValueError(f"`{name}` must be a scalar, got shape {weight.shape}")
        if not jnp.issubdtype(weight.dtype, jnp.number):
            raise TypeError(f"`{name}` must be a real or complex number, got dtype {weight.dtype}")
        return weight if isinstance(weight, jax.Array) else _arguments.as_numeric(name, np.asarray(weight))
    if isinstance(weight, bool) or not isinstance(weight, int | float | complex):
        raise TypeError(f"`{name}` must be a real or complex number, got {type(weight).__name__}")
    return weight


def in_dtype_of_sum(
    names: Sequence[str], values: Sequence[jax.Array], numbers: Sequence[int], weights: Sequence[Weight]
) -> tuple[np.dtype, list[Any]]:
    """The dtype of the sum of values times their weights, and the weights in this dtype, if there are any.

    `numbers` are the positions of the operands to which the weights belong, for messages.
    """
    if not weights:
        return _arguments.common_dtype(names, values), []
    # A zero in place of each Python number, which may not fit the array that JAX would make of it.
    kinds = [_weak_zero(each) if isinstance(each, int | float | complex) else each for each in weights]
    dtype = _arguments.common_dtype((*names, *(f"weights[{k}]" for k in numbers)), [*values, *kinds])
    factors = [
        _number_as(f"weights[{k}]", weight, dtype) if isinstance(weight, int | float | complex) else cast(weight, dtype)
        for k, weight in zip(numbers, weights, strict=True)
    ]
    return dtype, factors


def _weak_zero(number: complex) -> Any:
    """A Python zero, which promotes as the number does."""
    return type(number)(0)


def _number_as(name: str, number: complex, dtype: np.dtype) -> np.ndarray:
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        if not limits.min <= number <= limits.max:  # type: ignore[operator]
            raise ValueError(f"`{name}` must fit {dtype}, the dtype of the sum; got {number}")
    with np.errstate(over="ignore"):  # to infinity, as in `jnp`
        return np.asarray(number, dtype)
