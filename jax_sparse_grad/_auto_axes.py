"""Sums of arrays that lie on a mesh with `Explicit` axes.

On these, JAX must know the sharding of every intermediate result, and refuses many of the operations that a sum
consists of. So sums run with the axes switched to `Auto`, where XLA chooses shardings, and only results are given one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, auto_axes

from jax_sparse_grad._concrete import is_concrete, outside_of_trace

P = ParamSpec("P")
R = TypeVar("R")


def on_auto_axes(function: Callable[P, R]) -> Callable[P, R]:
    """`function` for arguments that may hold arrays on `Explicit` axes; its results are not divided along these.

    (Under `vmap` over a divided axis, results are divided along that axis too.)
    """

    @functools.wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        mesh = explicit_mesh((args, keywords))
        if mesh is None:
            return function(*args, **keywords)
        untyped: Callable[..., R] = function  # type checkers cannot know what a tree holds
        return call_on_auto_axes(lambda tree: untyped(*tree[0], **tree[1]), (args, keywords), mesh, PartitionSpec())

    return call


def explicit_mesh(tree: Any) -> AbstractMesh | None:
    """The mesh with `Explicit` axes that an array of the tree lies on."""
    for leaf in jax.tree.leaves(tree, is_leaf=_is_iterator):
        if isinstance(leaf, jax.Array):
            mesh = jax.typeof(leaf).sharding.mesh
            if AxisType.Explicit in mesh.axis_types:
                return mesh
    return None


def _is_iterator(x: Any) -> bool:
    """Whether it is an iterator, which must not be consumed: JAX has to be told that it is a leaf."""
    return isinstance(x, Iterator)


def call_on_auto_axes(function: Callable[[Any], Any], tree: Any, mesh: AbstractMesh, specs: Any) -> Any:
    """`function(tree)` with the `Explicit` axes of the mesh switched to `Auto`.

    `specs`: how the result is divided, a tree prefix of it.
    """
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_iterator)
    # Concrete leaves must stay concrete, so that sums get their exact length: they do not go through the trace.
    traced = not is_concrete(leaves)
    through = [k for k, leaf in enumerate(leaves) if (not is_concrete(leaf) if traced else isinstance(leaf, jax.Array))]
    fixed = leaves if not traced else outside_of_trace(lambda: [on_auto_mesh(leaf) for leaf in leaves])

    def call(*arrays: jax.Array) -> Any:
        given = dict(zip(through, arrays, strict=True))
        return function(jax.tree.unflatten(treedef, [given.get(k, leaf) for k, leaf in enumerate(fixed)]))

    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    out = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    return auto_axes(call, axes=axes, out_sharding=out)(*(leaves[k] for k in through))


def on_auto_mesh(leaf: Any) -> Any:
    """A concrete array, on the same devices but with `Auto` axes; anything else unchanged."""
    if not is_concrete(leaf) or not isinstance(leaf, jax.Array):
        return leaf
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return leaf
    kinds = tuple(AxisType.Auto if kind == AxisType.Explicit else kind for kind in sharding.mesh.axis_types)
    mesh = Mesh(np.asarray(sharding.mesh.devices), sharding.mesh.axis_names, axis_types=kinds)
    return jax.device_put(leaf, NamedSharding(mesh, sharding.spec))


def spec_of(array: jax.Array) -> tuple[Any, ...]:
    """The mesh axes along which each dimension of an array is divided; None where it is not divided."""
    spec = tuple(jax.typeof(array).sharding.spec)
    return (*spec, *[None] * (array.ndim - len(spec)))


def merge_specs(specs: Iterable[Sequence[Any]]) -> tuple[Any, ...]:
    """For each dimension the first division along axes that no other dimension has taken."""
    merged: list[Any] = []
    taken: set[str] = set()
    for candidates in itertools.zip_longest(*specs):
        named = [(axes, {axes} if isinstance(axes, str) else set(axes)) for axes in candidates if axes is not None]
        axes, new = next((each for each in named if not each[1] & taken), (None, set()))
        merged.append(axes)
        taken |= new
    return tuple(merged)
