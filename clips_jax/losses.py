"""The contrastive and the caption loss, in float32, over the global batch.

Legend: B global batch, E joint width, C captioned examples, T target positions, D decoder width, V vocabulary.
"""

import jax
import jax.numpy as jnp

# Products of embeddings decide which of B candidates wins; a TPU's default would round them to bfloat16.
PRECISION = jax.lax.Precision.HIGHEST


def softmax_loss(image_BxE: jax.Array, text_BxE: jax.Array, scale: jax.Array) -> jax.Array:
    """Symmetric InfoNCE (CLIP, Radford et al. 2021).

        z_ij = scale * <image_i, text_j>
        L = 1/2B sum_i [ logsumexp_j z_ij - z_ii ] + 1/2B sum_j [ logsumexp_i z_ij - z_jj ]

    Args:
      image_BxE, text_BxE: float32, L2-normalised; row i of one belongs to row i of the other.
      scale: float32 (), 1 / temperature.

    Returns:
      float32 (), in nats.
    """
    logits_BxB = scale * jnp.matmul(image_BxE, text_BxE.T, precision=PRECISION)
    positive_B = scale * (image_BxE * text_BxE).sum(axis=-1)
    by_image_B = jax.nn.logsumexp(logits_BxB, axis=1)
    by_text_B = jax.nn.logsumexp(logits_BxB, axis=0)
    return ((by_image_B + by_text_B) / 2 - positive_B).mean()


def sigmoid_loss(image_BxE: jax.Array, text_BxE: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023, eq. 1).

    L = -1/B sum_ij log sigmoid( y_ij (scale * <image_i, text_j> + bias) ),  y_ij = 1 if i = j else -1
    """
    logits_BxB = scale * jnp.matmul(image_BxE, text_BxE.T, precision=PRECISION) + bias
    sign_BxB = 2 * jnp.eye(len(image_BxE)) - 1
    return -jax.nn.log_sigmoid(sign_BxB * logits_BxB).sum() / len(image_BxE)


def caption_cross_entropy(hidden_CxTxD: jax.Array, head_DxV: jax.Array, targets_CxT: jax.Array) -> jax.Array:
    """Cross-entropy of each target token in nats: float32 (C, T).

    The product runs in the activations' dtype with float32 sums; softmax and logarithm are float32.
    """
    logits_CxTxV = jnp.einsum(
        "ctd,dv->ctv", hidden_CxTxD, head_DxV.astype(hidden_CxTxD.dtype), preferred_element_type=jnp.float32
    )
    picked_CxT = jnp.take_along_axis(logits_CxTxV, targets_CxT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_CxTxV, axis=-1) - picked_CxT


def caption_loss(
    hidden_CxTxD: jax.Array, head_DxV: jax.Array, targets_CxT: jax.Array, weights_CxT: jax.Array
) -> jax.Array:
    """Mean cross-entropy over the batch's non-pad target tokens; 0 if there are none.

    Args:
      hidden_CxTxD, head_DxV: the captioner's outputs.
      targets_CxT: int (C, T).
      weights_CxT: float32 (C, T), 1 where a token counts, 0 on padding.
    """
    losses_CxT = caption_cross_entropy(hidden_CxTxD, head_DxV, targets_CxT)
    return (losses_CxT * weights_CxT).sum() / jnp.maximum(weights_CxT.sum(), 1)
