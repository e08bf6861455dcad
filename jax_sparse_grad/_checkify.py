"""Checks of data: an immediate error if the data is concrete, one that `checkify` reports if it is traced.

`checkify.debug_check` alone would do, but it leaves an effect in the jaxpr. That costs every jitted function its fast
dispatch (some 70 microseconds a call) and bars `jax.export` from serialising it, whether anyone uses the check or not.
So here the check stands inside a primitive that is the identity for everyone but `checkify`: that treats any primitive
with a `call_jaxpr` as a call, and binds the checked body instead.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.extend.core
import numpy as np
from jax.experimental import checkify
from jax.interpreters import ad, batching, mlir

from jax_sparse_grad._concrete import is_concrete, read

T = TypeVar("T")


def guard(tree: T, ok: jax.Array, message: str, **data: jax.Array) -> T:
    """The same integer arrays, on condition `ok`.

    If `ok` is concrete and false, raises `ValueError(message)`. If it is traced, `checkify` reports the message;
    without `checkify`, there is no check. The result must be used, because otherwise the check may be removed as dead
    code.
    """
    if is_concrete(ok, data):
        if not read(ok):
            raise ValueError(message.format(**{name: read(value) for name, value in data.items()}))
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    names = list(data)

    def checked(ok: jax.Array, *rest: jax.Array) -> Sequence[jax.Array]:
        checkify.debug_check(ok, message, **dict(zip(names, rest[: len(names)], strict=True)))
        return rest[len(names) :]

    operands = (ok, *data.values(), *leaves)
    guarded = _guard.bind(*operands, **_parameters(checked, operands, len(leaves)))
    return jax.tree.unflatten(treedef, guarded)


class _CheckedCall(jax.extend.core.Primitive):
    """The last `results` of `arity` operands. Its `call_jaxpr` is the same function, perhaps with a check."""

    multiple_results = True

    def bind(self, *operands: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
        # `checkify` passes the checked body: as `subfuns` from jax 0.9 on, before that as the first operand.
        if not subfuns and hasattr(operands[0], "call_wrapped"):
            subfuns, operands = operands[:1], operands[1:]
        if subfuns:
            return subfuns[0].call_wrapped(*operands)
        return super().bind(*operands, **params)


def _identity(*operands: Any, call_jaxpr: Any, arity: int, results: int) -> Sequence[Any]:
    del call_jaxpr
    return operands[arity - results :]


def _batch(
    operands: Sequence[jax.Array], dims: Sequence[int | None], *, call_jaxpr: Any, **sizes: int
) -> tuple[Sequence[jax.Array], Sequence[int | None]]:
    first = sizes["arity"] - sizes["results"]
    out_dims = dims[first:]
    if any(x.shape[dim] == 0 for x, dim in zip(operands, dims, strict=True) if dim is not None):
        return operands[first:], out_dims  # a batch of none: there is nothing to check
    checked = jax.vmap(jax.extend.core.jaxpr_as_fun(call_jaxpr), in_axes=tuple(dims), out_axes=list(out_dims))
    return _guard.bind(*operands, **_parameters(checked, operands, sizes["results"])), out_dims


def _differentiate(
    operands: Sequence[Any], tangents: Sequence[Any], **parameters: Any
) -> tuple[Sequence[Any], Sequence[Any]]:
    return _guard.bind(*operands, **parameters), tangents[parameters["arity"] - parameters["results"] :]


def _parameters(function: Callable[..., Any], operands: Sequence[jax.Array], results: int) -> dict[str, Any]:
    shapes = (jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in operands)
    return {"call_jaxpr": jax.make_jaxpr(function)(*shapes), "arity": len(operands), "results": results}


_guard = _CheckedCall("sparse_add_guard")
_guard.def_impl(_identity)
_guard.def_abstract_eval(_identity)
mlir.register_lowering(_guard, mlir.lower_fun(_identity, multiple_results=True))
batching.primitive_batchers[_guard] = _batch
ad.primitive_jvps[_guard] = _differentiate
