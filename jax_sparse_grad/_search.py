"""Where keys stand in sorted keys: `jnp.searchsorted` for one word, a lexicographic binary search for several."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _keys
from jax_sparse_grad._keys import Keys


def search(sorted_keys: Keys, queries: Keys) -> tuple[jax.Array, jax.Array]:
    """The number of `sorted_keys` less than each query, and whether the query is among them (padding never is)."""
    size = sorted_keys[0].shape[0]
    if size == 0:
        return jnp.zeros_like(queries[0], jnp.int32), jnp.zeros_like(queries[0], bool)
    if len(sorted_keys) == 1:
        position = jnp.searchsorted(sorted_keys[0], queries[0]).astype(jnp.int32)
    else:
        position = _lexicographic_search(sorted_keys, queries)
    candidates = tuple(word[jnp.minimum(position, size - 1)] for word in sorted_keys)
    found = (position < size) & _keys.is_equal(candidates, queries) & ~_keys.is_padding(queries)
    return position, found


def search_rows(sorted_rows: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`search` for index rows whose shape is unknown: the width of the keys is found from the data, at run time."""
    sorted_words, words = _keys.as_words(sorted_rows), _keys.as_words(rows)
    if len(words) == 1:
        return search(sorted_words, words)
    largest = [jnp.max(word, initial=0) for word in sorted_words]
    dtypes: list[np.dtype] = [np.dtype(np.uint32), *([np.dtype(np.uint64)] if _keys.x64_enabled() else [])]
    fits = [_keys.fits_one_word(largest, dtype) for dtype in dtypes]

    def search_packed(dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
        position, found = search(_keys.pack(sorted_words, largest, dtype), _keys.pack(words, largest, dtype))
        # Rows with a digit too large for the packing could meet the key of another row.
        for word, digit in zip(words, largest, strict=True):
            found &= word <= digit
        return position, found

    branches = [partial(search_packed, dtype) for dtype in dtypes] + [partial(search, sorted_words, words)]
    narrowest = jnp.argmax(jnp.stack([*fits, jnp.array(True)]))
    return lax.switch(narrowest, branches)


def _lexicographic_search(sorted_keys: Keys, queries: Keys) -> jax.Array:
    """Lower bounds by halving steps: the position grows while the key before the next one is still less."""
    size = sorted_keys[0].shape[0]
    rounds = size.bit_length()

    def halve(round_: jax.Array, position: jax.Array) -> jax.Array:
        step = jnp.int32(1) << (rounds - 1 - round_).astype(jnp.int32)
        proposed = jnp.minimum(position, size - step) + step  # never wraps round, since step <= size
        probes = tuple(word[proposed - 1] for word in sorted_keys)
        return jnp.where((position + step == proposed) & _keys.is_less(probes, queries), proposed, position)

    return lax.fori_loop(0, rounds, halve, jnp.zeros_like(queries[0], jnp.int32))
