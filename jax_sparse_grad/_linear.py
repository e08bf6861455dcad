"""Linear maps with a given transpose: one primitive, under all transformations.

JAX derives a transpose from the operations that a map consists of. That of a gather is an accumulating scatter, which
is slow and, on GPUs, not deterministic. Here a map comes with its transpose, another such map. Its forward derivative
is the map itself, its backward derivative the transpose, and both stay that way under `vmap`, `jit`, `linearize` and
another `grad`.

    linear(add, pick, union, values)
       |  jvp         linear(add, pick, union, tangents)
       |  transpose   linear(pick, add, union, cotangents)
       |  vmap        the same primitive, one more level of batches
       |  concrete    padded to buckets, so that few programs serve all lengths

The alternatives fall short: `custom_vjp` bars forward mode; `custom_jvp` does not take a transpose;
`lax.custom_linear_solve` does, for maps of a space to itself, but taking rows apart then adds zeros, which lose the
sign of -0.0; `jax.custom_derivatives.linear_call` has no rule for `vmap`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from jax_sparse_grad._eager import (
    REPEATED,
    REPEATED_ELSEWHERE,
    buckets,
    comes_again,
    concatenate,
    is_for_numpy,
    is_on_cpu,
    numpy_reaches,
    own_transfers,
    resize,
)
from jax_sparse_grad._primitives import NONE, join_rows, vary_alike
from jax_sparse_grad._types import Arrays

Groups = tuple[tuple[int, ...], ...]
"""For each array of a map the lengths of the parts that it is joined from."""
Map = Callable[[Any, Arrays], Arrays]
"""`f(data, x)`, linear in x: arrays of one dtype, with rows along their first axis."""


def linear(apply: Map, transpose: Map, data: Any, x: Arrays, x_groups: Groups, y_groups: Groups) -> Arrays:
    """`apply(data, x)`, with the given transpose under all transformations.

    Args:
      apply: a module-level function, so that what is compiled for it is found again.
      transpose: likewise; `transpose(data, y)`.
      data: passed to both: a tree of integer arrays, in which `NONE` means nothing.
      x: the parts of all arrays of the argument, one after the other.
      x_groups: which of these `apply` gets joined in one array.
      y_groups: the lengths of the parts into which the arrays of the result are divided.

    Returns:
      The parts of all arrays of the result.
    """
    data, x = vary_alike((data, x))
    leaves, treedef = jax.tree.flatten(data)
    y: Sequence[jax.Array] = _linear.bind(
        *leaves,
        *x,
        apply=apply,
        transpose=transpose,
        treedef=treedef,
        x_groups=x_groups,
        y_groups=y_groups,
        batches=(),
    )
    return tuple(y)


MOST_PROGRAMS = 256  # of that kind: each holds some 20 of the 65,530 memory mappings that Linux grants a process

_own_programs: set[tuple[Any, ...]] = set()
_linear = jax.extend.core.Primitive("sparse_add_linear")
_linear.multiple_results = True


def _split(operands: Sequence[Any], treedef: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """The leaves of `data`, and the parts of x."""
    return operands[: treedef.num_leaves], operands[treedef.num_leaves :]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run(
    apply: Map,
    treedef: Any,
    x_groups: Groups,
    y_groups: Groups,
    batches: tuple[tuple[bool, ...], ...],
    leaves: Arrays,
    x: Arrays,
) -> Arrays:
    def run(leaves: Arrays, x: Arrays) -> Arrays:
        parts = iter(x)
        joined = [[next(parts) for _ in group] for group in x_groups]
        arrays = tuple(each[0] if len(each) == 1 else join_rows(each) for each in joined)
        return tuple(
            part
            for array, sizes in zip(apply(jax.tree.unflatten(treedef, leaves), arrays), y_groups, strict=True)
            for part in _divide(array, sizes)
        )

    for batched in batches:
        run = jax.vmap(run, in_axes=(tuple(0 if each else None for each in batched), 0))
    return run(leaves, x)


def _divide(array: jax.Array, sizes: tuple[int, ...]) -> list[jax.Array]:
    if len(sizes) == 1:
        return [array]
    ends = itertools.accumulate(sizes)
    return [lax.slice_in_dim(array, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _lower(
    *operands: jax.Array, apply: Map, treedef: Any, x_groups: Groups, y_groups: Groups, batches: Any, **_: Any
) -> Arrays:
    leaves, x = _split(operands, treedef)
    return _run(apply, treedef, x_groups, y_groups, batches, tuple(leaves), tuple(x))


def _execute(*operands: jax.Array, **parameters: Any) -> Sequence[jax.Array]:
    """The map of concrete arrays: at lengths for which little is compiled, if numpy reaches them."""
    with jax.disable_jit(False), own_transfers():
        if not numpy_reaches(operands) or _is_worth_a_program(operands, tuple(parameters.values())):
            return _lower(*operands, **parameters)
        return _execute_in_buckets(*operands, **parameters)


def _is_worth_a_program(operands: Sequence[Any], key: tuple[Any, ...]) -> bool:
    """Whether these lengths come again and again, as when a plan is called in a loop outside of `jit`."""
    if key in _own_programs:
        return True
    often = REPEATED if is_on_cpu(operands) else REPEATED_ELSEWHERE
    if comes_again(often, _linear, key) and len(_own_programs) < MOST_PROGRAMS:
        _own_programs.add(key)
    return key in _own_programs


def _execute_in_buckets(
    *operands: jax.Array, apply: Map, treedef: Any, x_groups: Groups, y_groups: Groups, batches: Any, **_: Any
) -> Sequence[jax.Array]:
    leaves, x = _split(operands, treedef)
    axis = len(batches)
    leaf_axes = [sum(flags) for flags in zip(*batches, strict=True)] if batches else [0] * len(leaves)
    parts = iter(x)
    joined = [concatenate([next(parts) for _ in group], axis) for group in x_groups]
    # Arrays of equal length keep equal lengths. Similar lengths become one, to avoid a program for each pair.
    sizes = {leaf.shape[k] for leaf, k in zip(leaves, leaf_axes, strict=True) if np.ndim(leaf) > k}
    sizes |= {array.shape[axis] for array in joined}
    length_of = dict(zip(sizes, buckets(list(sizes)), strict=True))
    padded = tuple(
        resize(leaf, length_of[leaf.shape[k]], NONE, k) if np.ndim(leaf) > k else leaf
        for leaf, k in zip(leaves, leaf_axes, strict=True)
    )
    arrays = tuple(resize(array, length_of[array.shape[axis]], 0, axis) for array in joined)
    whole = tuple((0,) for _ in x_groups), tuple((0,) for _ in y_groups)  # sizes matter only where arrays are divided
    results = _run(apply, treedef, *whole, batches, padded, arrays)
    cut = []
    for result, group in zip(results, y_groups, strict=True):
        host = resize(result, sum(group), 0, axis)
        for size, end in zip(group, itertools.accumulate(group), strict=True):
            cut.append(host if len(group) == 1 else host[(slice(None),) * axis + (slice(end - size, end),)])
    placed: Sequence[jax.Array] = jax.device_put(cut)
    return placed


def _abstract(*kinds: Any, y_groups: Groups, batches: Sequence[Any], **_: Any) -> list[Any]:
    x, depth = kinds[-1], len(batches)
    sizes = [size for group in y_groups for size in group]
    return [x.update(shape=(*x.shape[:depth], size, *x.shape[depth + 1 :]), weak_type=False) for size in sizes]


def _batch(
    operands: Sequence[Any], dims: Sequence[int | None], *, treedef: Any, batches: Any, **parameters: Any
) -> tuple[Sequence[Any], list[int]]:
    count = next(x.shape[dim] for x, dim in zip(operands, dims, strict=True) if dim is not None)
    moved = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(operands, dims, strict=True)]
    leaves, x = _split(moved, treedef)
    leaf_dims, x_dims = _split(dims, treedef)
    # All of x is broadcast: the transpose then need not sum over what was shared, because JAX does.
    x = [
        jnp.broadcast_to(part, (count, *part.shape)) if dim is None else part
        for part, dim in zip(x, x_dims, strict=True)
    ]
    batched = tuple(dim is not None for dim in leaf_dims)
    y = _linear.bind(*leaves, *x, treedef=treedef, batches=(*batches, batched), **parameters)
    return y, [0] * len(y)


def _differentiate(operands: Sequence[Any], tangents: Sequence[Any], **parameters: Any) -> tuple[Any, Any]:
    y = _linear.bind(*operands, **parameters)
    leaves, x = _split(operands, parameters["treedef"])
    _, x_dot = _split(tangents, parameters["treedef"])
    if all(type(part) is ad.Zero for part in x_dot):
        return y, [ad.Zero(jax.typeof(part).to_tangent_aval()) for part in y]
    filled = [_zeros_like(part) if type(dot) is ad.Zero else dot for part, dot in zip(x, x_dot, strict=True)]
    return y, _linear.bind(*leaves, *filled, **parameters)


def _zeros_like(array: Any) -> jax.Array:
    """Zeros where the array lies."""
    if not is_for_numpy((array,), "zeros"):
        return jnp.zeros_like(array)
    return jax.device_put(np.zeros(array.shape, array.dtype))


def _transpose(
    cotangents: Sequence[Any],
    *operands: Any,
    apply: Map,
    transpose: Map,
    x_groups: Groups,
    y_groups: Groups,
    **parameters: Any,
) -> list[Any]:
    leaves, x = _split(operands, parameters["treedef"])
    if all(type(part) is ad.Zero for part in cotangents):
        return [None] * len(operands)
    y = [ad.instantiate_zeros(part) for part in cotangents]
    swapped = {"apply": transpose, "transpose": apply, "x_groups": y_groups, "y_groups": x_groups}
    pulled = _linear.bind(*leaves, *y, **swapped, **parameters)
    # Parts that are not differentiated are known: their tangents are zeros.
    return [None] * len(leaves) + [
        each if ad.is_undefined_primal(part) else None for part, each in zip(x, pulled, strict=True)
    ]


_linear.def_impl(_execute)
_linear.def_abstract_eval(_abstract)
mlir.register_lowering(_linear, mlir.lower_fun(_lower, multiple_results=True))
batching.primitive_batchers[_linear] = _batch
ad.primitive_jvps[_linear] = _differentiate
ad.primitive_transposes[_linear] = _transpose
