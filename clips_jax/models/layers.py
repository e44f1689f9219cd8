"""The one attention and the one block that every tower is made of.

Legend: B batch, L sequence, C keys and values held, D width, H heads, K head width, F hidden width of the MLP.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from clips_jax.config import TransformerConfig
from clips_jax.masks import HIDDEN_LOGIT, SegmentMask
from clips_jax.models.fused_attention import fused_attention

LAYER_NORM_EPSILON = 1e-6  # released CLIPS weights; 1e-5 changes their text features by 6e-2
kernel_init = nn.initializers.xavier_uniform()  # as big_vision's ViT

LayerNorm = functools.partial(nn.LayerNorm, epsilon=LAYER_NORM_EPSILON)

# Stacks up to this depth are written out instead of looped over: a loop of few blocks compiles no quicker. Training on
# CPU writes out deeper ones too: there a loop's copies of what the backward pass reads take a fifth of the time.
UNROLLED_DEPTH, UNROLLED_DEPTH_ON_CPU = 4, 12

# What the attention kernel writes, by name, for the policies of rematerialisation.
ATTENDED = "attended"


@jax.custom_vjp
def matmul(x_NxD: jax.Array, kernel_DxF: jax.Array) -> jax.Array:
    """Their product in x's dtype. The kernel's gradient is computed, and so summed over devices, in the kernel's."""
    return jnp.matmul(x_NxD, kernel_DxF.astype(x_NxD.dtype))


def _matmul_forward(x_NxD: jax.Array, kernel_DxF: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Written out: a call of `matmul` would hide the product from the policy that decides what is rematerialised.
    return jnp.matmul(x_NxD, kernel_DxF.astype(x_NxD.dtype)), (x_NxD, kernel_DxF)


def _matmul_backward(inputs: tuple[jax.Array, jax.Array], by_out_NxF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_NxD, kernel_DxF = inputs
    by_kernel_DxF = jnp.matmul(x_NxD.T, by_out_NxF, preferred_element_type=kernel_DxF.dtype)
    return jnp.matmul(by_out_NxF, kernel_DxF.astype(x_NxD.dtype).T), by_kernel_DxF


matmul.defvjp(_matmul_forward, _matmul_backward)


def dot_over_all_tokens(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None) -> jax.Array:
    """`lax.dot_general` as one plain matrix product over all tokens of the batch.

    The same numbers as over (B, L, …); XLA's CPU backend is slower on the gradients of the latter.
    """
    assert precision is None
    (contracted, kernel_contracted), _ = dimension_numbers
    kept = [size for axis, size in enumerate(x.shape) if axis not in contracted]
    made = [size for axis, size in enumerate(kernel.shape) if axis not in kernel_contracted]
    depth = math.prod(x.shape[axis] for axis in contracted)
    return matmul(x.reshape(-1, depth), kernel.reshape(depth, -1)).reshape(*kept, *made)


def promote_all_but_kernel(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Activations and bias in the layer's dtype; `matmul` looks after the kernel."""
    return x.astype(dtype), kernel, None if bias is None else bias.astype(dtype)


_products: Any = {"dot_general": dot_over_all_tokens, "promote_dtype": promote_all_but_kernel}
Dense = functools.partial(nn.Dense, **_products)
DenseGeneral = functools.partial(nn.DenseGeneral, **_products)


@jax.custom_vjp
def exact_gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x, any shape; computed in float32 and from x alone, both ways.

    `jax.nn.gelu` goes by erfc, which a TPU computes both ways round: four times the time to compile these layers, a
    quarter more cycles to run them.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _normal_distribution(wide)).astype(x.dtype)


def _normal_distribution(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _exact_gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return exact_gelu(x), x


def _exact_gelu_backward(x: jax.Array, by_out: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    return ((by_out * (_normal_distribution(wide) + wide * density)).astype(x.dtype),)


exact_gelu.defvjp(_exact_gelu_forward, _exact_gelu_backward)


class Embed(nn.Embed):
    """A table of vectors; its gradient is summed in the table's dtype, the vectors come in the layer's."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """int (…) -> (…, features)."""
        return jnp.take(self.embedding, inputs, axis=0).astype(self.dtype)


def keep_rows(x: jax.Array) -> jax.Array:
    """Pins the batch axis of activations to the devices that hold the batch, if a mesh is in use (`train_step`).

    Where weights are split over an axis that splits the batch too, the compiler may else gather the activations instead
    of the weights: at full size ten times the memory.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    unconstrained = [jax.sharding.PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(("data", "fsdp"), *unconstrained))


# Keys and values (B, C, H, K) of the positions seen so far; those of a whole stack carry a leading layer axis.
Cache = tuple[jax.Array, jax.Array]
AnyMask = jax.Array | SegmentMask | None


def trains_on(platform: str) -> bool:
    """Whether the mesh in use (`train_step`) is of "cpu" or "tpu" devices; outside of a step none is in use."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == platform


def uses_kernel(config: TransformerConfig) -> bool:
    """Whether attention is the TPU's kernel here."""
    return config.attention == "fused" and trains_on("tpu")


def attend(
    query_BxLxHxK: jax.Array, key_BxCxHxK: jax.Array, value_BxCxHxK: jax.Array, mask_Bx1xLxC: jax.Array | None
) -> jax.Array:
    """softmax(q k / sqrt(K)) v, (B, L, H, K), under a bool mask that broadcasts to (B, H, L, C); softmax in float32.

    In a training step on CPU rows and heads move to the front of every factor: two thirds of the time of
    `jax.nn.dot_product_attention`, which elsewhere reads and writes less (docs/experiments.md).
    """
    if not trains_on("cpu"):
        return jax.nn.dot_product_attention(query_BxLxHxK, key_BxCxHxK, value_BxCxHxK, mask=mask_Bx1xLxC)
    query_BxHxLxK, key_BxHxCxK, value_BxHxCxK = (x.swapaxes(1, 2) for x in (query_BxLxHxK, key_BxCxHxK, value_BxCxHxK))
    accumulated = jnp.promote_types(query_BxHxLxK.dtype, jnp.float32)
    logits_BxHxLxC = jnp.einsum("bhlk,bhck->bhlc", query_BxHxLxK, key_BxHxCxK, preferred_element_type=accumulated)
    logits_BxHxLxC *= query_BxHxLxK.shape[-1] ** -0.5
    if mask_Bx1xLxC is not None:
        logits_BxHxLxC = jnp.where(mask_Bx1xLxC, logits_BxHxLxC, HIDDEN_LOGIT)
    weights_BxHxLxC = jax.nn.softmax(logits_BxHxLxC).astype(value_BxHxCxK.dtype)
    return jnp.einsum("bhlc,bhck->bhlk", weights_BxHxLxC, value_BxHxCxK).swapaxes(1, 2)


def written_out(depth: int) -> bool:
    """Whether a stack is written out instead of looped over."""
    return depth <= (UNROLLED_DEPTH_ON_CPU if trains_on("cpu") else UNROLLED_DEPTH)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) over x_BxLxD.

    Attributes:
      heads: H; D / H is the head width.
      dtype: of the activations. The softmax is float32 in any case.
      kernel: use the TPU's (`fused_attention`) where the mask and the absence of a cache allow it.
    """

    heads: int
    dtype: jnp.dtype
    kernel: bool = False

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, mask_Bx1xLxC: AnyMask, cache: Cache | None = None, start: Any = 0
    ) -> tuple[jax.Array, Cache | None]:
        """Attends over x itself (C = L) or, given a cache, over all that it holds.

        Args:
          cache: keys and values; those of x replace positions `start` to `start + L`. The mask hides what is not
            written yet.

        Returns:
          x_BxLxD; the cache with x in it, None without cache.
        """
        width = x_BxLxD.shape[-1]

        def project(name: str) -> jax.Array:
            shape = (self.heads, width // self.heads)
            return DenseGeneral(shape, dtype=self.dtype, kernel_init=kernel_init, name=name)(x_BxLxD)

        query, key, value = project("query"), project("key"), project("value")
        if cache is not None:
            key, value = (
                jax.lax.dynamic_update_slice_in_dim(held, new, start, axis=1)
                for held, new in zip(cache, (key, value), strict=True)
            )
            cache = key, value
        if isinstance(mask_Bx1xLxC, SegmentMask) or (self.kernel and mask_Bx1xLxC is None and cache is None):
            out_BxLxHxK = checkpoint_name(fused_attention(query, key, value, mask_Bx1xLxC), ATTENDED)
        else:
            out_BxLxHxK = attend(query, key, value, mask_Bx1xLxC)
        out = DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, kernel_init=kernel_init, name="out")
        return out(out_BxLxHxK), cache


class Mlp(nn.Module):
    """Two dense layers with a GELU between: D -> F -> D."""

    hidden: int
    gelu: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        x_BxLxF = Dense(self.hidden, dtype=self.dtype, kernel_init=kernel_init, name="up")(x_BxLxD)
        x_BxLxF = nn.gelu(x_BxLxF, approximate=True) if self.gelu == "tanh" else exact_gelu(x_BxLxF)
        return Dense(x_BxLxD.shape[-1], dtype=self.dtype, kernel_init=kernel_init, name="down")(x_BxLxF)


class Block(nn.Module):
    """Pre-norm transformer block; returns (x_BxLxD, its cache or None), the form `nn.scan` wants."""

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, mask_Bx1xLxC: AnyMask, cache: Cache | None = None, start: Any = 0
    ) -> tuple[jax.Array, Cache | None]:
        config = self.config
        y_BxLxD = LayerNorm(dtype=self.dtype, name="norm_attention")(x_BxLxD)
        attention = Attention(config.heads, self.dtype, uses_kernel(config), name="attention")
        y_BxLxD, cache = attention(y_BxLxD, mask_Bx1xLxC, cache, start)
        x_BxLxD = keep_rows(x_BxLxD + y_BxLxD)
        y_BxLxD = LayerNorm(dtype=self.dtype, name="norm_mlp")(x_BxLxD)
        return keep_rows(x_BxLxD + Mlp(config.mlp_dim, config.gelu, self.dtype, name="mlp")(y_BxLxD)), cache


class Transformer(nn.Module):
    """`depth` blocks as one scan over parameters stacked on a leading axis: unless `written_out`, compile time does not
    grow with depth.

    There is no norm after the last block; the towers place it differently.
    """

    config: TransformerConfig
    dtype: jnp.dtype

    def empty_cache(self, batch_size: int, positions: int) -> Cache:
        """A cache for this many positions, of zeros."""
        heads = self.config.heads
        shape = (self.config.depth, batch_size, positions, heads, self.config.width // heads)
        return jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, mask_Bx1xLxC: AnyMask = None, cache: Cache | None = None, start: Any = 0
    ) -> Any:
        """x_BxLxD; with a cache, x_BxLxD and the cache with x at positions `start` to `start + L`."""
        if isinstance(mask_Bx1xLxC, SegmentMask) and not uses_kernel(self.config):
            mask_Bx1xLxC = mask_Bx1xLxC.dense()  # once, for all blocks and heads
        block: Callable = Block
        if self.config.remat != "none":
            policies = jax.checkpoint_policies
            dots = policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(ATTENDED)
            )
            block = nn.remat(Block, prevent_cse=False, policy=dots if self.config.remat == "dots" else None)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, nn.broadcast),  # pyright: ignore[reportArgumentType] (nn.broadcast is left out)
            length=self.config.depth,
            unroll=self.config.depth if written_out(self.config.depth) else 1,
        )
        x_BxLxD, written = stack(self.config, self.dtype, name="blocks")(x_BxLxD, mask_Bx1xLxC, cache, start)
        return x_BxLxD if cache is None else (x_BxLxD, written)
