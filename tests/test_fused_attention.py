"""The TPU's attention kernel, run step by step, against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax.masks import SegmentMask, combination_mask
from clips_jax.models.fused_attention import fused_attention
from tests import small

# (examples, length, keys seen by all queries, heads, head width): heads of half a block, lengths that fill no register,
# several blocks; heads that divide no block; one block of all heads. By 8, 2, 4, 1 and 1 examples in a step.
SHAPES = [(16, 20, 12, 2, 8), (2, 196, 68, 4, 64), (12, 37, 37, 3, 64), (2, 257, 129, 2, 72), (3, 20, 12, 2, 8)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_equals_plain_attention(shape, masked):
    batch, length, prefix, heads, width = shape
    inputs = [jax.random.normal(key, (batch, length, heads, width)) for key in jax.random.split(jax.random.key(0), 4)]
    real_BxP = jnp.arange(prefix)[None] < jax.random.randint(jax.random.key(1), (batch, 1), 1, prefix + 1)
    segments = jnp.pad(real_BxP.astype(jnp.int32), ((0, 0), (0, length - prefix)), constant_values=1)
    mask = SegmentMask(segments, prefix=prefix) if masked else None

    def plain(query, key, value, cotangent):
        out = jax.nn.dot_product_attention(query, key, value, mask=mask.dense() if mask else None)
        return (out * cotangent).sum()

    def kernel(query, key, value, cotangent):
        return (fused_attention(query, key, value, mask, interpret=True) * cotangent).sum()

    expected, ours = (jax.value_and_grad(f, argnums=(0, 1, 2, 3))(*inputs) for f in (plain, kernel))
    small.assert_trees_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_segments_say_what_the_combination_mask_says():
    real_BxP = jnp.array([[True, True, False], [True, False, False]])
    segments = jnp.pad(real_BxP.astype(jnp.int32), ((0, 0), (0, 4)), constant_values=1)
    real_rows = np.asarray(segments > 0)
    dense = np.asarray(SegmentMask(segments, prefix=3).dense())[:, 0]
    np.testing.assert_array_equal(dense[real_rows], np.asarray(combination_mask(real_BxP, 4))[:, 0][real_rows])
