"""Checks of data: an error at once where it is concrete, one that `checkify` reports where it is traced.

`checkify.debug_check` alone would do, but the effect it leaves in a jaxpr costs every jitted function its fast dispatch
(some 70 microseconds a call) and bars `jax.export` from serialising it, whether anyone looks at the check or not. Here
the check stands inside a primitive that is the identity to everyone but `checkify`: that treats any primitive with a
`call_jaxpr` as a call, and asks it to bind the checked body instead.
"""

import functools
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

    guarded = _guard.bind(
        *(operands := (ok, *data.values(), *leaves)), call_jaxpr=_trace(checked, operands), count=len(leaves)
    )
    return jax.tree.unflatten(treedef, guarded)


def join_errors(tree: T) -> T:
    """The same arrays; what `checkify` knows by then of each device for itself becomes one error of them all.

    To be called on what goes into `shard_map` and on what comes out: backwards, the one is the other.
    """
    leaves, treedef = jax.tree.flatten(tree)
    joined = _join.bind(*leaves, call_jaxpr=_trace(lambda *leaves: leaves, leaves), count=len(leaves))
    return jax.tree.unflatten(treedef, joined)


class _CheckedCall(jax.extend.core.Primitive):
    """`operands[-count:]`, whose `call_jaxpr` says the same, perhaps with a check."""

    multiple_results = True

    def bind(self, *operands: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
        # `checkify` hands over the checked body: jax >= 0.9 as `subfuns`, before that as the first operand.
        if not subfuns and hasattr(operands[0], "call_wrapped"):
            subfuns, operands = operands[:1], operands[1:]
        if subfuns:
            return subfuns[0].call_wrapped(*self.checked_operands(operands, params["count"]))
        return super().bind(*operands, **params)

    def checked_operands(self, operands: Sequence[Any], count: int) -> Sequence[Any]:
        """Of the checked body: what is known of errors, and the operands."""
        del count
        return operands


class _Join(_CheckedCall):
    def checked_operands(self, operands: Sequence[Any], count: int) -> Sequence[Any]:
        errors = operands[: len(operands) - count]
        return *_join_axes(errors), *operands[len(errors) :]


def _join_axes(errors: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """The arrays of JAX's errors without the axes of devices: of each error first a flag, behind all flags the rest."""
    flags = list(itertools.takewhile(lambda leaf: leaf.dtype == bool, errors))
    if len({flag.ndim for flag in flags}) != 1 or flags[0].ndim == 0:
        return errors
    raised = functools.reduce(jnp.logical_or, (jnp.any(flag, axis=range(1, flag.ndim)) for flag in flags))
    # One device for all, by sums: what is sharded cannot always be indexed.
    chosen = jnp.arange(raised.shape[0]) == jnp.argmax(raised)

    def choose(leaf: jax.Array) -> jax.Array:
        kept = jnp.where(chosen.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.zeros((), leaf.dtype))
        return jnp.any(kept, axis=0) if leaf.dtype == bool else jnp.sum(kept, axis=0, dtype=leaf.dtype)

    return _join_axes([choose(leaf) for leaf in errors])


def _identity(*operands: Any, call_jaxpr: Any, count: int) -> Sequence[Any]:
    del call_jaxpr
    return operands[len(operands) - count :]


def _batch(
    primitive: _CheckedCall, operands: Sequence[jax.Array], dims: Sequence[int | None], *, call_jaxpr: Any, count: int
) -> tuple[Sequence[jax.Array], Sequence[int | None]]:
    out_dims = dims[len(dims) - count :]
    checked = jax.vmap(jax.extend.core.jaxpr_as_fun(call_jaxpr), in_axes=tuple(dims), out_axes=list(out_dims))
    return primitive.bind(*operands, call_jaxpr=_trace(checked, operands), count=count), out_dims


def _differentiate(
    operands: Sequence[Any], tangents: Sequence[Any], *, call_jaxpr: Any, count: int
) -> tuple[Sequence[Any], Sequence[Any]]:
    return _guard.bind(*operands, call_jaxpr=call_jaxpr, count=count), tangents[len(tangents) - count :]


def _differentiate_join(
    operands: Sequence[Any], tangents: Sequence[Any], *, call_jaxpr: Any, count: int
) -> tuple[Sequence[Any], Sequence[Any]]:
    return _join.bind(*operands, call_jaxpr=call_jaxpr, count=count), _join_some(tangents)


def _transpose_join(cotangents: Sequence[Any], *_: Any, call_jaxpr: Any, count: int) -> Sequence[Any]:
    del call_jaxpr, count
    return _join_some(cotangents)


def _join_some(arrays: Sequence[Any]) -> Sequence[Any]:
    """`join_errors` of those that are not known to be zero."""
    some = [array for array in arrays if type(array) is not ad.Zero]
    joined = iter(join_errors(some) if some else ())
    return [array if type(array) is ad.Zero else next(joined) for array in arrays]


def _trace(function: Callable[..., Any], operands: Sequence[jax.Array]) -> Any:
    return jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in operands))


_guard, _join = _CheckedCall("sparse_add_guard"), _Join("sparse_add_join_errors")
for _primitive in (_guard, _join):
    _primitive.def_impl(_identity)
    _primitive.def_abstract_eval(_identity)
    mlir.register_lowering(_primitive, mlir.lower_fun(_identity, multiple_results=True))
    batching.primitive_batchers[_primitive] = partial(_batch, _primitive)
ad.primitive_jvps[_guard] = _differentiate
ad.primitive_jvps[_join] = _differentiate_join
ad.primitive_transposes[_join] = _transpose_join
