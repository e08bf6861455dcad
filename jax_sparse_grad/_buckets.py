"""Concrete arrays of any length with few compilations: lengths are rounded up to buckets, and results cut afterwards.

A compiled function serves one length. Eager calls bring a new one every time, and compiling takes a thousand times as
long as adding. Padding is valid input, so one function can serve a whole bucket.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SMALLEST = 2048  # a call costs nearly the same at any smaller length
FINE = 8192  # above this, time matters more than compilations: two buckets for each power of two
SHARED = 16  # operands up to so many times shorter than the longest share its bucket, to avoid a program for each pair


def bucket(size: int) -> int:
    """The smallest bucket that holds a size: at most twice as long, or one and a half times for long ones."""
    power = max(SMALLEST, 1 << (size - 1).bit_length())
    return power * 3 // 4 if power > FINE and size <= power * 3 // 4 else power


def buckets(sizes: Sequence[int]) -> list[int]:
    """A length for each of the operands of a sum."""
    longest = bucket(max(sizes))
    return [longest if size * SHARED > longest else bucket(size) for size in sizes]


def resize(array: Any, size: int, fill: object, axis: int = 0) -> Any:
    """The first `size` rows of a concrete array along an axis, followed by rows `fill` if there are fewer.

    If numpy can reach the data, the result is a numpy array: JAX would have to compile for each length.
    """
    missing = size - array.shape[axis]
    if missing == 0:
        return array
    numpy: Any = np if is_on_host(array) else jnp
    resized = numpy.asarray(array)[(slice(None),) * axis + (slice(size),)]
    if missing > 0:
        tail_shape = (*array.shape[:axis], missing, *array.shape[axis + 1 :])
        tail = numpy.broadcast_to(numpy.asarray(fill, array.dtype), tail_shape)
        resized = numpy.concatenate([resized, tail], axis)
    return resized


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays one after the other; by numpy if it can read all of them, which compiles nothing."""
    if len(arrays) == 1:
        return arrays[0]
    numpy: Any = np if all(map(is_on_host, arrays)) else jnp
    return numpy.concatenate([numpy.asarray(array) for array in arrays], axis)


def is_on_host(array: Any) -> bool:
    """Whether the array is concrete and lies where numpy can read it and where new arrays are put."""
    if isinstance(array, np.ndarray | np.generic):
        return True
    if isinstance(array, jax.core.Tracer):
        return False
    if not isinstance(array, jax.Array):  # a constant as jax 0.8 keeps it
        return True
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None or isinstance(default, str):  # the name of a platform
        default = jax.local_devices(backend=default)[0]
    return array.devices() == {default} and default.platform == "cpu"
