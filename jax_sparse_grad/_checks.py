"""Checks of data: an error at once where it is concrete, one that `checkify` reports where it is traced.

`checkify.debug_check` alone would do, but the effect it leaves in a jaxpr costs every jitted function its fast dispatch
(some 70 microseconds a call) and bars `jax.export` from serialising it, whether anyone looks at the check or not. Here
the check stands inside a primitive that is the identity to everyone but `checkify`: that treats any primitive with a
`call_jaxpr` as a call, and asks it to bind the checked body instead.
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
    """The same integer arrays, on the condition `ok`.

    Where that is concrete and false, `ValueError(message)`. Where it is traced, `checkify` reports the message; without
    `checkify`, there is no check. The result must be used, for else the check might be removed as dead code.
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
    """The same arrays; what `checkify` knows by then of each device for itself becomes one error of them all.

    To be called on what goes into `shard_map` and on what comes out: backwards, the one is the other. (Array by array,
    so that those that are not differentiated do not look as if they were.)
    """
    return jax.tree.map(lambda leaf: _join.bind(leaf, **_parameters(lambda leaf: [leaf], [leaf], 1))[0], tree)


class _CheckedCall(jax.extend.core.Primitive):
    """The last `results` of `arity` operands; its `call_jaxpr` says the same, perhaps with a check."""

    multiple_results = True

    def bind(self, *operands: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
        # `checkify` hands over the checked body: jax >= 0.9 as `subfuns`, before that as the first operand.
        if not subfuns and hasattr(operands[0], "call_wrapped"):
            subfuns, operands = operands[:1], operands[1:]
        if subfuns:
            known = len(operands) - params["arity"]  # what `checkify` knows of errors comes first
            return subfuns[0].call_wrapped(*_join_axes(subfuns[0], operands[:known]), *operands[known:])
        return super().bind(*operands, **params)


def _join_axes(checked: Any, errors: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """What `checkify` knows of errors, for a body that takes it as such a tree, without the axes of devices.

    It is the leaves of three dictionaries by kind of error: whether it was raised, its code, and its data.
    """
    trees = [arg for _, args in checked.transforms for arg in args if isinstance(arg, jax.tree_util.PyTreeDef)]
    if len(trees) != 1:  # in some other JAX: without `shard_map`, all is as it should be
        return errors
    raised, _, data = trees[0].children()
    kinds = range(raised.num_leaves)
    kind_of = [*kinds, *kinds, *itertools.chain(*([k] * data.children()[k].num_leaves for k in kinds))]
    return [_of_first_device(errors[kind], leaf) for kind, leaf in zip(kind_of, errors, strict=True)]


def _of_first_device(raised: jax.Array, leaf: jax.Array) -> jax.Array:
    """The part of `leaf` that belongs to the first device that has raised an error."""

    def choose(array: jax.Array, first: jax.Array) -> jax.Array:
        # By sums, since what is sharded cannot always be indexed.
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
