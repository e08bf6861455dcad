"""What is static in a sum, and the types of arguments as public signatures name them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, SupportsIndex, TypeVar

import jax
import numpy as np
from jax.experimental.sparse import BCOO as BCOO
from jax.experimental.sparse import BCSR
from jax.typing import ArrayLike

Arrays = tuple[jax.Array, ...]

Threshold = jax.Array | np.ndarray[Any, Any]
"""A scalar. What the user gave as a number stays with numpy: no device is asked for it."""


class Spec(NamedTuple):
    """What is static in a sum, as it is asked for; checked.

    names: of the operands' indices, for messages.
    shape: the sparse shape.
    nse: the number of elements to store; None for as many as are needed.
    canonical: whether the caller asserts that all operands are sorted and unique, with padding only at the end.
    beyond_is_padding: whether any row beyond the shape is padding, as in JAX's containers; otherwise, it is an error
      unless all its indices equal the shape.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    nse: int | None = None
    canonical: bool = False
    beyond_is_padding: bool = False


class SupportsJaxArray(Protocol):
    """A wrapper such as `flax.nnx.Param`; what it holds is used."""

    def __jax_array__(self) -> Any: ...


class SupportsArray(Protocol):
    """An array of another library that numpy can read."""

    def __array__(self) -> Any: ...


class SupportsToCoo(Protocol):
    """A sparse matrix or array of SciPy."""

    def tocoo(self) -> Any: ...


# A `str` is a `Sequence` of `str`, and so a nested one too: of nested sequences, only lists and tuples are named.
ArrayInput = ArrayLike | SupportsJaxArray | SupportsArray | range | list[Any] | tuple[Any, ...]
"""Anything array-like: indices and values."""

Shape = Sequence[SupportsIndex] | np.ndarray[Any, Any] | jax.Array
"""Static sizes."""

RowStarts = Shape
"""The first row of each shard, and the number of rows."""

Sparse = BCOO | BCSR
HostMatrix = Sparse | SupportsToCoo
"""What `sharded.partition` takes."""

Dense = jax.Array | np.ndarray[Any, Any] | list[Any] | tuple[Any, ...]
Operand = Sparse | Dense | SupportsJaxArray
"""What `add` takes; a number has no shape, and is not among them."""

Weights = Iterable[ArrayLike | SupportsJaxArray] | SupportsJaxArray
"""A scalar for each operand."""

SparseT = TypeVar("SparseT", BCOO, BCSR)

if TYPE_CHECKING:
    # Only with a default may users write `SparseAddPlan` for a plan of any matrices; Python has that from 3.13 on.
    from typing_extensions import TypeVar as TypeVarWithDefault

    MatrixT = TypeVarWithDefault("MatrixT", bound=Sparse, default=Sparse, covariant=True)
else:
    MatrixT = TypeVar("MatrixT", bound=Sparse, covariant=True)
