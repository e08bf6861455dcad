"""Checks of data: an error at once where it is concrete, one that `checkify` reports where it is traced.

`checkify.debug_check` alone would do, but the effect it leaves in a jaxpr costs every jitted function its fast dispatch
(some 70 microseconds a call) and bars `jax.export` from serialising it, whether anyone looks at the check or not. Here
the check stands inside a primitive that is the identity to everyone but `checkify`: that treats any primitive with a
`call_jaxpr` as a call, and asks it to bind the checked body instead.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.extend.core
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


class _Guard(jax.extend.core.Primitive):
    """`operands[-count:]`, whose `call_jaxpr` says the same with a check."""

    multiple_results = True

    def bind(self, *operands: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
        # `checkify` hands over the checked body: jax >= 0.9 as `subfuns`, before that as the first operand.
        if not subfuns and hasattr(operands[0], "call_wrapped"):
            subfuns, operands = operands[:1], operands[1:]
        if subfuns:
            return subfuns[0].call_wrapped(*operands)
        return super().bind(*operands, **params)


def _identity(*operands: Any, call_jaxpr: Any, count: int) -> Sequence[Any]:
    del call_jaxpr
    return operands[len(operands) - count :]


def _batch(
    operands: Sequence[jax.Array], dims: Sequence[int | None], *, call_jaxpr: Any, count: int
) -> tuple[Sequence[jax.Array], Sequence[int | None]]:
    out_dims = dims[len(dims) - count :]
    checked = jax.vmap(jax.extend.core.jaxpr_as_fun(call_jaxpr), in_axes=tuple(dims), out_axes=list(out_dims))
    return _guard.bind(*operands, call_jaxpr=_trace(checked, operands), count=count), out_dims


def _differentiate(
    operands: Sequence[Any], tangents: Sequence[Any], *, call_jaxpr: Any, count: int
) -> tuple[Sequence[Any], Sequence[Any]]:
    return _guard.bind(*operands, call_jaxpr=call_jaxpr, count=count), tangents[len(tangents) - count :]


def _trace(function: Callable[..., Any], operands: Sequence[jax.Array]) -> Any:
    return jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in operands))


_guard = _Guard("sparse_add_guard")
_guard.def_impl(_identity)
_guard.def_abstract_eval(_identity)
mlir.register_lowering(_guard, mlir.lower_fun(_identity, multiple_results=True))
batching.primitive_batchers[_guard] = _batch
ad.primitive_jvps[_guard] = _differentiate
