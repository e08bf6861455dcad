"""What concrete calls need: a way out of traces, and few compilations for arrays of any length.

A compiled function serves one length. Eager calls bring a new one every time, and compiling takes a thousand times as
long as adding. So lengths are rounded up to buckets, and results are cut afterwards: padding is valid input, and one
function can serve a whole bucket. Numpy pads and cuts, which compiles nothing; on a GPU or TPU until a length has come
so often that programs for it pay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_context

T = TypeVar("T")

SMALLEST = 2048  # a call costs nearly the same at any smaller length
FINE = 8192  # above this, time matters more than compilations: two buckets for each power of two
REPEATED = 100  # calls, after which a program for their lengths (0.1 s) pays: padding takes 1 ms, or doubles the time
# The same on a GPU or TPU, from which arrays come to numpy and go back: a sum of 10^6 + 10^6 entries takes 36 ms so on
# an H200, 5 ms with programs for its lengths, and 600 ms to compile these. It asks two to four times for each.
REPEATED_ELSEWHERE = 40
MOST_REMEMBERED = 4096  # kinds of calls that are counted
SHARED = 16  # operands up to so many times shorter than the longest share its bucket, to avoid a program for each pair


def is_concrete(*trees: Any) -> bool:
    """Whether no leaf of the trees is a tracer, so that values can be looked at."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def call_concretely(function: Callable[[], T]) -> T:
    """`function()`, which computes with concrete arrays, as if outside of any trace.

    While JAX traces, it stages even concrete arrays. (`jax.ensure_compile_time_eval` would also execute whatever is
    traced in the meantime one operation at a time, and compile each of them.)
    """
    with eval_context(), jax.disable_jit(False), own_transfers():  # compiled calls may be given numpy arrays
        return function()


@contextlib.contextmanager
def own_transfers() -> Iterator[None]:
    """A context in which data may pass through numpy even under `jax.transfer_guard("disallow")`.

    That setting is meant to catch transfers that the user did not intend; "disallow_explicit" bars all transfers, these
    too.
    """
    with contextlib.ExitStack() as stack:
        for direction in ("host_to_device", "device_to_host", "device_to_device"):
            if getattr(jax.config, f"jax_transfer_guard_{direction}") == "disallow":
                stack.enter_context(getattr(jax, f"transfer_guard_{direction}")("allow"))
        yield


def read(array: Any) -> np.ndarray:
    """A concrete array on the host. To look at one on a GPU or TPU, the host waits for it."""
    with own_transfers():
        return np.asarray(array)


def evaluate_if_concrete(*trees: Any) -> contextlib.AbstractContextManager[None]:
    """A context in which functions of concrete arrays stay concrete, also inside `jit` (indices closed over)."""
    return jax.ensure_compile_time_eval() if is_concrete(*trees) else contextlib.nullcontext()


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

    If numpy resizes, the result is a numpy array: JAX would have to compile for each length.
    """
    missing = size - array.shape[axis]
    if missing == 0:
        return array
    numpy: Any = np if is_for_numpy((array,), "resize", size, axis) else jnp
    resized = numpy.asarray(array)[(slice(None),) * axis + (slice(size),)]
    if missing > 0:
        tail_shape = (*array.shape[:axis], missing, *array.shape[axis + 1 :])
        tail = numpy.broadcast_to(numpy.asarray(fill, array.dtype), tail_shape)
        resized = numpy.concatenate([resized, tail], axis)
    return resized


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays one after the other, broadcast along the axes before; by numpy, which compiles nothing, if possible."""
    if len(arrays) == 1:
        return arrays[0]
    numpy: Any = np if is_for_numpy(arrays, "concatenate", axis) else jnp
    batch = np.broadcast_shapes(*(array.shape[:axis] for array in arrays))
    return numpy.concatenate([numpy.broadcast_to(array, (*batch, *array.shape[axis:])) for array in arrays], axis)


def is_for_numpy(arrays: Sequence[Any], *call: Hashable) -> bool:
    """Whether numpy should do what `call` says with the arrays, so that nothing is compiled for their lengths."""
    if not numpy_reaches(arrays):
        return False
    return is_on_cpu(arrays) or not comes_again(
        REPEATED_ELSEWHERE, *call, *((array.shape, array.dtype) for array in arrays)
    )


def numpy_reaches(arrays: Sequence[Any]) -> bool:
    """Whether all arrays are concrete, and lie where new arrays are put."""
    if any(isinstance(array, Tracer) for array in arrays):
        return False
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None or isinstance(default, str):  # the name of a platform
        default = jax.local_devices(backend=default)[0]
    return all(array.devices() == {default} for array in arrays if isinstance(array, jax.Array))


def is_on_cpu(arrays: Sequence[Any]) -> bool:
    """Whether numpy reads all of these concrete arrays where they lie."""
    placed = (array for array in arrays if isinstance(array, jax.Array))  # no constants as jax 0.8 keeps them
    return all(device.platform == "cpu" for array in placed for device in array.devices())


def comes_again(often: int, *call: Hashable) -> bool:
    """Whether there were `often` calls of this kind before."""
    if len(_calls) > MOST_REMEMBERED:
        _calls.clear()
    _calls[call] = calls = _calls.get(call, 0) + 1
    return calls > often


_calls: dict[tuple[Hashable, ...], int] = {}


def in_buckets(function: Callable[..., jax.Array], axis: int, *arrays: jax.Array) -> jax.Array:
    """`function` of concrete arrays, which works row by row along an axis; compiled for few lengths."""
    size = arrays[0].shape[axis]

    def call() -> jax.Array:
        result = function(*(resize(array, bucket(size), 0, axis) for array in arrays))
        cut: jax.Array = jax.device_put(resize(result, size, 0, axis))
        return cut

    return call_concretely(call)
