"""Checks of data: an error at once if the data is concrete; if it is traced, one that `checkify` reports.

`checkify.debug_check` alone would do, but it leaves an effect in the jaxpr. That costs every jitted function its fast
dispatch (some 70 microseconds a call) and bars `jax.export` from serialising it, whether anyone uses the check or not.
So here the check is inside a primitive that is the identity for everyone but `checkify`, which treats any primitive
with a `call_jaxpr` as a call, and evaluates that instead.
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


def check(arrays: T, ok: Any, message: str, **data: Any) -> T:
    """Return the integer arrays, after a check that `ok` is true; `data` are values for `message.format`.

    If `ok` is concrete and false, raises `ValueError`. If it is traced, `checkify` reports the message, and nothing is
    checked without `checkify`. Use the result in place of `arrays`: otherwise, a traced check is removed as dead code.
    """
    if is_concrete(ok, data):
        if not read(ok):
            raise ValueError(message.format(**{name: read(value) for name, value in data.items()}))
        return arrays
    leaves, treedef = jax.tree.flatten(arrays)

    def checked(ok: jax.Array, *rest: jax.Array) -> Sequence[jax.Array]:
        checkify.debug_check(ok, message, **dict(zip(data, rest, strict=False)))
        return rest[len(data) :]

    return jax.tree.unflatten(treedef, _bind(checked, ok, *data.values(), *leaves))


class _CheckedIdentity(jax.extend.core.Primitive):
    """The last operands, as many as `call_jaxpr` has results: that returns the same, after a check."""

    multiple_results = True

    def bind(self, *operands: Any, subfuns: Sequence[Any] = (), **params: Any) -> Any:
        # `checkify` passes the checked body: as `subfuns` from jax 0.9 on, before that as the first operand.
        if not subfuns and hasattr(operands[0], "call_wrapped"):
            subfuns, operands = operands[:1], operands[1:]
        if subfuns:
            return subfuns[0].call_wrapped(*operands)
        return super().bind(*operands, **params)


def _bind(checked: Callable[..., Any], *operands: Any) -> Sequence[Any]:
    shapes = (jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in operands)
    results: Sequence[Any] = _check.bind(*operands, call_jaxpr=jax.make_jaxpr(checked)(*shapes))
    return results


def _last(operands: Sequence[Any], call_jaxpr: Any) -> Sequence[Any]:
    return operands[len(operands) - len(call_jaxpr.out_avals) :]


def _identity(*operands: Any, call_jaxpr: Any) -> Sequence[Any]:
    return _last(operands, call_jaxpr)


def _batch(
    operands: Sequence[jax.Array], dims: Sequence[int | None], *, call_jaxpr: Any
) -> tuple[Sequence[jax.Array], Sequence[int | None]]:
    out_dims = _last(dims, call_jaxpr)
    if any(x.shape[dim] == 0 for x, dim in zip(operands, dims, strict=True) if dim is not None):
        return _last(operands, call_jaxpr), out_dims  # an empty batch: there is nothing to check
    checked = jax.vmap(jax.extend.core.jaxpr_as_fun(call_jaxpr), in_axes=tuple(dims), out_axes=list(out_dims))
    return _bind(checked, *operands), out_dims


def _differentiate(
    operands: Sequence[Any], tangents: Sequence[Any], *, call_jaxpr: Any
) -> tuple[Sequence[Any], Sequence[Any]]:
    return _check.bind(*operands, call_jaxpr=call_jaxpr), _last(tangents, call_jaxpr)


_check = _CheckedIdentity("sparse_add_check")
_check.def_impl(_identity)
_check.def_abstract_eval(_identity)
mlir.register_lowering(_check, mlir.lower_fun(_identity, multiple_results=True))
batching.primitive_batchers[_check] = _batch
ad.primitive_jvps[_check] = _differentiate
