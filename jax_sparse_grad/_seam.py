"""One primitive, several methods: each platform's compiler sees its own, and nobody traces the others.

    bind        static shapes only: the jaxpr of a user's function has one line for the whole
       |  vmap      the same primitive, one more level of batches
       |  lower     the method of the platform that is compiled for, traced now

`lax.platform_dependent` would do too, but traces the methods of all platforms wherever one is used, and under
differentiation each of them hands on what any of them must keep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir, partial_eval
from jax.sharding import NamedSharding, PartitionSpec

from jax_sparse_grad._eager import own_transfers
from jax_sparse_grad._primitives import vary_alike

T = TypeVar("T")

_PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu", None: "tpu"}
"""The method for each platform that JAX lowers for. A platform that nobody knows gets the one that is portable."""

forced: str | None = None
"""The method that every platform uses; for tests, which then must clear JAX's caches. None: its own."""


@dataclasses.dataclass(frozen=True, eq=False)
class Seam:
    """A function of `data` and `values`, two trees of arrays, for which each platform has its own method.

    It returns two trees. The first depends on `data` alone: its tangents are zero, and under `vmap` over values it has
    no batch axis. The second is linear in `values`, and empty if these are.

    methods: by platform; `method(static, data, values, separate)` for one batch. If `separate`, what depends on data
      must not be computed together with values, which have a batch axis that data lack.
    shapes_of: `shapes_of(static, data, values)`, a `jax.ShapeDtypeStruct` for each array of the results.
    tangent_of: `tangent_of(kept, values)`, the second result again, from all of the first; None without values.
    keep: `keep(static)`, with which the first result is all that `tangent_of` needs.
    select: `select(static, kept)`, the first result from that.
    """

    methods: Mapping[str, Callable[..., tuple[Any, Any]]]
    shapes_of: Callable[[Any, Any, Any], tuple[Any, Any]]
    tangent_of: Callable[[Any, Any], Any] | None = None
    keep: Callable[[Any], Any] = lambda static: static
    select: Callable[[Any, Any], Any] = lambda _, kept: kept

    def __call__(self, static: Hashable, data: Any, values: Any = ()) -> tuple[Any, Any]:
        """Both results."""
        return _bind(_Call(self, static), vary_alike((data, values)))


def per_platform(
    *, cpu: Callable[..., T], otherwise: Callable[..., T], gpu: Callable[..., T] | None = None
) -> Callable[..., T]:
    """A function of arrays, not to be differentiated, with one method for XLA:CPU and one or two for all others."""

    def method_of(function: Callable[..., T]) -> Callable[..., tuple[T, None]]:
        return lambda _static, arrays, *_: (function(*arrays), None)

    other = method_of(otherwise)
    seam = Seam(
        {"cpu": method_of(cpu), "gpu": other if gpu is None else method_of(gpu), "tpu": other},
        lambda static, arrays, values: jax.eval_shape(partial(other, static), arrays, values),
    )
    return lambda *arrays: seam(None, arrays)[0]


Shapes = tuple[Any, Any]
"""Both results, with a `jax.ShapeDtypeStruct` for each array."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is static in a call of a function.

    treedef: that of data and values.
    batches: for each level of batches, the outermost last, which of their arrays have its axis.
    """

    seam: Seam
    static: Any
    treedef: Any = None
    batches: tuple[tuple[bool, ...], ...] = ()

    @property
    def data_count(self) -> int:
        """The number of arrays in the data; those of the values follow."""
        count: int = self.treedef.children()[0].num_leaves
        return count

    @property
    def of_data(self) -> list[bool]:
        """For each level, whether the data have its axis, and so the first result. The second has all axes."""
        return [any(level[: self.data_count]) for level in self.batches]

    def keeping(self, *, values: bool = True) -> _Call:
        """The same call with all that tangents need as its first result; without values, it has no second one."""
        kept = dataclasses.replace(self, static=self.seam.keep(self.static))
        if values:
            return kept
        levels = (level[: self.data_count] for level in self.batches)
        return dataclasses.replace(kept, batches=tuple(filter(any, levels)))

    def select(self, kept: Any) -> Any:
        """The first result, from that of `keeping()`."""
        return self.seam.select(self.static, kept)

    def move(self, kept: Any, values: Sequence[Any]) -> Any:
        """The second result again, from the first of `keeping()`."""
        if self.seam.tangent_of is None:
            raise TypeError("a function without values has no tangents")
        levels = [((_axis(of_data), 0), 0) for of_data in self.of_data]
        return _map_levels(self.seam.tangent_of, levels)(kept, jax.tree.unflatten(self.treedef.children()[1], values))


@lru_cache(4096)
def _shapes(call: _Call, kinds: tuple[tuple[tuple[int, ...], np.dtype], ...]) -> Shapes:
    depths = [sum(level[k] for level in call.batches) for k in range(len(kinds))]
    single = [jax.ShapeDtypeStruct(shape[depth:], dtype) for (shape, dtype), depth in zip(kinds, depths, strict=True)]
    counts: list[int] = []  # of the batches at each level, the outermost first
    for level in call.batches[::-1]:
        k = level.index(True)
        counts.append(kinds[k][0][sum(outer[k] for outer in call.batches[::-1][: len(counts)])])
    results = call.seam.shapes_of(call.static, *jax.tree.unflatten(call.treedef, single))

    def with_batches(result: Any, axes: Sequence[bool]) -> Any:
        outer = tuple(count for count, has in zip(counts, axes[::-1], strict=True) if has)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(outer + leaf.shape, leaf.dtype), result)

    return with_batches(results[0], call.of_data), with_batches(results[1], [True] * len(call.batches))


def _kinds(arrays: Sequence[Any]) -> tuple[tuple[tuple[int, ...], np.dtype], ...]:
    return tuple((array.shape, np.dtype(array.dtype)) for array in arrays)


def _map_levels(function: Callable[..., Any], levels: Sequence[tuple[Any, Any]]) -> Callable[..., Any]:
    """`function` under one `vmap` for each level, given the axes of its arguments and results."""
    for in_axes, out_axes in levels:
        function = jax.vmap(function, in_axes=in_axes, out_axes=out_axes)
    return function


def _axis(has: bool) -> int | None:
    return 0 if has else None


def _bind(call: _Call, arguments: tuple[Any, Any]) -> tuple[Any, Any]:
    leaves, treedef = jax.tree.flatten(arguments)
    call = dataclasses.replace(call, treedef=treedef)
    results = _platform_call.bind(*leaves, call=call, method=forced)
    trees: tuple[Any, Any] = jax.tree.unflatten(jax.tree.structure(_shapes(call, _kinds(leaves))), results)
    return trees


@partial(jax.jit, static_argnums=(0, 1))
def _run(call: _Call, method: str, leaves: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    def run(*leaves: jax.Array) -> tuple[Any, Any]:
        return call.seam.methods[method](call.static, *jax.tree.unflatten(call.treedef, leaves), not all(call.of_data))

    axes = zip(call.batches, call.of_data, strict=True)
    return _map_levels(run, [(tuple(map(_axis, level)), (_axis(of_data), 0)) for level, of_data in axes])(*leaves)


def _lower(platform_method: str, *leaves: jax.Array, call: _Call, method: str | None) -> Sequence[jax.Array]:
    return jax.tree.leaves(_run(call, method or platform_method, leaves))


def _execute(*leaves: jax.Array, **parameters: Any) -> Sequence[jax.Array]:
    with jax.disable_jit(False), own_transfers():
        return jax.jit(partial(_platform_call.bind, **parameters))(*leaves)


def _abstract(*kinds: Any, call: _Call, **_: Any) -> list[Any]:
    meshes = [kind.sharding.mesh for kind in kinds]  # constants know of none
    undivided = NamedSharding(next((mesh for mesh in meshes if not mesh.empty), meshes[0]), PartitionSpec())
    return [
        kinds[0].update(shape=leaf.shape, dtype=leaf.dtype, weak_type=False, sharding=undivided)
        for leaf in jax.tree.leaves(_shapes(call, _kinds(kinds)))
    ]


def _batch(
    leaves: Sequence[Any], dims: Sequence[int | None], *, call: _Call, method: str | None
) -> tuple[Sequence[Any], list[int | None]]:
    moved = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(leaves, dims, strict=True)]
    count = next(x.shape[0] for x, dim in zip(moved, dims, strict=True) if dim is not None)
    # All values are broadcast: what is linear in them then need not sum over what was shared, because JAX does.
    for k in range(call.data_count, len(moved)):
        if dims[k] is None:
            moved[k] = jnp.broadcast_to(moved[k], (count, *moved[k].shape))
    level = tuple(dim is not None or k >= call.data_count for k, dim in enumerate(dims))
    call = dataclasses.replace(call, batches=(*call.batches, level))
    results = _platform_call.bind(*moved, call=call, method=method)
    first, second = (jax.tree.leaves(tree) for tree in _shapes(call, _kinds(moved)))
    return results, [_axis(call.of_data[-1])] * len(first) + [0] * len(second)


def _differentiate(
    leaves: Sequence[Any], tangents: Sequence[Any], *, call: _Call, **_: Any
) -> tuple[Sequence[Any], Sequence[Any]]:
    def zeros(results: Sequence[Any]) -> list[Any]:
        return [ad.Zero(jax.typeof(result).to_tangent_aval()) for result in results]

    arguments = jax.tree.unflatten(call.treedef, leaves)
    values, dots = leaves[call.data_count :], tangents[call.data_count :]
    if all(type(dot) is ad.Zero for dot in dots):
        results = jax.tree.leaves(_bind(call, arguments))
        return results, zeros(results)
    kept, second = _bind(call.keeping(), arguments)
    filled = [jnp.zeros_like(x) if type(dot) is ad.Zero else dot for x, dot in zip(values, dots, strict=True)]
    first = jax.tree.leaves(call.select(kept))
    return first + jax.tree.leaves(second), zeros(first) + jax.tree.leaves(call.move(kept, filled))


def _evaluate_known(trace: Any, *leaves: Any, call: _Call, **parameters: Any) -> Sequence[Any]:
    """The first result at once if only values are unknown, because it does not depend on them.

    Differentiation asks for the tangents alone; this is for `jax.linear_transpose`, whose argument is unknown.
    """
    data, values = leaves[: call.data_count], leaves[call.data_count :]
    if not all(leaf.is_known() for leaf in data) or all(leaf.is_known() for leaf in values):
        return trace.default_process_primitive(_platform_call, leaves, {"call": call, **parameters})
    known_data = jax.tree.unflatten(call.treedef.children()[0], [leaf.pval.get_known() for leaf in data])
    kept, _ = _bind(call.keeping(values=False), (known_data, ()))
    kinds = [jax.ShapeDtypeStruct(leaf.aval.shape, leaf.aval.dtype) for leaf in values]
    move = jax.make_jaxpr(call.move)(kept, kinds)
    known = dict(zip(move.jaxpr.constvars, move.consts, strict=True))
    known |= zip(move.jaxpr.invars, [*jax.tree.leaves(kept), *values], strict=True)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jax.extend.core.Literal) else known[atom]

    for step in move.jaxpr.eqns:
        result = trace.process_primitive(step.primitive, [*map(read, step.invars)], step.params)
        known |= zip(step.outvars, result if step.primitive.multiple_results else [result], strict=True)
    return [*jax.tree.leaves(call.select(kept)), *map(read, move.jaxpr.outvars)]


_platform_call = jax.extend.core.Primitive("sparse_add_platform_call")
_platform_call.multiple_results = True
_platform_call.def_impl(_execute)
_platform_call.def_abstract_eval(_abstract)
batching.primitive_batchers[_platform_call] = _batch
ad.primitive_jvps[_platform_call] = _differentiate
partial_eval.custom_partial_eval_rules[_platform_call] = _evaluate_known
for _platform, _method in _PLATFORMS.items():
    mlir.register_lowering(
        _platform_call, mlir.lower_fun(partial(_lower, _method), multiple_results=True), platform=_platform
    )
