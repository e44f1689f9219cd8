"""The contrastive losses over the global batch: softmax (CLIP) and sigmoid (SigLIP), all text views at once.

Every device keeps the images of its own rows. The texts come to it in blocks, and a block in chunks of columns:

    own images  x  [ block of texts | block of texts | … ]        logits of one chunk at a time: (b, c) per view

A block is the texts gathered over some mesh axes; over the others blocks travel in a ring. Up to `GATHERED_BYTES` the
texts are gathered over all axes: one block, no ring, nothing is permuted. Beyond, they are gathered over `fsdp` and
travel over `data`, so that memory does not grow with the number of `data` devices. Measured in docs/step.md.

The softmax loss needs two passes (log-sum-exp over rows and columns, then gradients), the sigmoid loss one.

Legend: B global batch, b rows of a device, E joint width, V views, n texts of a block, c of a chunk, K chunks.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from clips_jax.losses.chunks import largest_divisor

P = PartitionSpec
# Products of embeddings decide which of B candidates wins; a TPU's default would round them to bfloat16.
PRECISION = jax.lax.Precision.HIGHEST
# Gathered texts of all views, above which they travel in a ring instead: 2 views of 32,768 x 768 float32 are 192 MiB.
GATHERED_BYTES = 256 * 2**20
# Logits of one chunk, all views.
CHUNK_BYTES = 32 * 2**20

Kind = Literal["softmax", "sigmoid"]


class _Settings(NamedTuple):
    kind: Kind
    weights: tuple[float, ...]
    mesh: Mesh | AbstractMesh


def contrastive_loss(
    image_BxE: jax.Array,
    texts_BxVxE: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    kind: Kind,
    weights: tuple[float, ...],
    mesh: Mesh | AbstractMesh,
) -> tuple[jax.Array, jax.Array]:
    """The weighted sum over views of one of

    softmax (CLIP, Radford et al. 2021), z_ij = scale * <image_i, text_j>:
        1/2B sum_i [ logsumexp_j z_ij - z_ii ] + 1/2B sum_j [ logsumexp_i z_ij - z_jj ]
    sigmoid (SigLIP, Zhai et al. 2023, eq. 1), z_ij = scale * <image_i, text_j> + bias, y_ij = 1 if i = j else -1:
        -1/B sum_ij log sigmoid( y_ij z_ij )

    Args:
      image_BxE: float, L2-normalised; rows over the mesh axes `data` and `fsdp`.
      texts_BxVxE: float, L2-normalised; row i belongs to image i.
      scale: float (), 1 / temperature.
      bias: float (), read by the sigmoid loss only.
      kind: which of the two.
      weights: of the views.
      mesh: with axes `data` and `fsdp`.

    Returns:
      loss: float (), in nats; parts_V: float (V,), each view's own loss, which carries no gradient.
    """
    return _loss(_Settings(kind, weights, mesh), image_BxE, texts_BxVxE, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(settings: _Settings, *inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _loss_and_gradients(settings, *inputs)[0]


def _forward(settings: _Settings, *inputs: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    return _loss_and_gradients(settings, *inputs)


def _backward(settings: _Settings, gradients: tuple[jax.Array, ...], cotangents: Any) -> tuple[jax.Array, ...]:
    return tuple(cotangents[0] * gradient for gradient in gradients)


_loss.defvjp(_forward, _backward)


def _loss_and_gradients(settings: _Settings, *inputs: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    """((loss, parts_V), gradients of the inputs)."""
    image_BxE, texts_BxVxE = inputs[:2]
    gathers_all = texts_BxVxE.size * texts_BxVxE.dtype.itemsize <= GATHERED_BYTES
    rows = P(("data", "fsdp"))
    body = jax.shard_map(
        functools.partial(_on_each_device, settings, len(image_BxE), gathers_all),
        mesh=settings.mesh,
        in_specs=(rows, rows, P(), P()),
        out_specs=((P(), P()), (rows, rows, P(), P())),
        check_vma=False,
    )
    return body(*inputs)


def _on_each_device(
    settings: _Settings,
    batch: int,
    gathers_all: bool,
    image_bxE: jax.Array,
    texts_bxVxE: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    kind, weights, mesh = settings
    everywhere = ("data", "fsdp")
    # A batch's rows lie over (data, fsdp), fsdp innermost: gathered in this order they are in order. One axis at
    # a time: over both at once a v5e turns it into an all-reduce.
    gathered = ("fsdp", "data") if gathers_all else ("fsdp",)
    hops = 1 if gathers_all else mesh.shape["data"]
    own, views = len(image_bxE), len(weights)
    device = jax.lax.axis_index("data") * mesh.shape["fsdp"] + jax.lax.axis_index("fsdp")
    own_rows_b = device * own + jnp.arange(own)

    texts_nxVxE = texts_bxVxE
    for axis in gathered:
        texts_nxVxE = jax.lax.all_gather(texts_nxVxE, axis, axis=0, tiled=True)
    block = len(texts_nxVxE)
    chunk = largest_divisor(block, CHUNK_BYTES // (views * own * image_bxE.dtype.itemsize))
    texts_KxcxVxE = texts_nxVxE.reshape(-1, chunk, *texts_nxVxE.shape[1:])

    def around_the_ring(visit: Any, carry: Any, held: Any) -> tuple[Any, Any]:
        """`carry, held chunk = visit(carry, held chunk, columns_c, texts_cxVxE)` for every chunk of every block.

        `held` is what belongs to a block's texts, (K, c, …): it travels with them, and is back home at the end.
        """

        def hop(state: Any, index: jax.Array) -> tuple[Any, None]:
            carry, held, texts_KxcxVxE = state
            first = 0 if gathers_all else (jax.lax.axis_index("data") - index) % hops * block
            columns_Kxc = (first + jnp.arange(block)).reshape(-1, chunk)
            carry, held = jax.lax.scan(lambda c, x: visit(c, *x), carry, (held, columns_Kxc, texts_KxcxVxE))
            if hops > 1:
                to_next = [(i, (i + 1) % hops) for i in range(hops)]
                held, texts_KxcxVxE = jax.lax.ppermute((held, texts_KxcxVxE), "data", to_next)
            return (carry, held, texts_KxcxVxE), None

        return jax.lax.scan(hop, (carry, held, texts_KxcxVxE), jnp.arange(hops))[0][:2]

    def cosines(texts_cxVxE: jax.Array) -> jax.Array:
        return jnp.einsum("be,cve->vbc", image_bxE, texts_cxVxE, precision=PRECISION)

    def add_logsumexp(rows_Vxb: jax.Array, columns_cxV: jax.Array, _: Any, texts: jax.Array) -> tuple[Any, Any]:
        logits_Vxbxc = scale * cosines(texts)
        rows_Vxb = jnp.logaddexp(rows_Vxb, jax.nn.logsumexp(logits_Vxbxc, axis=2))
        return rows_Vxb, jnp.logaddexp(columns_cxV, jax.nn.logsumexp(logits_Vxbxc, axis=1).T)

    dtype = image_bxE.dtype
    lse_Vxb, lse_KxcxV = jnp.zeros((views, own), dtype), jnp.zeros(texts_KxcxVxE.shape[:3], dtype)
    if kind == "softmax":
        empty = jnp.array(-jnp.inf, dtype)
        lse_Vxb, lse_KxcxV = around_the_ring(add_logsumexp, empty + lse_Vxb, empty + lse_KxcxV)
        # Each device of the gathered axes has seen the block's columns against its own rows only.
        largest_KxcxV = jax.lax.pmax(lse_KxcxV, gathered)
        lse_KxcxV = largest_KxcxV + jnp.log(jax.lax.psum(jnp.exp(lse_KxcxV - largest_KxcxV), gathered))

    def add_gradients(sums: Any, held: Any, columns_c: jax.Array, texts: jax.Array) -> tuple[Any, Any]:
        by_image_bxE, by_scale, by_bias, loss_V = sums
        lse_cxV, by_texts_cxVxE = held
        is_pair_1xbxc = (own_rows_b[:, None] == columns_c[None])[None]
        cosines_Vxbxc = cosines(texts)
        if kind == "softmax":
            logits_Vxbxc = scale * cosines_Vxbxc
            by_row_Vxbxc = jnp.exp(logits_Vxbxc - lse_Vxb[:, :, None])
            by_column_Vxbxc = jnp.exp(logits_Vxbxc - lse_cxV.T[:, None, :])
            by_logit_Vxbxc = (by_row_Vxbxc + by_column_Vxbxc - 2 * is_pair_1xbxc) / (2 * batch)
            loss_V -= jnp.where(is_pair_1xbxc, logits_Vxbxc, 0).sum(axis=(1, 2)) / batch
        else:
            sign_1xbxc = jnp.where(is_pair_1xbxc, 1, -1).astype(dtype)
            margin_Vxbxc = sign_1xbxc * (scale * cosines_Vxbxc + bias)
            by_logit_Vxbxc = -sign_1xbxc * jax.nn.sigmoid(-margin_Vxbxc) / batch
            loss_V -= jax.nn.log_sigmoid(margin_Vxbxc).sum(axis=(1, 2)) / batch
        by_logit_Vxbxc *= jnp.array(weights, dtype)[:, None, None]
        by_scale += (by_logit_Vxbxc * cosines_Vxbxc).sum()
        by_bias += by_logit_Vxbxc.sum() if kind == "sigmoid" else 0
        by_cosine_Vxbxc = scale * by_logit_Vxbxc
        by_image_bxE += jnp.einsum("vbc,cve->be", by_cosine_Vxbxc, texts, precision=PRECISION)
        by_texts_cxVxE += jnp.einsum("vbc,be->cve", by_cosine_Vxbxc, image_bxE, precision=PRECISION)
        return (by_image_bxE, by_scale, by_bias, loss_V), (lse_cxV, by_texts_cxVxE)

    zero = jnp.zeros((), dtype)
    sums = (jnp.zeros_like(image_bxE), zero, zero, jnp.zeros(views, dtype))
    held = (lse_KxcxV, jnp.zeros_like(texts_KxcxVxE))
    (by_image_bxE, *totals), (_, by_texts_KxcxVxE) = around_the_ring(add_gradients, sums, held)
    by_texts_bxVxE = by_texts_KxcxVxE.reshape(texts_nxVxE.shape)
    for axis in reversed(gathered):
        by_texts_bxVxE = jax.lax.psum_scatter(by_texts_bxVxE, axis, scatter_dimension=0, tiled=True)
    if kind == "softmax":
        lse_nxV, first = lse_KxcxV.reshape(block, views), device * own % block
        own_lse_bxV = jax.lax.dynamic_slice_in_dim(lse_nxV, first, own)
        totals[2] += (lse_Vxb.sum(axis=1) + own_lse_bxV.sum(axis=0)) / (2 * batch)
    by_scale, by_bias, loss_V = jax.lax.psum(tuple(totals), everywhere)
    loss = (jnp.array(weights, dtype) * loss_V).sum()
    return (loss, loss_V), (by_image_bxE, by_texts_bxVxE, by_scale.astype(scale.dtype), by_bias.astype(bias.dtype))
