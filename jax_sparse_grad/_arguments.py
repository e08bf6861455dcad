"""Static checks of the arguments, with their messages: types, ranks, shapes, dtypes. They raise while tracing too."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jax_sparse_grad._concrete import cast, evaluate_if_concrete, is_concrete, own_transfers, read
from jax_sparse_grad._types import Threshold

MOST_ENTRIES = 2**31 - 1
"""Entries are counted and placed in int32."""


def as_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A dense shape as a tuple of ints."""
    shape = unwrap(shape)
    if isinstance(shape, Iterator):
        shape = tuple(shape)
    expected = f"`{name}` must be a sequence of ints"
    if isinstance(shape, int | np.integer):
        raise TypeError(f"{expected}, got {shape!r}; write one dimension as ({shape},)")
    if hasattr(shape, "sum_shape"):
        raise TypeError(f"{expected}, got {type(shape).__name__}; pass its shape, `x.sum_shape`")
    if hasattr(shape, "shape") and not isinstance(shape, jax.Array | np.ndarray):
        raise TypeError(f"{expected}, got {type(shape).__name__}; pass its shape, `x.shape`")
    if not is_concrete(shape):
        raise TypeError(
            f"`{name}` must be known while tracing, got a traced array; pass a tuple of ints, "
            "or mark it static (`jax.jit(..., static_argnames=...)`)"
        )
    if isinstance(shape, jax.Array):
        shape = read(shape)  # inside `jit`, its elements would be tracers
    if isinstance(shape, np.ndarray) and shape.ndim == 0:
        raise TypeError(f"{expected}, got the scalar {shape}; write one dimension as ({shape},)")
    ordered = isinstance(shape, Iterable) and not isinstance(shape, str | bytes | Mapping | set | frozenset)
    listed: list[Any] = list(shape) if ordered else [None]
    sizes = tuple(_as_int(size) for size in listed)
    if None in sizes:
        hint = ""
        if any(export.is_symbolic_dim(size) for size in listed):
            hint = f"; {_SYMBOLIC}"
        elif all(isinstance(size, float | np.number) for size in listed):
            hint = f"; convert it with `tuple(map(int, {name}))`"
        raise TypeError(f"{expected}, got {_shown(shape)}{hint}")
    known = tuple(size for size in sizes if size is not None)
    if any(size < 0 for size in known):
        raise ValueError(f"`{name}` must not have negative sizes, got {known}")
    return known


_SYMBOLIC = "sparse sums need static sizes: export the function for each, or for the largest, and pad to that"


def _as_int(number: Any) -> int | None:
    """Anything that Python accepts as an index, as an int; None for anything else."""
    if isinstance(number, bool) or export.is_symbolic_dim(number):
        return None
    try:
        return operator.index(number)
    except TypeError:
        return None


def _shown(argument: Any) -> str:
    """An argument as messages show it: as it is written, or its type if that is long."""
    written = repr(argument)
    return written if len(written) < 100 and "\n" not in written else type(argument).__name__


def kind_of(argument: Any) -> str:
    """What messages call an argument of the wrong type."""
    return "an array" if isinstance(argument, jax.Array) else type(argument).__name__


def as_nse(nse: Any, name: str = "nse") -> int | None:
    """The number of elements to make room for, or None."""
    expected = f"`{name}` must be an int or None"
    if export.is_symbolic_dim(nse):
        raise TypeError(f"{expected}, got {nse}; {_SYMBOLIC}")
    nse = unwrap(nse)
    if nse is None:
        return None
    if not is_concrete(nse):
        raise TypeError(f"`{name}` must be known while tracing, got a traced array; pass an int or mark it static")
    size = _as_int(nse)
    if size is None:
        hint = f"; convert it with `int({name})`" if isinstance(nse, float | np.floating) else ""
        raise TypeError(f"{expected}, got {_shown(nse)}{hint}")
    if not 0 <= size <= MOST_ENTRIES:
        raise ValueError(f"`{name}` must not be negative, nor exceed {MOST_ENTRIES}; got {size}")
    return size


def as_flag(name: str, flag: Any) -> bool:
    """A static bool."""
    if not is_concrete(flag):
        raise TypeError(f"`{name}` must be a Python bool, got a traced array; mark it static")
    if not isinstance(flag, bool | np.bool_):
        raise TypeError(f"`{name}` must be a Python bool, got {flag!r}")
    return bool(flag)


def unwrap(array: Any) -> Any:
    """The content of a wrapper with `__jax_array__`, such as `flax.nnx.Param`; anything else unchanged."""
    while not isinstance(array, jax.Array) and hasattr(type(array), "__jax_array__"):
        array = array.__jax_array__()
    return array


def as_array(
    name: str, array: Any, check: Callable[[str, np.dtype], None] | None = None, part: str = "data"
) -> jax.Array:
    """Anything array-like as a JAX array, in a dtype that JAX has, if `check(name, dtype)` does not object.

    An array that was concrete stays so inside `jit`, no integer changes its value, and no memory is shared with the
    caller, who may write to it. `part` says which part of a container to pass instead, data or indices, for messages.
    """
    array = unwrap(array)
    if not isinstance(array, jax.Array):
        array = _read(name, array, part)
    if check is not None:
        check(name, array.dtype)
    dtype = _canonical(array.dtype)
    if isinstance(array, jax.Array):
        return array if array.dtype == dtype else _narrow(name, array, dtype)
    _check_fits(name, array)
    try:
        with evaluate_if_concrete(array):
            # The copy is needed because JAX keeps aligned memory. `device_put` compiles nothing, while `jnp.asarray`
            # compiles for each new shape.
            return jax.device_put(np.array(array, dtype))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must have a dtype that JAX has, got {array.dtype}") from error


def _narrow(name: str, array: jax.Array, dtype: np.dtype) -> jax.Array:
    """A 64-bit array that was made while `jax_enable_x64` was on, used while it is off."""
    if jnp.issubdtype(dtype, jnp.integer):
        if not is_concrete(array):
            raise TypeError(
                f"`{name}` must not be traced as {array.dtype} while `jax_enable_x64` is off: {dtype} might not hold "
                "its values; set `jax_enable_x64`, or cast them before tracing"
            )
        _check_fits(name, read(array))
    with evaluate_if_concrete(array):
        return jax.lax.convert_element_type(array, dtype)


def _read(name: str, array: Any, part: str) -> jax.Array | np.ndarray:
    """Anything array-like other than JAX's own arrays, as an array that may share its memory."""
    expected, kind = f"`{name}` must be an array", type(array).__name__
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{expected} without a mask, got {kind}; fill masked elements with `x.filled(0)`")
    if isinstance(array, np.ndarray | np.generic):
        return np.asarray(array)
    if array is None:
        raise TypeError(f"{expected}, got None")
    _check_not_sparse(name, array, part)
    if isinstance(array, list | tuple | range):
        return _read_list(name, array, part)
    if isinstance(array, bool | int | float | complex):
        _check_fits(name, np.asarray(array))
        with evaluate_if_concrete(array), own_transfers():
            return jnp.asarray(array)  # promotes as a Python scalar does
    if isinstance(array, bytes | bytearray):
        raise TypeError(f"{expected}, got {kind}; read it with `np.frombuffer`")
    if not hasattr(array, "__array__"):
        try:
            array = memoryview(array)
        except TypeError:
            raise TypeError(f"{expected}, got {kind}") from None
    try:
        return np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{expected}, got {kind}, which numpy cannot read: {error}") from error


def _read_list(name: str, nested: Any, part: str) -> jax.Array | np.ndarray:
    """Lists of lists of numbers and arrays, tracers among them, as an array."""
    kinds = _kinds(nested)
    of_python = kinds <= {bool, int, float, complex}
    of_numpy = all(issubclass(kind, np.ndarray | np.generic) for kind in kinds)
    rows: Any = nested
    if not (of_python or of_numpy):
        leaves, treedef = jax.tree.flatten(nested, is_leaf=lambda each: type(each) not in _LISTS)
        rows = jax.tree.unflatten(treedef, [as_array(f"{name}[...]", leaf, part=part) for leaf in leaves])
    try:
        if of_python or of_numpy:
            host = np.asarray(nested)
        else:
            with evaluate_if_concrete(rows), own_transfers():
                return jnp.asarray(rows)
    except (TypeError, ValueError) as error:
        pair = isinstance(nested, tuple) and len(nested) == 2
        remedy = "; a sparse operand is `BCOO((data, indices), shape=...)`" if pair else ""
        got = f"a {type(nested).__name__} of unequal lengths"
        raise TypeError(f"`{name}` must be an array, got {got}{remedy}") from error
    return as_host_array(name, host)


def _kinds(nested: Iterable[Any]) -> set[type]:
    """The types of the elements of nested lists."""
    kinds = set(map(type, nested))
    if kinds & _LISTS:
        kinds |= _kinds(list(itertools.chain.from_iterable(each for each in nested if type(each) in _LISTS)))
    return kinds - _LISTS


_LISTS = {list, tuple}


def is_plan(x: Any) -> bool:
    """Whether it is a plan, whose modules import this one."""
    return hasattr(x, "union") and callable(x)


def _check_not_sparse(name: str, array: Any, part: str) -> None:
    """Check that this is not a sparse container, which numpy and JAX would read element by element.

    Containers of other libraries are recognised by their attributes.
    """
    kind = type(array).__name__
    if hasattr(array, "sum_values"):
        parts = "`x.sum_values`", "`x.sum_indices`"
    elif hasattr(array, "a_val_grad"):
        parts = "`x.a_val_grad` or `x.b_val_grad`", "those of the operand"
    elif is_plan(array):
        parts = "the result of `plan(*values)`", "`plan.indices`"
    elif hasattr(array, "row_starts"):
        parts = "`x.data`, or add it with `jsg.sharded.add`", "`x.indices`, or use `jsg.sharded.plan_sparse_add`"
    elif kind in ("BCOO", "BCSR"):
        rows = "`x.indices`" if kind == "BCOO" else "`x.to_bcoo().indices`"
        parts = "`x.data`, or add it with `jsg.add`", rows
    elif hasattr(array, "nse") and hasattr(array, "todense"):  # JAX's own
        parts = "`x.data`", "`BCOO.fromdense(x.todense()).indices`"
    elif hasattr(array, "tocoo"):  # SciPy
        parts = "`x.tocoo().data`", "`np.stack(x.tocoo().coords, axis=1)`"
    elif hasattr(array, "coords") and hasattr(array, "todense"):  # the package `sparse`
        parts = "`x.data`", "`x.coords.T`"
    elif hasattr(array, "dense_shape"):  # TensorFlow
        parts = "`x.values`", "`x.indices[:, None]`" if kind == "IndexedSlices" else "`x.indices`"
    elif str(getattr(array, "layout", "")).startswith("torch.sparse"):
        parts = "`x.coalesce().values()`", "`x.coalesce().indices().T`"
    else:
        return
    which, instead = ("values", parts[0]) if part == "data" else ("indices", parts[1])
    raise TypeError(f"`{name}` must be an array, got {kind}; pass its {which}, {instead}")


def _canonical(dtype: np.dtype) -> np.dtype:
    """The dtype that JAX uses for a numpy dtype."""
    native = dtype if dtype.isnative else dtype.newbyteorder("=")
    return np.dtype(jax.dtypes.canonicalize_dtype(native))


def _check_fits(name: str, given: np.ndarray) -> None:
    """Check that no integer changes its value where JAX has no wider dtype."""
    dtype = _canonical(given.dtype)
    if given.dtype == object and all(isinstance(number, int | np.integer) for number in given.flat):
        dtype = _canonical(np.dtype(np.int64))  # Python ints, some of which fit no numpy dtype
    elif given.dtype == dtype or not jnp.issubdtype(dtype, jnp.integer):
        return
    limits = jnp.iinfo(dtype)
    if given.size and (given.min() < limits.min or given.max() > limits.max):
        too_wide = given.dtype == object
        remedy = "JAX has no wider integers" if too_wide else "set `jax_enable_x64` to use 64-bit integers"
        least, most = given.min(), given.max()
        got = least if least == most else f"values from {least} to {most}"
        raise ValueError(f"`{name}` must fit {dtype}, got {got}; {remedy}")


def as_host_array(name: str, array: Any) -> np.ndarray:
    """A concrete array in numpy, in the dtype that JAX uses for it. No integer changes its value."""
    host = np.asarray(array)
    _check_fits(name, host)
    return host.astype(_canonical(host.dtype), copy=False)


def as_integers(name: str, integers: Any) -> jax.Array:
    """An array of an integer dtype and of static shape."""
    if isinstance(integers, list | tuple) and not integers:
        raise TypeError(
            f"`{name}` must have an integer dtype, got an empty list; pass `np.zeros((0, ndims), np.int32)`"
        )
    array = as_array(name, integers, _check_integer, "indices")
    if any(map(export.is_symbolic_dim, array.shape)):
        raise TypeError(f"`{name}` must have a static shape, got {array.shape}; {_SYMBOLIC}")
    return array


def _check_integer(name: str, dtype: np.dtype) -> None:
    if dtype == jax.dtypes.float0:
        raise TypeError(
            f"`{name}` must have an integer dtype, got float0, which stands for no gradient; "
            "pass the indices themselves"
        )
    if jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits > 1:
        return
    hint = ""
    if dtype == np.bool_:
        hint = "; convert a mask with `np.argwhere(mask)`"
    elif jnp.issubdtype(dtype, jnp.floating):
        hint = f"; if these are indices, and not values, cast them with `{name}.astype(int)`"
    elif jnp.issubdtype(dtype, jnp.integer):
        hint = "; cast it to a wider one"
    raise TypeError(f"`{name}` must have an integer dtype, got {_name_of(dtype)}{hint}")


def _name_of(dtype: np.dtype) -> str:
    return "float0, which stands for no gradient" if dtype == jax.dtypes.float0 else str(dtype)


def as_indices(name: str, indices: Any) -> jax.Array:
    """Indices `[nnz, ndims]` of an integer dtype."""
    array = as_integers(name, indices)
    if array.ndim != 2:
        hint = ""
        if array.ndim == 1:
            hint = f"; for a vector, pass `{name}[:, None]`"
        elif array.ndim > 2:
            hint = "; add a batch under `jax.vmap`, or with `jsg.add`"
        raise ValueError(f"`{name}` must be a matrix [nnz, ndims], got shape {array.shape}{hint}")
    return array


def as_common_indices(names: Sequence[str], indices: Sequence[Any]) -> tuple[jax.Array, ...]:
    """Indices of several tensors with equal `ndims`, brought to one dtype."""
    return promote_indices(names, [as_indices(name, array) for name, array in zip(names, indices, strict=True)])


def promote_indices(names: Sequence[str], arrays: Sequence[jax.Array], shards: int = 1) -> tuple[jax.Array, ...]:
    """Indices `[*batch, nnz, ndims]` of several tensors with equal `ndims`, in one dtype.

    `shards` is the number of devices that their rows are spread over.
    """
    for name, array in zip(names[1:], arrays[1:], strict=True):
        shape, first = array.shape[-2:], arrays[0].shape[-2:]
        if shape[1] != first[1]:
            pair = [(name, shape), (names[0], first)]
            hint = _TRANSPOSED if shape[0] == first[0] else ""
            (wide, own), (_, other) = sorted(pair, key=lambda each: -each[1][1])
            if not hint and own[0] == other[1]:  # only one of them is [ndims, nnz]
                pair.sort(key=lambda each: -each[1][1])
                hint = f"; if it is [ndims, nnz], pass its transpose, `{wide}.T`"
            (this, own), (that, other) = pair
            raise ValueError(
                f"`{this}` must have as many columns (ndims) as `{that}`; got {own[1]} and {other[1]}{hint}"
            )
    check_devices(names, arrays)
    total = sum(array.shape[-2] for array in arrays) // shards
    if total > MOST_ENTRIES:
        where = " on each device" if shards > 1 else ""
        raise ValueError(f"`{'`, `'.join(names)}` must have at most {MOST_ENTRIES} rows together{where}, got {total}")
    dtype = common_dtype(names, arrays, "integer dtype")
    if not jnp.issubdtype(dtype, jnp.integer):
        raise _no_common_dtype(names, arrays, "integer dtype")
    return tuple(cast(array, dtype) for array in arrays)


_TRANSPOSED = "; if these are [ndims, nnz], pass their transposes (`.T`)"


def common_dtype(names: Sequence[str], arrays: Sequence[Any], kind: str = "dtype") -> np.dtype:
    """The dtype to which arrays promote as in `jnp`, under the promotion rules that are set."""
    try:
        return np.dtype(jnp.result_type(*arrays))
    except ValueError as error:  # strict promotion, or a dtype that is never promoted
        raise _no_common_dtype(names, arrays, kind) from error


def _no_common_dtype(names: Sequence[str], arrays: Sequence[jax.Array], kind: str) -> TypeError:
    dtypes = ", ".join(str(getattr(array, "dtype", type(array).__name__)) for array in arrays)
    return TypeError(f"`{'`, `'.join(names)}` must have a common {kind}, got {dtypes}; cast one of them")


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


def check_shape_fits(name: str, shape: tuple[int, ...], indices_name: str, indices: jax.Array) -> None:
    """Check that a shape has one size for each column of indices, whose dtype has room for padding (= the size)."""
    if len(shape) != indices.shape[-1]:
        raise ValueError(
            f"`{name}` must have as many sizes as `{indices_name}` has columns; "
            f"got {shape} and {indices.shape[-1]} columns" + (_TRANSPOSED if len(shape) == indices.shape[-2] else "")
        )
    check_sizes_fit(name, shape, indices.dtype)


def check_sizes_fit(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Check that indices of the dtype can express all positions in a shape, and padding."""
    largest = int(jnp.iinfo(_canonical(dtype)).max)
    if any(size > largest for size in shape):
        remedy = "set `jax_enable_x64` and use int64"
        if max(shape) < 2**32:
            wider = "uint32" if largest >= 2**31 - 1 else "a wider dtype"
            remedy = f"cast the indices to {wider}"
        raise ValueError(
            f"`{name}` must not exceed {largest}, the largest index of {dtype}, in any dimension "
            f"(padding is marked by index == shape); got {shape}; {remedy}"
        )


def as_numeric(name: str, values: Any) -> jax.Array:
    """A numeric array, of a dtype that has what a sum needs."""
    return as_array(name, values, _check_numeric)


def _check_numeric(name: str, dtype: np.dtype) -> None:
    if dtype == np.bool_:
        raise TypeError(f"`{name}` must have a numeric dtype, got bool; cast it, `{name}.astype(jnp.int32)` to count")
    if not jnp.issubdtype(dtype, jnp.number):
        raise TypeError(f"`{name}` must have a numeric dtype, got {_name_of(dtype)}")
    lacks = _lacks(dtype)
    if lacks:
        raise TypeError(f"`{name}` must have a dtype {lacks}, got {dtype}; cast it to a wider one")


@functools.cache
def _lacks(dtype: np.dtype) -> str | None:
    """What a numeric dtype lacks for sums, if anything."""
    if jnp.issubdtype(dtype, jnp.integer):
        return "of at least 2 bits" if jnp.iinfo(dtype).bits < 2 else None
    if np.zeros((), dtype) != 0:
        return "that has a zero, the value of absent entries"
    if not np.isnan(np.asarray(np.nan, dtype)):
        return "that has a NaN, which marks an overflowed sum"
    return None


def as_values(name: str, values: Any, nnz: int, indices_name: str) -> jax.Array:
    """Numeric values `[nnz, *dense]`."""
    array = as_numeric(name, values)
    if array.ndim == 0:
        raise ValueError(
            f"`{name}` must have shape [nnz, *dense], got a scalar; repeat it for each entry, `jnp.full({nnz}, ...)`"
        )
    if export.is_symbolic_dim(array.shape[0]):
        raise TypeError(f"`{name}` must have a static number of rows, got shape {array.shape}; {_SYMBOLIC}")
    if array.shape[0] != nnz:
        raise ValueError(f"`{name}` must have one row for each row of `{indices_name}`; got {array.shape[0]} and {nnz}")
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

    `indices` is what the rows of an operand are called after it, for messages.
    """
    if len(values) != len(nnz):
        listed = len(values) == 1 and isinstance(values[0], list | tuple)
        raise ValueError(
            f"`values` must be given for each of the {len(nnz)} operands of the plan, got {len(values)}"
            + ("; unpack the list, `plan(*values)`" if listed else "")
        )
    operands = range(len(nnz))
    names, index_names = ([f"{each}[{k}]" for k in operands] for each in ("values", "operands"))
    arrays = as_common_values(names, values, [name + indices for name in index_names], nnz)
    return arrays, common_dtype(("values",), arrays)


def as_threshold(thresh: Any) -> Threshold | None:
    """A threshold; None if it is known to drop nothing, because no magnitude is less than 0.

    It is exact for every number that a supported dtype can reach, and infinite above all of these.
    """
    thresh = unwrap(thresh)
    if isinstance(thresh, jax.Array) and not is_concrete(thresh):
        _check_thresh(thresh)
        return as_array("thresh", thresh)
    if isinstance(thresh, int) and not isinstance(thresh, bool):
        exact: Any = thresh
    else:
        host = _read_thresh(thresh)
        _check_thresh(host)
        if np.isnan(host):
            raise ValueError("`thresh` must not be NaN")
        # float32 lacks some of the whole numbers that 32-bit integers have.
        whole = jnp.issubdtype(host.dtype, jnp.integer) or (2**24 < float(host) < 2**32 and float(host).is_integer())
        exact = int(host) if whole else host
    threshold = _nearest(exact)
    return threshold if threshold > 0 else None


def _read_thresh(thresh: Any) -> np.ndarray:
    expected = "`thresh` must be a real number"
    if type(thresh) in _LISTS:
        thresh = _read_list("thresh", thresh, "data")
    if not isinstance(thresh, np.generic | float | complex | bool) and not hasattr(thresh, "__array__"):
        raise TypeError(f"{expected}, got {_shown(thresh)}")  # numpy would read a container element by element
    try:
        host = read(thresh)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{expected}, got {_shown(thresh)}") from error
    if host.dtype == object or not jnp.issubdtype(host.dtype, np.generic):
        raise TypeError(f"{expected}, got {_shown(thresh)}")
    return host


def _check_thresh(thresh: Any) -> None:
    if not jnp.issubdtype(thresh.dtype, jnp.integer) and not jnp.issubdtype(thresh.dtype, jnp.floating):
        raise TypeError(f"`thresh` must be a real number, got dtype {_name_of(thresh.dtype)}")
    if thresh.shape != ():
        raise ValueError(f"`thresh` must be a scalar, got shape {thresh.shape}")


def _nearest(number: Any) -> np.ndarray:
    """A real number in a dtype that JAX has: exact if one can express it, else as the nearest float."""
    if isinstance(number, int):
        dtype = np.min_scalar_type(number)
        if dtype.kind in "iu" and dtype == _canonical(dtype):
            return np.asarray(number, dtype)
        try:
            number = np.asarray(float(number))
        except OverflowError:
            number = np.asarray(math.inf if number > 0 else -math.inf)
    dtype = np.dtype(np.float64) if number.dtype == np.longdouble else number.dtype
    with np.errstate(over="ignore"):
        return np.array(number, _canonical(dtype))
