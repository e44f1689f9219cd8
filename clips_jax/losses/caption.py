"""The caption loss: head and cross-entropy in one, over chunks of rows.

Legend: C captioned examples, T target positions, D decoder width, V vocabulary (v of it on a device), N rows of a
device (its C x T), n rows of a chunk.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from clips_jax.losses.chunks import largest_divisor

P = PartitionSpec
# Logits of one chunk, float32. 128 MiB are 1,024 rows of 32,000: larger ones save little traffic (the head's gradient
# is read and written once per chunk), smaller ones little memory.
CHUNK_BYTES = 128 * 2**20


def caption_loss(
    hidden_CxTxD: jax.Array,
    head_DxV: jax.Array,
    targets_CxT: jax.Array,
    weights_CxT: jax.Array,
    total: jax.Array,
    mesh: Mesh | AbstractMesh,
) -> jax.Array:
    """sum of weight x cross-entropy / total, with its gradient computed on the way.

    Products run in the activations' dtype with float32 sums, softmax and logarithm in float32.

    Args:
      hidden_CxTxD, head_DxV: the captioner's outputs; rows over the mesh axes `data` and `fsdp`, the head over `fsdp`
        and `tensor`.
      targets_CxT: int (C, T).
      weights_CxT: float32 (C, T), 1 where a token counts, 0 on padding.
      total: float32 (), what the sum is divided by: the number of tokens that count in the whole batch.
      mesh: with axes `data`, `fsdp` and `tensor`.

    Returns:
      float32 (), in nats per token.
    """
    return _loss(mesh, hidden_CxTxD, head_DxV, targets_CxT, weights_CxT, total)


def caption_cross_entropy(hidden_CxTxD: jax.Array, head_DxV: jax.Array, targets_CxT: jax.Array) -> jax.Array:
    """Cross-entropy of each target token in nats, without a gradient: float32 (C, T)."""
    head_DxV = head_DxV.astype(hidden_CxTxD.dtype)

    def one_position(position: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_CxD, targets_C = position
        logits_CxV = jnp.matmul(hidden_CxD, head_DxV, preferred_element_type=jnp.float32)
        picked_C = jnp.take_along_axis(logits_CxV, targets_C[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits_CxV, axis=1) - picked_C

    # Position by position: rows stay where they are on a sharded batch.
    return jax.lax.map(one_position, (hidden_CxTxD.swapaxes(0, 1), targets_CxT.T)).T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(mesh: Mesh | AbstractMesh, *inputs: jax.Array) -> jax.Array:
    return _loss_and_gradients(mesh, *inputs)[0]


def _forward(mesh: Mesh | AbstractMesh, *inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _loss_and_gradients(mesh, *inputs)


def _backward(_: Mesh | AbstractMesh, gradients: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[Any, ...]:
    by_hidden, by_head = ((cotangent * gradient).astype(gradient.dtype) for gradient in gradients)
    return by_hidden, by_head, None, None, None


_loss.defvjp(_forward, _backward)


def _loss_and_gradients(mesh: Mesh | AbstractMesh, *inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """(loss, gradients of hidden states and head)."""
    rows, head = P(("data", "fsdp")), P("fsdp", "tensor")
    body = jax.shard_map(
        _on_each_device,
        mesh=mesh,
        in_specs=(rows, head, rows, rows, P()),
        out_specs=(P(), (rows, head)),
        check_vma=False,
    )
    return body(*inputs)


def _on_each_device(
    hidden_CxTxD: jax.Array, head_DxV: jax.Array, targets_CxT: jax.Array, weights_CxT: jax.Array, total: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    dtype = hidden_CxTxD.dtype
    accumulated = jnp.promote_types(dtype, jnp.float32)  # of products and of the loss
    head_Dxv = jax.lax.all_gather(head_DxV.astype(dtype), "fsdp", axis=0, tiled=True)
    width, own_vocabulary = head_Dxv.shape
    vocabulary_v = jax.lax.axis_index("tensor") * own_vocabulary + jnp.arange(own_vocabulary)
    size = largest_divisor(targets_CxT.size, CHUNK_BYTES // (4 * own_vocabulary))

    def one_chunk(sums: tuple[jax.Array, jax.Array], chunk: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        loss, by_head_Dxv = sums
        hidden_nxD, targets_n, weights_n = chunk
        logits_nxv = jnp.matmul(hidden_nxD, head_Dxv, preferred_element_type=accumulated)
        is_target_nxv = targets_n[:, None] == vocabulary_v[None]
        largest_n = jax.lax.pmax(logits_nxv.max(axis=1), "tensor")
        exps_nxv = jnp.exp(logits_nxv - largest_n[:, None])
        sum_n, picked_n = jax.lax.psum(
            (exps_nxv.sum(axis=1), jnp.where(is_target_nxv, logits_nxv, 0).sum(axis=1)), "tensor"
        )
        weights_n = weights_n / total
        loss += (weights_n * (jnp.log(sum_n) + largest_n - picked_n)).sum()
        by_logit_nxv = (weights_n[:, None] * (exps_nxv / sum_n[:, None] - is_target_nxv)).astype(dtype)
        by_hidden_nxD = jnp.matmul(by_logit_nxv, head_Dxv.T, preferred_element_type=accumulated)
        by_head_Dxv += jnp.matmul(hidden_nxD.T, by_logit_nxv, preferred_element_type=accumulated)
        return (loss, by_head_Dxv), jax.lax.psum(by_hidden_nxD, "tensor").astype(dtype)

    chunks = (
        hidden_CxTxD.reshape(-1, size, width),
        targets_CxT.reshape(-1, size),
        weights_CxT.reshape(-1, size),
    )
    zeros = jnp.zeros((), accumulated), jnp.zeros(head_Dxv.shape, accumulated)
    (loss, by_head_Dxv), by_hidden = jax.lax.scan(one_chunk, zeros, chunks)
    by_head_DxV = jax.lax.psum_scatter(by_head_Dxv.astype(head_DxV.dtype), "fsdp", scatter_dimension=0, tiled=True)
    loss, by_head_DxV = jax.lax.psum(loss, ("data", "fsdp")), jax.lax.psum(by_head_DxV, "data")
    return loss, (by_hidden.reshape(hidden_CxTxD.shape), by_head_DxV)
