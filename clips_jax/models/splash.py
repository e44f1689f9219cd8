"""Attention by JAX's TPU kernel (splash attention): no logits in memory, so memory grows with length, not its square.

Legend: B batch, L sequence, P the same padded to whole tiles, H heads, K head width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as kernel_masks
from jax.sharding import PartitionSpec

from clips_jax.masks import SegmentMask

TILE = 128  # the kernel's smallest block


def splash_attention(
    query_BxLxHxK: jax.Array,
    key_BxLxHxK: jax.Array,
    value_BxLxHxK: jax.Array,
    mask: SegmentMask | None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k / sqrt(K)) v under a mask, (B, L, H, K); on TPU only, unless `interpret` runs it step by step.

    Lengths are padded to a multiple of 128; the padding is a segment of its own. Under a mesh (`train_step`) every
    device takes its rows and heads.
    """
    batch, length = query_BxLxHxK.shape[:2]
    padding = -length % TILE
    segments_BxL = mask.segments_BxL if mask else jnp.ones((batch, length), jnp.int32)
    segments_BxP = jnp.pad(segments_BxL, ((0, 0), (0, padding)))
    inputs = (query_BxLxHxK * query_BxLxHxK.shape[-1] ** -0.5, key_BxLxHxK, value_BxLxHxK)
    padded = [jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2) for x in inputs]
    attend: Any = functools.partial(_attend, mask.prefix if mask else length, interpret)
    if not jax.sharding.get_abstract_mesh().empty:
        heads, rows = PartitionSpec(("data", "fsdp"), "tensor"), PartitionSpec(("data", "fsdp"))
        attend = jax.shard_map(attend, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return attend(*padded, segments_BxP).swapaxes(1, 2)[:, :length]


def _attend(
    prefix: int, interpret: bool, query: jax.Array, key: jax.Array, value: jax.Array, segments_BxP: jax.Array
) -> jax.Array:
    """(B, H, P, K) each, of one device."""
    heads, padded = query.shape[1:3]
    place_P = np.arange(padded)
    # Beyond the sequence there are other segments only, so it does not matter what the pattern says there.
    pattern_PxP = (place_P[None] < prefix) | (place_P[None] <= place_P[:, None])
    mask = kernel_masks.MultiHeadMask([kernel_masks.NumpyMask(pattern_PxP)] * heads)
    # Arrays that the kernel's maker puts on a device are constants of this trace.
    with jax.ensure_compile_time_eval():
        kernel: Any = kernels.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)

    def one_example(query: jax.Array, key: jax.Array, value: jax.Array, segments_P: jax.Array) -> jax.Array:
        return kernel(query, key, value, segment_ids=kernels.SegmentIds(segments_P, segments_P))

    return jax.vmap(one_example)(query, key, value, segments_BxP)
