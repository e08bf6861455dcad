"""How `jax.export` writes the trees of this package: under names, and in a form, that stay as they are.

What is static in a tree is written as JSON, field by field, so that what was written before there was a field can be
read (if that has a default), and nothing but what is named here is ever made of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from jax import export
from jax.sharding import Mesh

from jax_sparse_grad._plan import SparseAddPlan
from jax_sparse_grad._sparse_add import SparseAddOutput
from jax_sparse_grad._sparse_add_grad import SparseAddGradOutput
from jax_sparse_grad._union import Joined, Placement, Union
from jax_sparse_grad.sharded._operand import RowSharded
from jax_sparse_grad.sharded._plan import ShardedPlan
from jax_sparse_grad.sharded._saving import describe_mesh, mesh_of


def _as_axis(axis: Any) -> str | tuple[str, ...]:
    return axis if isinstance(axis, str) else tuple(axis)


def _as_json(value: Any) -> Any:
    """What JSON has no form for by itself."""
    if isinstance(value, Mesh):
        return describe_mesh(value)
    raise TypeError(f"`jax.export` cannot write a {type(value).__name__}, {value!r}, that is static in a tree")


def _register(
    kind: type,
    fields: Sequence[str],
    readers: dict[str, Callable[[Any], Any]],
    as_tuple: Callable[[Any], Sequence[Any]] = tuple,
) -> None:
    """Let a tree be written that JAX takes apart into arrays and a tuple of what is static in it.

    `fields` are all of its fields, `readers` make the static ones, in the order of that tuple, of what JSON gives;
    `as_tuple` makes the tuple where JAX was told of something else.
    """
    arrays = [field for field in fields if field not in readers]

    def write(static: Any) -> bytes:
        return json.dumps(dict(zip(readers, as_tuple(static), strict=True)), default=_as_json).encode()

    def read(written: bytes) -> dict[str, Any]:
        static = json.loads(written)
        if unknown := sorted(set(static) - set(readers)):
            raise ValueError(f"a {kind.__name__} of a later version of jax_sparse_grad: this one knows no {unknown}")
        return {name: readers[name](value) for name, value in static.items()}

    def build(aux_data: Any, children: Sequence[Any]) -> Any:
        return kind(**dict(zip(arrays, children, strict=True)), **aux_data)

    export.register_pytree_node_serialization(
        kind,
        serialized_name=f"jax_sparse_grad.{kind.__name__}",
        serialize_auxdata=write,
        deserialize_auxdata=read,
        from_children=build,
    )


def _register_dataclass(kind: Any, **readers: Callable[[Any], Any]) -> None:
    _register(kind, [field.name for field in dataclasses.fields(kind)], readers)


_register_dataclass(SparseAddPlan, shape=tuple, nse=int)
_register_dataclass(RowSharded, shape=tuple, mesh=mesh_of, axis=_as_axis)
_register_dataclass(ShardedPlan, shape=tuple, mesh=mesh_of, axis=_as_axis)
_register(Joined, ["sizes"], {"sizes": tuple}, lambda joined: (joined.sizes,))
_register(SparseAddOutput, SparseAddOutput._fields, {"sum_shape": tuple}, lambda shape: (shape,))
for _kind in (SparseAddGradOutput, Union, Placement):
    export.register_namedtuple_serialization(_kind, serialized_name=f"jax_sparse_grad.{_kind.__name__}")
