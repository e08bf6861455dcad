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


def check(arrays: T, test: Callable[[Any], tuple[Any, dict[str, Any]]], message: str) -> T:
    """Return the integer arrays, after a test of them.

    `test(arrays)` returns whether they pass, and values for `message.format`. It gets numpy's arrays if all are
    concrete; if they fail, `ValueError` is raised. Otherwise `checkify` runs the test and reports the message, and
    nothing is tested without `checkify`. Use the result in place of `arrays`: a traced check whose result is not used
    is removed as dead code.
    """
    if is_concrete(arrays):
        ok, values = test(jax.tree.map(read, arrays))
        if not ok:
            raise ValueError(message.format(**values))
        return arrays
    leaves, treedef = jax.tree.flatten(arrays)

    def checked(*leaves: jax.Array) -> Sequence[jax.Array]:
        ok, values = test(jax.tree.unflatten(treedef, leaves))
        checkify.debug_check(ok, message, **values)
        return leaves

    return jax.tree.unflatten(treedef, _bind(checked, *leaves))


class _CheckedIdentity(jax.extend.core.Primitive):
    """The identity; `call_jaxpr` is the identity too, after a check."""

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


def _identity(*operands: Any, call_jaxpr: Any) -> Sequence[Any]:
    del call_jaxpr
    return operands


def _batch(
    operands: Sequence[jax.Array], dims: Sequence[int | None], *, call_jaxpr: Any
) -> tuple[Sequence[jax.Array], Sequence[int | None]]:
    if any(x.shape[dim] == 0 for x, dim in zip(operands, dims, strict=True) if dim is not None):
        return operands, dims  # an empty batch: there is nothing to check
    checked = jax.vmap(jax.extend.core.jaxpr_as_fun(call_jaxpr), in_axes=tuple(dims), out_axes=list(dims))
    return _bind(checked, *operands), dims


def _differentiate(
    operands: Sequence[Any], tangents: Sequence[Any], *, call_jaxpr: Any
) -> tuple[Sequence[Any], Sequence[Any]]:
    return _check.bind(*operands, call_jaxpr=call_jaxpr), tangents


_check = _CheckedIdentity("sparse_add_check")
_check.def_impl(_identity)
_check.def_abstract_eval(_identity)
mlir.register_lowering(_check, mlir.lower_fun(_identity, multiple_results=True))
batching.primitive_batchers[_check] = _batch
ad.primitive_jvps[_check] = _differentiate
