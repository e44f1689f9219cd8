"""The TPU's attention kernel, run step by step, against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax.masks import SegmentMask, combination_mask
from clips_jax.models.splash import splash_attention
from tests import small

LENGTH, PREFIX = 20, 12


@pytest.mark.parametrize("masked", [False, True])
def test_kernel_equals_plain_attention(masked):
    inputs = [jax.random.normal(key, (2, LENGTH, 2, 8)) for key in jax.random.split(jax.random.key(0), 4)]
    real_BxP = jnp.arange(PREFIX)[None] < jnp.array([[PREFIX], [7]])
    segments = jnp.pad(real_BxP.astype(jnp.int32), ((0, 0), (0, LENGTH - PREFIX)), constant_values=1)
    mask = SegmentMask(segments, prefix=PREFIX) if masked else None
    counts_BxLx1x1 = (segments > 0)[..., None, None] if masked else jnp.ones((2, LENGTH, 1, 1), bool)

    def plain(query, key, value, cotangent):
        out = jax.nn.dot_product_attention(query, key, value, mask=mask.dense() if mask else None)
        return (out * cotangent * counts_BxLx1x1).sum()

    def kernel(query, key, value, cotangent):
        out = splash_attention(query, key, value, mask, interpret=True)
        return (out * cotangent * counts_BxLx1x1).sum()

    expected, ours = (jax.value_and_grad(f, argnums=(0, 1, 2, 3))(*inputs) for f in (plain, kernel))
    small.assert_trees_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_segments_say_what_the_combination_mask_says():
    real_BxP = jnp.array([[True, True, False], [True, False, False]])
    segments = jnp.pad(real_BxP.astype(jnp.int32), ((0, 0), (0, 4)), constant_values=1)
    real_rows = np.asarray(segments > 0)
    dense = np.asarray(SegmentMask(segments, prefix=3).dense())[:, 0]
    np.testing.assert_array_equal(dense[real_rows], np.asarray(combination_mask(real_BxP, 4))[:, 0][real_rows])
