"""What leaves the process: a mesh as a description of its devices, arrays as numpy arrays."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar, Self

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jax_sparse_grad._concrete import is_concrete, read
from jax_sparse_grad.sharded._mesh import Axis, Layout, from_host


def describe_layout(layout: Layout) -> dict[str, Any]:
    """Lists, ints and strings from which `layout_of` makes the layout again, in another process too."""
    mesh = layout.mesh
    ids = np.array([device.id for device in mesh.devices.flat]).reshape(mesh.devices.shape)
    types = [kind.name for kind in mesh.axis_types]
    described = {"device_ids": ids.tolist(), "axis_names": list(mesh.axis_names), "axis_types": types}
    return {"shape": list(layout.shape), "mesh": described, "axis": layout.axis}


def layout_of(description: dict[str, Any]) -> Layout:
    """The layout, on those devices of this program that have the same ids."""
    mesh, axis = description["mesh"], description["axis"]
    ids, names = np.array(mesh["device_ids"], int), mesh["axis_names"]
    devices = {device.id: device for device in jax.devices()}
    missing = sorted(set(ids.ravel().tolist()) - set(devices))
    if missing:
        axes = dict(zip(names, ids.shape, strict=True))
        raise ValueError(
            f"a mesh of {ids.size} devices (axes {axes}) needs devices with the same ids; {missing} are missing from "
            f"the {len(devices)} of this program (platform {jax.default_backend()!r}); start it with as many (on CPUs "
            f"with `XLA_FLAGS=--xla_force_host_platform_device_count={ids.max() + 1}`), or save from a smaller mesh"
        )
    found = np.array([devices[device] for device in ids.flat], object).reshape(ids.shape)
    types = tuple(AxisType[kind] for kind in mesh["axis_types"])
    axis = axis if isinstance(axis, str) else tuple(axis)
    return Layout(tuple(description["shape"]), Mesh(found, names, axis_types=types), axis)


@dataclasses.dataclass(frozen=True)
class _HostArray:
    """An array on the host, and how it was spread over the mesh; `spec` is None if it was not spread."""

    values: np.ndarray
    spec: tuple[Any, ...] | None


class OnMesh:
    """A dataclass of arrays on a mesh, which can be saved although devices belong to the process."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    layout: Layout

    @property
    def mesh(self) -> Mesh:
        """The device mesh (static)."""
        return self.layout.mesh

    @property
    def axis(self) -> Axis:
        """The axis of the mesh, or a tuple of axes (static)."""
        return self.layout.axis

    @property
    def shards(self) -> int:
        """The number of shards (static)."""
        return self.layout.shards

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "layout"}
        saved = jax.tree.map(lambda leaf: _to_host(type(self).__name__, self.mesh, leaf), fields)
        return _restore, (type(self), describe_layout(self.layout), saved)

    def __copy__(self) -> Self:
        return dataclasses.replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied: Self = jax.tree.map(lambda leaf: copy.deepcopy(leaf, memo), self)
        return copied


def _to_host(name: str, mesh: Mesh, leaf: Any) -> Any:
    if not is_concrete(leaf):
        raise TypeError(f"a `{name}` must be concrete to be pickled, got a traced array; pickle it outside of `jit`")
    if not isinstance(leaf, jax.Array):
        return leaf
    if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        raise ValueError(
            f"a `{name}` must lie in one process to be pickled, but this process holds only a part of it; save the "
            "`addressable_shards` of its arrays in each process (as Orbax does), or gather them by "
            "`jax.experimental.multihost_utils.process_allgather(..., tiled=True)`"
        )
    on_mesh = isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh
    return _HostArray(read(leaf), tuple(leaf.sharding.spec) if on_mesh else None)  # type: ignore[attr-defined]


def _restore(kind: type, description: dict[str, Any], saved: dict[str, Any]) -> Any:
    layout = layout_of(description)

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, _HostArray):
            return leaf
        if leaf.spec is None:
            return jax.device_put(leaf.values.copy())  # pickle may own the memory
        return from_host(layout.mesh, PartitionSpec(*leaf.spec), leaf.values)

    return kind(layout=layout, **jax.tree.map(put, saved))
