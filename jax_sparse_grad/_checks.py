"""Checks of data: an immediate error if the data is concrete, one that `checkify` reports if it is traced.

`checkify.debug_check` alone would do, but it leaves an effect in the jaxpr. That costs every jitted function its fast
dispatch (some 70 microseconds a call) and bars `jax.export` from serialising it, whether anyone uses the check or not.
So here the check stands inside a primitive that is the identity for everyone but `checkify`: that treats any primitive
with a `call_jaxpr` as a call, and binds the checked body instead.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.interpreters import ad, batching, mlir

from jax_sparse_grad import _validation

T = TypeVar("T")


def guard(tree: T, ok: jax.Array, message: str, **data: jax.Array) -> T:
    """The same integer arrays, on condition `ok`.

    If `ok` is concrete and false, raises `ValueError(message)`. If it is traced, `checkify` reports the message;
    without `checkify`, there is no check. The result must be used, because otherwise the check may be removed as dead
    code.
    """
    if _validation.is_concrete(ok, data):
        if not ok:
            raise ValueError(message.format(**{name: np.asarray(value) for name, value in data.items()}))
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    names = list(data)

    def checked(ok: jax.Array, *rest: jax.Array) -> Sequence[jax.Array]:
        checkify.debug_check(ok, message, **dict(zip(names, rest[: len(names)], strict=True)))
        return rest[len(names) :]

    operands = (ok, *data.values(), *leaves)
    guarded = _guard.bind(*operands, **_parameters(checked, operands, len(leaves)))
    return jax.tree.unflatten(treedef, guarded)


def join_errors(tree: T) -> T:
    """The same arrays; errors that `checkify` has found on each device so far become one error for all.

    To be called on the arguments of `shard_map` and on its results: in the backward pass, they change places. (Array by
    array, so that arrays that are not differentiated do not look as if they were.)
    """
    return jax.tree.map(lambda leaf: _join.bind(leaf, **_parameters(lambda leaf: [leaf], [leaf], 1))[0], tree)


class _CheckedCall(jax.extend.core.Primitive):
    """The last `results` of `arity` operands. Its `call_jaxpr` is the same function, perhaps with a check."""

    multiple_results = True

    def bind(self, *operands: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
        # `checkify` passes the checked body: as `subfuns` from jax 0.9 on, before that as the first operand.
        if not subfuns and hasattr(operands[0], "call_wrapped"):
            subfuns, operands = operands[:1], operands[1:]
        if subfuns:
            known = len(operands) - params["arity"]  # the errors that `checkify` knows of come first
            return subfuns[0].call_wrapped(*_join_axes(subfuns[0], operands[:known]), *operands[known:])
        return super().bind(*operands, **params)


def _join_axes(checked: Any, errors: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """The errors that `checkify` knows of, without the axes of devices, for a body that takes them as a tree.

    They are the leaves of three dictionaries by kind of error: whether it was raised, its code, and its data.
    """
    trees = [arg for _, args in checked.transforms for arg in args if isinstance(arg, jax.tree_util.PyTreeDef)]
    if len(trees) != 1:  # another version of JAX: correct without `shard_map`
        return errors
    raised, _, data = trees[0].children()
    kinds = range(raised.num_leaves)
    kind_of = [*kinds, *kinds, *itertools.chain(*([k] * data.children()[k].num_leaves for k in kinds))]
    return [_of_first_device(errors[kind], leaf) for kind, leaf in zip(kind_of, errors, strict=True)]


def _of_first_device(raised: jax.Array, leaf: jax.Array) -> jax.Array:
    """The part of `leaf` that belongs to the first device that has raised an error."""

    def choose(array: jax.Array, first: jax.Array) -> jax.Array:
        # By sums, because sharded arrays cannot always be indexed.
        kept = jnp.where(first.reshape(-1, *[1] * (array.ndim - 1)), array, jnp.zeros((), array.dtype))
        return jnp.any(kept, axis=0) if array.dtype == bool else jnp.sum(kept, axis=0, dtype=array.dtype)

    while raised.ndim:
        first = jnp.arange(raised.shape[0]) == jnp.argmax(jnp.any(raised, axis=range(1, raised.ndim)))
        raised, leaf = choose(raised, first), choose(leaf, first)
    return leaf


def _identity(*operands: Any, call_jaxpr: Any, arity: int, results: int) -> Sequence[Any]:
    del call_jaxpr
    return operands[arity - results :]


def _batch(
    primitive: _CheckedCall, operands: Sequence[jax.Array], dims: Sequence[int | None], *, call_jaxpr: Any, **sizes: int
) -> tuple[Sequence[jax.Array], Sequence[int | None]]:
    out_dims = dims[sizes["arity"] - sizes["results"] :]
    checked = jax.vmap(jax.extend.core.jaxpr_as_fun(call_jaxpr), in_axes=tuple(dims), out_axes=list(out_dims))
    return primitive.bind(*operands, **_parameters(checked, operands, sizes["results"])), out_dims


def _differentiate(
    operands: Sequence[Any], tangents: Sequence[Any], **parameters: Any
) -> tuple[Sequence[Any], Sequence[Any]]:
    return _guard.bind(*operands, **parameters), tangents[parameters["arity"] - parameters["results"] :]


def _differentiate_join(
    operands: Sequence[Any], tangents: Sequence[Any], **parameters: Any
) -> tuple[Sequence[Any], Sequence[Any]]:
    return _join.bind(*operands, **parameters), _join_some(tangents)


def _transpose_join(cotangents: Sequence[Any], *_: Any, **__: Any) -> Sequence[Any]:
    return _join_some(cotangents)


def _join_some(arrays: Sequence[Any]) -> Sequence[Any]:
    """`join_errors` of those that are not known to be zero."""
    return [array if type(array) is ad.Zero else join_errors(array) for array in arrays]


def _parameters(function: Callable[..., Any], operands: Sequence[jax.Array], results: int) -> dict[str, Any]:
    shapes = (jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in operands)
    return {"call_jaxpr": jax.make_jaxpr(function)(*shapes), "arity": len(operands), "results": results}


_guard, _join = _CheckedCall("sparse_add_guard"), _CheckedCall("sparse_add_join_errors")
for _primitive in (_guard, _join):
    _primitive.def_impl(_identity)
    _primitive.def_abstract_eval(_identity)
    mlir.register_lowering(_primitive, mlir.lower_fun(_identity, multiple_results=True))
    batching.primitive_batchers[_primitive] = partial(_batch, _primitive)
ad.primitive_jvps[_guard] = _differentiate
ad.primitive_jvps[_join] = _differentiate_join
ad.primitive_transposes[_join] = _transpose_join
