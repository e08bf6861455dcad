"""Concrete arrays: how to recognise them, and how to compute with them in numpy, inside a trace too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.core import Tracer, eval_context
from jax.sharding import NamedSharding, PartitionSpec

T = TypeVar("T")


def is_concrete(*trees: Any) -> bool:
    """Whether no leaf of the trees is a tracer, so that all values are known."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def on_cpu(arrays: Sequence[Any]) -> bool:
    """Whether all arrays are concrete and on one CPU device, where numpy can read them in place."""
    if not is_concrete(arrays):
        return False
    devices = set().union(*(each.devices() for each in arrays if isinstance(each, jax.Array)))
    return len(devices) <= 1 and all(device.platform == "cpu" for device in devices)


def outside_of_trace(function: Callable[[], T]) -> T:
    """`function()`, which computes with concrete arrays, as if outside of any trace.

    While JAX traces, it stages even operations of concrete arrays. (`jax.ensure_compile_time_eval` is no substitute:
    whatever is traced inside it runs one operation at a time, each of them compiled.)
    """
    with eval_context(), jax.disable_jit(False), allow_transfers():  # compiled calls may be given numpy arrays
        return function()


@contextlib.contextmanager
def allow_transfers() -> Iterator[None]:
    """A context in which data may pass through numpy even under `jax.transfer_guard("disallow")`.

    That setting is meant to catch transfers that the user did not intend. "disallow_explicit" bars all transfers, and
    these too.
    """
    with contextlib.ExitStack() as stack:
        for direction in ("host_to_device", "device_to_host", "device_to_device"):
            if getattr(jax.config, f"jax_transfer_guard_{direction}") == "disallow":
                stack.enter_context(getattr(jax, f"transfer_guard_{direction}")("allow"))
        yield


def read(array: Any) -> np.ndarray:
    """A concrete array on the host, which waits for it if it is on a GPU or TPU."""
    with allow_transfers():
        return np.asarray(array)


def put_like(arrays: Sequence[Any], tree: Any, n_batch: int = 0) -> Any:
    """Put what numpy computed from concrete arrays where these are, divided among devices as their batches are.

    `n_batch` leading dimensions of all arrays are those of batches.
    """
    sharding = next((each.sharding for each in arrays if isinstance(each, jax.Array) and each.committed), None)

    if not isinstance(sharding, NamedSharding):
        return outside_of_trace(lambda: jax.device_put(tree, sharding))

    def put(leaf: Any) -> jax.Array:
        spec = [names if size > 1 else None for names, size in zip(sharding.spec[:n_batch], leaf.shape, strict=False)]
        return jax.device_put(leaf, NamedSharding(sharding.mesh, PartitionSpec(*spec)))

    return outside_of_trace(lambda: jax.tree.map(put, tree))


def evaluate_if_concrete(*trees: Any) -> contextlib.AbstractContextManager[None]:
    """A context in which functions of concrete arrays stay concrete, also inside `jit` (indices closed over)."""
    return jax.ensure_compile_time_eval() if is_concrete(*trees) else contextlib.nullcontext()


def cast(array: Any, dtype: Any) -> Any:
    """The array in another dtype: by numpy where possible, which compiles nothing."""
    if array.dtype == dtype:
        return array
    if on_cpu([array]):
        return _put_back(array, read(array).astype(dtype))
    with evaluate_if_concrete(array):
        return array.astype(dtype)


def reshape(array: Any, shape: tuple[int, ...]) -> Any:
    """The array in another shape, likewise."""
    return _put_back(array, read(array).reshape(shape)) if on_cpu([array]) else array.reshape(shape)


def _put_back(array: Any, host: np.ndarray) -> Any:
    """What numpy made of an array, on the device of that array."""
    return put_like([array], host) if isinstance(array, jax.Array) else host
