"""How `jax.export` writes the pytrees of this package, in a form that later versions can read.

What is static in a tree is written as JSON, field by field. So a file that was written before a field existed can be
read (if the field has a default), and reading a file never creates anything but what is named here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from jax import export

from jax_sparse_grad._plan import SparseAddPlan
from jax_sparse_grad._sparse_add import SparseAddOutput
from jax_sparse_grad._sparse_add_grad import SparseAddGradOutput
from jax_sparse_grad._union import Union
from jax_sparse_grad.sharded._operand import RowSharded
from jax_sparse_grad.sharded._plan import ShardedPlan
from jax_sparse_grad.sharded._saving import describe_layout, layout_of


def _register(
    kind: type,
    fields: Sequence[str],
    readers: dict[str, Callable[[Any], Any]],
    as_tuple: Callable[[Any], Sequence[Any]] = tuple,
) -> None:
    """Let `jax.export` write a pytree that JAX takes apart into arrays and a tuple of what is static in it.

    `fields` are all of its fields. `readers` convert the static ones from JSON, in the order of that tuple. `as_tuple`
    makes that tuple, of what JSON can express, if the static part is registered as something else.
    """
    arrays = [field for field in fields if field not in readers]

    def write(static: Any) -> bytes:
        return json.dumps(dict(zip(readers, as_tuple(static), strict=True))).encode()

    def read(written: bytes) -> dict[str, Any]:
        static = json.loads(written)
        if unknown := sorted(set(static) - set(readers)):
            raise ValueError(f"this {kind.__name__} is of another version of jax_sparse_grad, which has {unknown}")
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


def _fields_of(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


_register(SparseAddPlan, _fields_of(SparseAddPlan), {"shape": tuple})
_register(
    RowSharded,
    _fields_of(RowSharded),
    {"layout": layout_of, "dense_shape": tuple},
    lambda static: (describe_layout(static[0]), static[1]),
)
_register(ShardedPlan, _fields_of(ShardedPlan), {"layout": layout_of}, lambda static: (describe_layout(static[0]),))
_register(SparseAddOutput, SparseAddOutput._fields, {"sum_shape": tuple}, lambda shape: (shape,))
for _kind in (SparseAddGradOutput, Union):
    export.register_namedtuple_serialization(_kind, serialized_name=f"jax_sparse_grad.{_kind.__name__}")
