"""Every static check of the arguments and its message: types, ranks, shapes, dtypes. They raise while tracing too."""

import concurrent.futures
import contextlib
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")

MOST_ENTRIES = 2**31 - 1
"""Entries are counted and placed in int32."""


def is_concrete(*trees: Any) -> bool:
    """Whether no leaf of the trees is a tracer, so that its value can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


@jax.jit
def _probe() -> jax.Array:
    return jnp.zeros(())


def call_concretely(function: Callable[[], T]) -> T:
    """`function()`, which computes with concrete arrays, as if outside of any trace.

    While JAX traces, even concrete arrays are staged. `jax.ensure_compile_time_eval` would execute what is traced
    meanwhile one operation at a time, and compile each of them; in another thread there is no trace.
    """
    if not isinstance(_probe(), jax.core.Tracer):
        with jax.disable_jit(False):  # what was made for compiled calls takes numpy arrays too
            return function()
    wide = jax.dtypes.canonicalize_dtype(np.int64) == np.int64
    device = jax.config.jax_default_device  # type: ignore[attr-defined]

    def call() -> T:
        with jax.enable_x64(wide), jax.default_device(device):
            return function()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def evaluate_if_concrete(*trees: Any) -> contextlib.AbstractContextManager[None]:
    """A context in which functions of concrete arrays stay concrete, inside `jit` as well (indices closed over)."""
    return jax.ensure_compile_time_eval() if is_concrete(*trees) else contextlib.nullcontext()


def as_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A dense shape as a tuple of ints."""
    if not is_concrete(shape):
        raise TypeError(
            f"`{name}` must be known while tracing, got a traced array; pass a tuple of ints, "
            "or mark it static (`jax.jit(..., static_argnames=...)`)"
        )
    if isinstance(shape, jax.Array):
        shape = np.asarray(shape)  # inside `jit`, its elements would be tracers
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(f"`{name}` must be a sequence of ints, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"`{name}` must not have negative sizes, got {sizes}")
    return sizes


def as_nse(nse: Any, name: str = "nse") -> int | None:
    """The number of stored entries to make room for, or None."""
    if nse is None:
        return None
    if not is_concrete(nse):
        raise TypeError(f"`{name}` must be known while tracing, got a traced array; pass an int or mark it static")
    try:
        size = operator.index(nse)
    except TypeError:
        size = None
    if size is None or isinstance(nse, bool):
        raise TypeError(f"`{name}` must be an int or None, got {nse!r}")
    if not 0 <= size <= MOST_ENTRIES:
        raise ValueError(f"`{name}` must not be negative, nor exceed {MOST_ENTRIES}; got {size}")
    return size


def as_capacity(capacity: Any) -> int | None:
    """The number of entries to make room for in each shard, or None; a shard without room is none."""
    size = as_nse(capacity, "capacity")
    if size == 0:
        raise ValueError("`capacity` must be positive, got 0")
    return size


def as_flag(name: str, flag: Any) -> bool:
    """A static bool."""
    if not isinstance(flag, bool | np.bool_):
        raise TypeError(f"`{name}` must be a Python bool, got {flag!r}")
    return bool(flag)


def as_array(name: str, array: Any) -> jax.Array:
    """Anything array-like as a JAX array, concrete inside `jit` too if it was, with no integer changed on the way."""
    if isinstance(array, jax.Array):
        return array
    try:
        with evaluate_if_concrete(array):
            # `device_put` compiles nothing, `jnp.asarray` a copy for each new shape.
            converted = jax.device_put(array) if isinstance(array, np.ndarray) else jnp.asarray(array)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array, got {type(array).__name__}") from error
    if is_concrete(array):
        _check_fits(name, np.asarray(array), converted.dtype)
    return converted


def _check_fits(name: str, given: np.ndarray, dtype: np.dtype) -> None:
    """No integer changes where JAX has no wider dtype for it."""
    if not jnp.issubdtype(dtype, jnp.integer) or given.size == 0:
        return
    limits = np.iinfo(dtype)
    if given.min() < limits.min or given.max() > limits.max:
        raise ValueError(
            f"`{name}` must fit {dtype}, got values from {given.min()} to {given.max()}; "
            "set `jax_enable_x64` to use 64-bit integers"
        )


def as_host_array(name: str, array: Any) -> np.ndarray:
    """A concrete array as one of numpy, in the dtype that JAX has for it, with no integer changed on the way."""
    host = np.asarray(array)
    dtype = jax.dtypes.canonicalize_dtype(host.dtype)
    _check_fits(name, host, dtype)
    return host.astype(dtype, copy=False)


def as_integers(name: str, integers: Any) -> jax.Array:
    """An array of an integer dtype."""
    dtype = getattr(integers, "dtype", None)
    if dtype == jax.dtypes.float0:
        raise TypeError(
            f"`{name}` must have an integer dtype, got float0, which stands for no gradient; "
            "take the indices that the gradient is for"
        )
    array = as_array(name, integers)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`{name}` must have an integer dtype, got {array.dtype}")
    return array


def as_indices(name: str, indices: Any) -> jax.Array:
    """Indices `[nnz, ndims]` of an integer dtype."""
    array = as_integers(name, indices)
    if array.ndim != 2:
        raise ValueError(f"`{name}` must be a matrix [nnz, ndims], got shape {array.shape}")
    return array


def as_common_indices(names: Sequence[str], indices: Sequence[Any]) -> tuple[jax.Array, ...]:
    """Indices of several tensors with equal `ndims`, brought to one dtype."""
    return promote_indices(names, [as_indices(name, array) for name, array in zip(names, indices, strict=True)])


def promote_indices(names: Sequence[str], arrays: Sequence[jax.Array], shards: int = 1) -> tuple[jax.Array, ...]:
    """Indices `[*batch, nnz, ndims]` of several tensors with equal `ndims`, brought to one dtype.

    `shards` is the number of devices that their rows are spread over.
    """
    for name, array in zip(names[1:], arrays[1:], strict=True):
        if array.shape[-1] != arrays[0].shape[-1]:
            raise ValueError(
                f"`{name}` must have as many columns (ndims) as `{names[0]}`; "
                f"got {array.shape[-1]} and {arrays[0].shape[-1]}"
            )
    total = sum(array.shape[-2] for array in arrays) // shards
    if total > MOST_ENTRIES:
        where = " on each device" if shards > 1 else ""
        raise ValueError(f"`{'`, `'.join(names)}` must have at most {MOST_ENTRIES} rows together{where}, got {total}")
    dtype = jnp.result_type(*arrays)
    if not jnp.issubdtype(dtype, jnp.integer):
        dtypes = ", ".join(str(array.dtype) for array in arrays)
        raise TypeError(f"`{'`, `'.join(names)}` must have a common integer dtype, got {dtypes}; cast one of them")
    return tuple(_cast(array, dtype) for array in arrays)


def as_mesh(mesh: Any) -> jax.sharding.Mesh:
    """A mesh of devices."""
    if not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(f"`mesh` must be a `jax.sharding.Mesh`, got {type(mesh).__name__}")
    return mesh


def as_axis(axis: Any, mesh: jax.sharding.Mesh) -> str | tuple[str, ...]:
    """One or several axes of a mesh by name."""
    names = (axis,) if isinstance(axis, str) else axis
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`axis` must be the name of a mesh axis, or a tuple of names; got {axis!r}")
    if not set(names) <= set(mesh.axis_names) or len(set(names)) < len(names):
        raise ValueError(f"`axis` must name axes of the mesh, which are {mesh.axis_names}; got {axis!r}")
    return names[0] if len(names) == 1 else names


def check_shape_fits(name: str, shape: tuple[int, ...], indices_name: str, indices: jax.Array) -> None:
    """The shape has one size for each column of the indices, whose dtype can hold the padding index (= the size)."""
    if len(shape) != indices.shape[-1]:
        raise ValueError(
            f"`{name}` must have as many sizes as `{indices_name}` has columns; "
            f"got {shape} and {indices.shape[-1]} columns"
        )
    check_sizes_fit(name, shape, indices.dtype)


def check_sizes_fit(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Indices of the dtype can name all places of a shape, and padding."""
    largest = np.iinfo(jax.dtypes.canonicalize_dtype(dtype)).max
    if any(size > largest for size in shape):
        remedy = "cast the indices to a wider dtype" if largest < 2**31 - 1 else "set `jax_enable_x64` and use int64"
        raise ValueError(
            f"`{name}` must not exceed {largest}, the largest index of {dtype}, in any dimension "
            f"(padding is marked by index == shape); got {shape}; {remedy}"
        )


def as_numeric(name: str, values: Any) -> jax.Array:
    """An array of numbers."""
    array = as_array(name, values)
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(f"`{name}` must have a numeric dtype, got {array.dtype}")
    return array


def as_values(name: str, values: Any, nnz: int, indices_name: str) -> jax.Array:
    """Numeric values `[nnz, *dense]`."""
    array = as_numeric(name, values)
    if array.ndim == 0:
        raise ValueError(f"`{name}` must have shape [nnz, *dense], got a scalar")
    if array.shape[0] != nnz:
        raise ValueError(f"`{name}` must have one row for each row of `{indices_name}`; got {array.shape[0]} and {nnz}")
    return array


def as_common_values(names: Sequence[str], values: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Values of several operands with equal dense dimensions, promoted to one dtype as `jnp` does."""
    for name, array in zip(names[1:], values[1:], strict=True):
        if array.shape[1:] != values[0].shape[1:]:
            raise ValueError(
                f"`{name}` must have the same dense dimensions as `{names[0]}`; "
                f"got {array.shape[1:]} and {values[0].shape[1:]}"
            )
    return promote_values(values)


def promote_values(values: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Values promoted to one dtype as `jnp` does."""
    dtype = jnp.result_type(*values)
    return tuple(_cast(array, dtype) for array in values)


def _cast(array: jax.Array, dtype: Any) -> jax.Array:
    """The array in another dtype, concrete inside `jit` too if it was; without a call where nothing changes."""
    if array.dtype == dtype:
        return array
    with evaluate_if_concrete(array):
        return array.astype(dtype)


def as_thresh(thresh: Any) -> jax.Array | np.ndarray:
    """A real scalar threshold, exact for every Python int that a supported dtype can reach."""
    if isinstance(thresh, int) and not isinstance(thresh, bool):
        dtype = np.min_scalar_type(thresh)
        thresh = np.asarray(thresh, dtype) if dtype == jax.dtypes.canonicalize_dtype(dtype) else float(thresh)
    array = thresh if isinstance(thresh, jax.Array) else np.asarray(thresh)
    if not jnp.issubdtype(array.dtype, jnp.integer) and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`thresh` must be a real number, got dtype {array.dtype}")
    if array.ndim != 0:
        raise ValueError(f"`thresh` must be a scalar, got shape {array.shape}")
    if is_concrete(array) and np.isnan(np.asarray(array)):
        raise ValueError("`thresh` must not be NaN")
    return array
