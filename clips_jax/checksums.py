"""Checksums of arrays, computed where they lie: they tell damage on a disk and copies that have drifted apart."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Odd multipliers of a linear congruential generator (Numerical Recipes): a word counts by its place and its value.
_MULTIPLIER, _INCREMENT = 1664525, 1013904223
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


@jax.jit  # inside another program: traced once per shape
def checksum(x: jax.Array) -> jax.Array:
    """uint32 () of the bits of an array: order matters, and any single changed bit shows."""
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32).ravel()
    place = jnp.arange(words.size, dtype=jnp.uint32) * jnp.uint32(_MULTIPLIER) + jnp.uint32(_INCREMENT)
    return jnp.sum((words + place) * (place | jnp.uint32(1)), dtype=jnp.uint32)


def checksums(tree: Any) -> dict[str, int]:
    """`checksum` of each array of a tree, by path; the same however the arrays are spread over devices.

    All processes that hold parts of them call it together. Four bytes per array come back to the host.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = [leaf for _, leaf in leaves]
    sharding = arrays[0].sharding if arrays else None
    everywhere = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    sums = np.asarray(_sums(everywhere)(arrays)) if arrays else []
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {name: int(value) for name, value in zip(names, sums, strict=True)}


@functools.cache
def _sums(sharding: NamedSharding | None) -> Any:
    return jax.jit(lambda arrays: jnp.stack([checksum(x) for x in arrays]), out_shardings=sharding)
