"""The arguments of public functions: static checks of types, ranks, shapes and dtypes, and conversion to JAX arrays.

Errors are raised while tracing too.
"""

import functools
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jax_sparse_grad._concrete import cast, evaluate_if_concrete, is_concrete, read
from jax_sparse_grad._types import Threshold

MOST_ENTRIES = 2**31 - 1
"""Entries are counted, and slots numbered, in int32."""

_TRANSPOSED = "if indices are [ndims, nnz], pass their transpose (`.T`)"


def as_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A dense shape as a tuple of ints."""
    _check_static(name, shape)
    if isinstance(shape, jax.Array):
        shape = read(shape)  # inside `jit`, its elements would be tracers
    try:
        if isinstance(shape, AbstractSet | Mapping):
            raise TypeError(f"a {type(shape).__name__} is no sequence")
        sizes = tuple(map(operator.index, shape))
    except TypeError as error:
        expected = f"`{name}` must be a sequence of ints, such as `(3, 4)` or `x.shape`"
        raise TypeError(f"{expected}; got {reprlib.repr(shape)} ({error})") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"`{name}` must not have negative sizes, got {sizes}")
    return sizes


def as_nse(nse: Any, name: str = "nse") -> int | None:
    """The number of elements to store, or None."""
    if nse is None:
        return None
    _check_static(name, nse)
    try:
        if isinstance(nse, bool):
            raise TypeError
        size = operator.index(nse)
    except TypeError:
        raise TypeError(f"`{name}` must be an int or None, got {reprlib.repr(nse)}") from None
    if not 0 <= size <= MOST_ENTRIES:
        raise ValueError(f"`{name}` must not be negative, nor exceed {MOST_ENTRIES}; got {size}")
    return size


def as_flag(name: str, flag: Any) -> bool:
    """A static bool."""
    _check_static(name, flag)
    if not isinstance(flag, bool | np.bool_):
        raise TypeError(f"`{name}` must be a Python bool, got {reprlib.repr(flag)}")
    return bool(flag)


def _check_static(name: str, argument: Any) -> None:
    if not is_concrete(argument):
        raise TypeError(
            f"`{name}` must be known while tracing, got a traced array; pass a Python value, or mark it static "
            "(`jax.jit(..., static_argnames=...)`)"
        )


def kind_of(argument: Any) -> str:
    """What messages call an argument of the wrong type."""
    return "an array" if isinstance(argument, jax.Array) else type(argument).__name__


def unwrap(array: Any) -> Any:
    """The content of a wrapper with `__jax_array__`, such as `flax.nnx.Param`; anything else unchanged."""
    while not isinstance(array, jax.Array) and hasattr(type(array), "__jax_array__"):
        array = array.__jax_array__()
    return array


def as_array(
    name: str, array: Any, check: Callable[[str, np.dtype], None], of_sparse: str = "pass its values, `x.data`"
) -> jax.Array:
    """Anything array-like as a JAX array, in a dtype that JAX has, if `check(name, dtype)` raises no error.

    A concrete array stays concrete inside `jit`, no integer changes its value, and no memory is shared with the caller,
    who may write to it. `of_sparse`: what to do about a sparse matrix, for messages.
    """
    array = unwrap(array)
    if not isinstance(array, jax.Array):
        array = _as_numpy(name, array, "an array", of_sparse)
    if array.dtype == jax.dtypes.float0:
        raise TypeError(f"`{name}` must be an array of numbers, got float0, which stands for no gradient")
    check(name, array.dtype)
    dtype = _canonical(array.dtype)
    if isinstance(array, jax.Array) and array.dtype == dtype:
        return array
    if is_concrete(array):
        host = as_host_array(name, read(array), copy=True)  # JAX keeps aligned memory instead of copying it
        device = array.sharding if getattr(array, "committed", False) else None
        try:
            with evaluate_if_concrete(array):
                return jax.device_put(host, device)  # unlike `jnp.asarray`, compiles nothing for a new shape
        except (TypeError, ValueError) as error:
            raise TypeError(f"`{name}` must have a dtype that JAX has, got {array.dtype}") from error
    # A 64-bit array that was made while `jax_enable_x64` was on, used while it is off
    if jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"`{name}` must not be traced as {array.dtype} while `jax_enable_x64` is off: {dtype} might not hold its "
            "values; set `jax_enable_x64`, or cast them before tracing"
        )
    return jax.lax.convert_element_type(array, dtype)


def as_host_array(name: str, array: np.ndarray, *, copy: bool = False) -> np.ndarray:
    """A numpy array in the dtype that JAX uses for it, in which no integer may change its value."""
    dtype = _canonical(array.dtype)
    if jnp.issubdtype(dtype, jnp.integer) and dtype != array.dtype and array.size:
        least, most, limits = array.min(), array.max(), jnp.iinfo(dtype)
        if least < limits.min or most > limits.max:
            got = least if least == most else f"values from {least} to {most}"
            raise ValueError(f"`{name}` must fit {dtype}, got {got}; set `jax_enable_x64` to use 64-bit integers")
    return array.astype(dtype, copy=copy)


def _canonical(dtype: np.dtype) -> np.dtype:
    """The dtype that JAX uses for a numpy dtype."""
    native = dtype if dtype.isnative else dtype.newbyteorder("=")
    return np.dtype(jax.dtypes.canonicalize_dtype(native))


def _as_numpy(name: str, array: Any, expected: str, of_sparse: str) -> np.ndarray:
    """Anything array-like other than JAX's own arrays, as an array that may share its memory."""
    remedy = ""
    if hasattr(array, "shape") and not hasattr(array, "__array__") and not isinstance(array, memoryview):
        # A sparse matrix, which numpy would read element by element
        remedy = f"; {of_sparse}"
    elif isinstance(array, list | tuple) and any(isinstance(each, jax.Array) for each in jax.tree.leaves(array)):
        remedy = " of JAX arrays; join them with `jnp.stack`, or make a matrix, `BCOO((data, indices), shape=...)`"
    elif isinstance(array, np.ma.MaskedArray):
        remedy = "; fill masked elements with `x.filled(0)`"
    else:
        try:
            host = np.asarray(array)
        except (TypeError, ValueError, RuntimeError) as error:
            remedy = f" ({error})"
        else:
            if host.ndim or host.dtype != object:  # else numpy has found no array in it
                return host
    raise TypeError(f"`{name}` must be {expected}, got {type(array).__name__}{remedy}")


def as_integers(name: str, integers: Any) -> jax.Array:
    """An array of an integer dtype and of static shape."""
    if isinstance(integers, list | tuple) and not integers:
        raise TypeError(f"`{name}` must have an integer dtype, got an empty list; pass `np.zeros((0, ndims), int)`")
    rows = "pass its index rows [nnz, ndims], `x.indices` of a BCOO; `BCOO.from_scipy_sparse(x)` makes one"
    array = as_array(name, integers, _check_integer, rows)
    if any(map(export.is_symbolic_dim, array.shape)):
        raise TypeError(
            f"`{name}` must have a static shape, got {array.shape}; export the function for each size, or for the "
            "largest, and pad to that"
        )
    return array


def _check_integer(name: str, dtype: np.dtype) -> None:
    if not jnp.issubdtype(dtype, jnp.integer) or jnp.iinfo(dtype).bits < 2:
        remedy = f"if these are indices, and not values, cast them with `jnp.asarray({name}, int)`"
        if dtype == np.bool_:
            remedy = "convert a mask with `np.argwhere(mask)`"
        raise TypeError(f"`{name}` must have an integer dtype, got {dtype}; {remedy}")


def as_indices(name: str, indices: Any) -> jax.Array:
    """Indices `[nnz, ndims]` of an integer dtype."""
    array = as_integers(name, indices)
    if array.ndim != 2:
        remedy = f"for a vector, pass `{name}[:, None]`"
        if array.ndim > 2:
            remedy = "add a batch under `jax.vmap`, or with `jsg.add`"
        raise ValueError(f"`{name}` must be a matrix [nnz, ndims], got shape {array.shape}; {remedy}")
    return array


def as_common_indices(
    names: Sequence[str], indices: Sequence[Any], shape_name: str, shape: tuple[int, ...] | None
) -> tuple[jax.Array, ...]:
    """Indices of several tensors with equal `ndims`, that of the shape if this is known, brought to one dtype."""
    arrays = [as_indices(name, array) for name, array in zip(names, indices, strict=True)]
    if shape is None:
        return promote_indices(names, arrays)
    for name, array in zip(names, arrays, strict=True):
        if array.shape[1] != len(shape):
            raise ValueError(
                f"`{name}` must have as many columns as `{shape_name}` has sizes; got {array.shape[1]} columns and "
                f"{shape}; {_TRANSPOSED}"
            )
    promoted = promote_indices(names, arrays)
    check_sizes_fit(shape_name, shape, promoted[0].dtype)
    return promoted


def promote_indices(names: Sequence[str], arrays: Sequence[jax.Array], shards: int = 1) -> tuple[jax.Array, ...]:
    """Indices `[*batch, nnz, ndims]` of several tensors with equal `ndims`, in one dtype.

    `shards` is the number of devices that their rows are spread over.
    """
    for name, array in zip(names[1:], arrays[1:], strict=True):
        own, first = array.shape[-1], arrays[0].shape[-1]
        if own != first:
            raise ValueError(
                f"`{name}` must have as many columns (ndims) as `{names[0]}`; got {own} and {first}; {_TRANSPOSED}"
            )
    check_devices(names, arrays)
    total = sum(array.shape[-2] for array in arrays) // shards
    if total > MOST_ENTRIES:
        where = " on each device" if shards > 1 else ""
        raise ValueError(f"`{'`, `'.join(names)}` must have at most {MOST_ENTRIES} rows together{where}, got {total}")
    dtype = common_dtype(names, arrays, integer=True)
    return tuple(cast(array, dtype) for array in arrays)


def common_dtype(names: Sequence[str], arrays: Sequence[Any], *, integer: bool = False) -> np.dtype:
    """The dtype to which arrays promote as in `jnp`, under the promotion rules that are set."""
    try:
        dtype = np.dtype(jnp.result_type(*arrays))
    except ValueError:  # strict promotion, or a dtype that is never promoted
        dtype = None
    if dtype is None or (integer and not jnp.issubdtype(dtype, jnp.integer)):
        dtypes = ", ".join(str(getattr(array, "dtype", type(array).__name__)) for array in arrays)
        kind = "integer dtype" if integer else "dtype"
        raise TypeError(f"`{'`, `'.join(names)}` must have a common {kind}, got {dtypes}; cast one of them")
    return dtype


def check_devices(names: Sequence[str], arrays: Sequence[jax.Array]) -> None:
    """Check that all concrete arrays that were put on devices are on the same ones."""
    placed = [
        (name, array) for name, array in zip(names, arrays, strict=True) if is_concrete(array) and array.committed
    ]
    for name, array in placed[1:]:
        first_name, first = placed[0]
        if array.sharding.device_set != first.sharding.device_set:
            here, there = (sorted(map(str, each.sharding.device_set)) for each in (array, first))
            raise ValueError(
                f"`{name}` must be on the devices of `{first_name}`; got {', '.join(here)} and {', '.join(there)}; "
                "move one with `jax.device_put`"
            )


def check_sizes_fit(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Check that indices of the dtype can express all positions in a shape, and padding."""
    largest = int(jnp.iinfo(_canonical(dtype)).max)
    if any(size > largest for size in shape):
        raise ValueError(
            f"`{name}` must not exceed {largest}, the largest index of {dtype}, in any dimension "
            f"(padding is marked by index == shape); got {shape}; "
            + ("use uint32 indices" if max(shape) < 2**32 else "set `jax_enable_x64`, and use int64 indices")
        )


def as_numeric(name: str, values: Any) -> jax.Array:
    """An array of a numeric dtype that can be summed."""
    return as_array(name, values, _check_numeric)


def _check_numeric(name: str, dtype: np.dtype) -> None:
    if dtype == np.bool_:
        raise TypeError(f"`{name}` must have a numeric dtype, got bool; cast it, `{name}.astype(jnp.int32)` to count")
    if not jnp.issubdtype(dtype, jnp.number):
        raise TypeError(f"`{name}` must have a numeric dtype, got {dtype}")
    if not _can_be_summed(dtype):
        expected = "integers of at least 2 bits, or floats with a zero (absent entries) and a NaN (overflowed sums)"
        raise TypeError(f"`{name}` must hold {expected}, got {dtype}; cast it to a wider dtype")


@functools.cache
def _can_be_summed(dtype: np.dtype) -> bool:
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits > 1
    return bool(np.zeros((), dtype) == 0 and np.isnan(np.asarray(np.nan, dtype)))


def as_values(name: str, values: Any, nnz: int, indices_name: str) -> jax.Array:
    """Numeric values `[nnz, *dense]`."""
    array = as_numeric(name, values)
    if array.shape[:1] != (nnz,):
        raise ValueError(
            f"`{name}` must have one row for each row of `{indices_name}`; got shape {array.shape} and {nnz} rows"
        )
    return array


def as_common_values(
    names: Sequence[str], values: Sequence[Any], index_names: Sequence[str], nnz: Sequence[int]
) -> tuple[jax.Array, ...]:
    """Values `[nnz_k, *dense]` of several operands with equal dense dimensions, each of its own dtype."""
    arrays = [as_values(*each) for each in zip(names, values, nnz, index_names, strict=True)]
    for name, array in zip(names[1:], arrays[1:], strict=True):
        if array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"`{name}` must have the same dense dimensions as `{names[0]}`; "
                f"got {array.shape[1:]} and {arrays[0].shape[1:]}"
            )
    check_devices(names, arrays)
    return tuple(arrays)


def as_plan_values(
    values: Sequence[Any], nnz: Sequence[int], indices: str = ""
) -> tuple[tuple[jax.Array, ...], np.dtype]:
    """The values that a plan is called with, for operands of these numbers of entries, and the dtype of their sum.

    `indices` is appended to the name of an operand where messages mean its rows.
    """
    if len(values) != len(nnz):
        listed = len(values) == 1 and isinstance(values[0], list | tuple)
        raise ValueError(
            f"`values` must be given for each of the {len(nnz)} operands of the plan, got {len(values)}"
            + ("; unpack the list, `plan(*values)`" if listed else "")
        )
    names, index_names = zip(*((f"values[{k}]", f"operands[{k}]{indices}") for k in range(len(nnz))), strict=True)
    arrays = as_common_values(names, values, index_names, nnz)
    return arrays, common_dtype(("values",), arrays)


def as_threshold(thresh: Any) -> Threshold | None:
    """A real scalar; None if it is known to drop nothing, because no magnitude is below 0.

    An integer that JAX's integers cannot hold is rounded to a float, and a float that is too large becomes infinite.
    """
    thresh = unwrap(thresh)
    if not isinstance(thresh, jax.Array):
        thresh = _as_numpy("thresh", thresh, "a real number", "pass a number")
    if thresh.ndim:
        raise ValueError(f"`thresh` must be a scalar, got shape {thresh.shape}")
    is_integer = jnp.issubdtype(thresh.dtype, jnp.integer)
    if not is_integer and not jnp.issubdtype(thresh.dtype, jnp.floating):
        raise TypeError(f"`thresh` must be a real number, got dtype {thresh.dtype}")
    if not is_concrete(thresh):
        return thresh
    number, dtype = read(thresh), _canonical(thresh.dtype)
    if np.isnan(number):
        raise ValueError("`thresh` must not be NaN")
    if number <= 0:
        return None
    if is_integer and number > jnp.iinfo(dtype).max:
        dtype = _canonical(np.dtype(np.float64))
    with np.errstate(over="ignore"):
        return number.astype(dtype)
