"""Functions with a method for each platform, as a primitive: numpy for what is concrete, batches, exports."""

import itertools

import jax
import numpy as np
import pytest
from jax import export

from helpers.compilations import compilations_of
from helpers.samples import SHAPE, random_rows
from jax_sparse_grad import _union
from jax_sparse_grad._platforms import Methods

NUMBERS = {"host": 1001, "cpu": 1002, "gpu": 1003, "tpu": 1004}


def method(number):
    """A function of two arrays that compiles at once, and tells by a number which of its methods has run."""
    return lambda factor, a, b: [factor * a[..., :1, :] - b, np.array(number, np.int32)]


METHODS = Methods(**{name: method(number) for name, number in NUMBERS.items()})


def simple(a, b):
    return METHODS(10, a, b)


def find(*operands):
    return jax.tree.leaves(_union.find_union(SHAPE, 20, operands))


def lookup(total, *operands):
    return list(_union.lookup(None, total, operands))


def rows_of(rng, *sizes):
    return [random_rows(rng, SHAPE, n, ascending=False, unique=False).astype(np.int32) for n in sizes]


def check_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("axes", [((0, None),), ((0, None), (None, 0)), ((None, 0), (0, 0))], ids=str)
@pytest.mark.parametrize("count", [3, 0])
@pytest.mark.parametrize("function", [simple, find, lookup])
def test_batches(rng, function, axes, count):
    """Levels of batches, the innermost first. Compiled too, if that takes no time."""
    mapped, lists = function, rows_of(rng, 9, 5)
    for level in axes:
        mapped = jax.vmap(mapped, level)
        lists = [
            rows if axis is None else np.stack([rows, rows[..., ::-1, :], rows[..., ::-1] % 6])[:count]
            for rows, axis in zip(lists, level, strict=True)
        ]
    eager = jax.device_get(mapped(*lists))
    for k in itertools.product(range(count), repeat=len(axes)):
        own = [tuple(i for i, level in zip(k, axes[::-1], strict=True) if level[n] == 0) for n in range(2)]
        check_equal([each[k] for each in eager], function(lists[0][own[0]], lists[1][own[1]]))
    if function is simple:
        assert {*eager[1].flat} == ({NUMBERS["host"]} if count else set())
        compiled = jax.device_get(jax.jit(mapped)(*lists))
        check_equal(compiled, [eager[0], np.full((count,) * len(axes), NUMBERS["cpu"])])


def test_concrete_operands_compile_nothing(rng):
    def several(size):
        lists = rows_of(rng, size, 5)
        lookup(find(*lists)[0], *lists)

    several(10)
    assert compilations_of(lambda: several(11)) == 0


def test_each_platform_gets_its_own_method(rng):
    lists = rows_of(rng, 9, 5)
    methods = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}
    for platform, name in methods.items():
        text = export.export(jax.jit(simple), platforms=[platform])(*lists).mlir_module()
        assert [each for each, number in NUMBERS.items() if f"dense<{number}>" in text] == [name]
    exported = export.export(jax.jit(simple), platforms=[*methods])(*lists)
    check_equal(exported.call(*lists), jax.jit(simple)(*lists))


def test_it_has_no_derivatives():
    a = np.ones((3, 2), np.float32)
    results, tangents = jax.jvp(simple, (a, a), (a, a))
    check_equal(results, simple(a, a))
    check_equal(tangents[0], np.zeros_like(results[0]))
