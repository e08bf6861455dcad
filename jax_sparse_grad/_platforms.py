"""Functions with a method for each platform, and one in numpy for concrete arrays. They have no derivatives.

    bind        only shapes are inferred: in the jaxpr of a user's function, the whole is one line
       |  vmap      the same primitive, with one more level of batches
       |  lower     the method of the platform that is compiled for is traced
       |  concrete  numpy: nothing is compiled

`lax.platform_dependent` would trace the methods of all platforms in each use, and would let `checkify` look inside,
where it would take indices that are out of bounds on purpose for errors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from jax_sparse_grad._auto_axes import on_auto_mesh
from jax_sparse_grad._batching import pvary_alike
from jax_sparse_grad._concrete import allow_transfers, on_cpu, put_like

T = TypeVar("T")

PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu", None: "tpu"}
"""The method for each platform that JAX lowers for. Unknown platforms get the portable one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Methods:
    """The methods of one function, `method(static, *arrays)`, which return a list of arrays.

    `host` gets and returns numpy's arrays `[*batch, ...]`, in which the batch axes of what is shared have length 1. The
    others get one batch. XLA:CPU loops over batches, because `vmap` would make vectors of its scalars.
    """

    host: Callable[..., Sequence[Any]]
    cpu: Callable[..., Sequence[jax.Array]]
    gpu: Callable[..., Sequence[jax.Array]]
    tpu: Callable[..., Sequence[jax.Array]]

    def __call__(self, static: Hashable, *arrays: Any) -> list[jax.Array]:
        """The results, for which JAX's transformations see one primitive."""
        results: list[jax.Array] = _call.bind(*pvary_alike(arrays), methods=self, static=static, levels=())
        return results


Levels = tuple[tuple[bool, ...], ...]
"""For each `vmap`, the outermost last, which arrays have its axis. All results do."""


def with_batch_axes(array: Any, k: int, levels: Levels) -> Any:
    """Array k of a call, in numpy, with an axis of length 1 for each level whose axis it lacks."""
    has = [level[k] for level in reversed(levels)]
    own = iter(array.shape)
    return array.reshape([next(own) if each else 1 for each in has] + list(array.shape[sum(has) :]))


def map_levels(function: Callable[..., T], levels: Levels) -> Callable[..., T]:
    """A function of one batch, mapped over all levels. Arrays that a level does not list have its axis."""

    def mapped(*arrays: jax.Array) -> T:
        inner = function
        for level in levels:
            axes = [0 if has else None for has in level] + [0] * (len(arrays) - len(level))
            inner = jax.vmap(inner, in_axes=axes)
        return inner(*arrays)

    return mapped


def move_axes(arrays: Sequence[Any], dims: Sequence[int | None]) -> list[Any]:
    """The arrays, each with its batch axis first."""
    return [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(arrays, dims, strict=True)]


@lru_cache(4096)
def _shapes(methods: Methods, static: Hashable, levels: Levels, kinds: tuple[Any, ...]) -> list[Any]:
    single, batch = [], [0] * len(levels)  # the outermost last
    for k, (shape, dtype) in enumerate(kinds):
        own = [n for n, level in enumerate(levels) if level[k]]
        for n, size in zip(reversed(own), shape, strict=False):
            batch[n] = size
        single.append(jax.ShapeDtypeStruct(shape[len(own) :], dtype))
    results = jax.eval_shape(partial(methods.tpu, static), *single)
    return [jax.ShapeDtypeStruct((*reversed(batch), *each.shape), each.dtype) for each in results]


def _shapes_of(arrays: Sequence[Any], methods: Methods, static: Hashable, levels: Levels) -> list[Any]:
    return _shapes(methods, static, levels, tuple((np.shape(each), np.dtype(each.dtype)) for each in arrays))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(platform: str, methods: Methods, static: Hashable, levels: Levels, arrays: Any) -> Sequence[jax.Array]:
    shapes = _shapes_of(arrays, methods, static, levels)
    if any(0 in each.shape[: len(levels)] for each in shapes):  # an empty batch, over which JAX cannot loop
        zeros = [jnp.zeros(each.shape, each.dtype) for each in shapes]
        return pvary_alike((zeros, arrays))[0]
    function: Callable[..., Any] = partial(getattr(methods, platform), static)
    if platform == "cpu":
        function = jax.custom_batching.sequential_vmap(function)
    results: Sequence[jax.Array] = pvary_alike((list(map_levels(function, levels)(*arrays)), arrays))[0]
    return results


def _lower(platform: str, *arrays: jax.Array, methods: Methods, static: Hashable, levels: Levels) -> Any:
    return _run(platform, methods, static, levels, arrays)


def _execute(*arrays: Any, **parameters: Any) -> Sequence[jax.Array]:
    methods, static, levels = parameters["methods"], parameters["static"], parameters["levels"]
    with jax.disable_jit(False), allow_transfers():
        if not on_cpu(arrays):
            return jax.jit(partial(_call.bind, **parameters))(*map(on_auto_mesh, arrays))
        shapes = _shapes_of(arrays, methods, static, levels)
        whole = [with_batch_axes(np.asarray(each), k, levels) for k, each in enumerate(arrays)]
        results = zip(methods.host(static, *whole), shapes, strict=True)
        cast = [np.broadcast_to(result, like.shape).astype(like.dtype) for result, like in results]
        placed: list[jax.Array] = put_like(arrays, cast, len(levels))
        return placed


def _abstract(*kinds: Any, **parameters: Any) -> list[Any]:
    meshes = [kind.sharding.mesh for kind in kinds]  # constants have none
    undivided = NamedSharding(next((mesh for mesh in meshes if not mesh.empty), meshes[0]), PartitionSpec())
    return [
        kinds[0].update(shape=each.shape, dtype=each.dtype, weak_type=False, sharding=undivided)
        for each in _shapes_of(kinds, **parameters)
    ]


def _batch(arrays: Sequence[Any], dims: Sequence[int | None], **parameters: Any) -> tuple[Sequence[Any], list[int]]:
    levels = (*parameters["levels"], tuple(dim is not None for dim in dims))
    results = _call.bind(*move_axes(arrays, dims), **(parameters | {"levels": levels}))
    return results, [0] * len(results)


def _differentiate(arrays: Sequence[Any], _: Sequence[Any], **parameters: Any) -> tuple[Sequence[Any], list[Any]]:
    results = _call.bind(*arrays, **parameters)
    return results, [ad.Zero(jax.typeof(each).to_tangent_aval()) for each in results]


_call = jax.extend.core.Primitive("sparse_add_call")
_call.multiple_results = True
_call.def_impl(_execute)
_call.def_abstract_eval(_abstract)
batching.primitive_batchers[_call] = _batch
ad.primitive_jvps[_call] = _differentiate
for _platform, _method in PLATFORMS.items():
    mlir.register_lowering(_call, mlir.lower_fun(partial(_lower, _method), multiple_results=True), platform=_platform)
