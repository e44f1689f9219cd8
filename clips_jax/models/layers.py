"""The one attention and the one block that every tower is made of.

Legend: B batch, L sequence, D width, H heads, K head width, F hidden width of the MLP.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clips_jax.config import TransformerConfig

LAYER_NORM_EPSILON = 1e-6  # released CLIPS weights; 1e-5 changes their text features by 6e-2
kernel_init = nn.initializers.xavier_uniform()  # as big_vision's ViT

LayerNorm = functools.partial(nn.LayerNorm, epsilon=LAYER_NORM_EPSILON)

# Stacks up to this depth are written out instead of looped over: as quick to compile, and a third faster on CPU.
UNROLLED_DEPTH = 4


def dot_over_all_tokens(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """`lax.dot_general` as one plain matrix product over all tokens of the batch.

    The same numbers as over (B, L, …); XLA's CPU backend is slower on the gradients of the latter.
    """
    (contracted, kernel_contracted), _ = dimension_numbers
    kept = [size for axis, size in enumerate(x.shape) if axis not in contracted]
    made = [size for axis, size in enumerate(kernel.shape) if axis not in kernel_contracted]
    depth = math.prod(x.shape[axis] for axis in contracted)
    flat = jnp.matmul(
        x.reshape(-1, depth),
        kernel.reshape(depth, -1),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return flat.reshape(*kept, *made)


Dense = functools.partial(nn.Dense, dot_general=dot_over_all_tokens)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=dot_over_all_tokens)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) over x_BxLxD.

    Attributes:
      heads: H; D / H is the head width.
      dtype: of the activations. The softmax is float32 in any case.
    """

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask_Bx1xLxL: jax.Array | None) -> jax.Array:
        width = x_BxLxD.shape[-1]

        def project(name: str) -> jax.Array:
            shape = (self.heads, width // self.heads)
            return DenseGeneral(shape, dtype=self.dtype, kernel_init=kernel_init, name=name)(x_BxLxD)

        out_BxLxHxK = jax.nn.dot_product_attention(
            project("query"), project("key"), project("value"), mask=mask_Bx1xLxL
        )
        return DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, kernel_init=kernel_init, name="out")(out_BxLxHxK)


class Mlp(nn.Module):
    """Two dense layers with a GELU between: D -> F -> D."""

    hidden: int
    gelu: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        x_BxLxF = Dense(self.hidden, dtype=self.dtype, kernel_init=kernel_init, name="up")(x_BxLxD)
        x_BxLxF = nn.gelu(x_BxLxF, approximate=self.gelu == "tanh")
        return Dense(x_BxLxD.shape[-1], dtype=self.dtype, kernel_init=kernel_init, name="down")(x_BxLxF)


class Block(nn.Module):
    """Pre-norm transformer block; returns (x_BxLxD, None), the form `nn.scan` wants."""

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask_Bx1xLxL: jax.Array | None) -> tuple[jax.Array, None]:
        config = self.config
        y_BxLxD = LayerNorm(dtype=self.dtype, name="norm_attention")(x_BxLxD)
        x_BxLxD = x_BxLxD + Attention(config.heads, self.dtype, name="attention")(y_BxLxD, mask_Bx1xLxL)
        y_BxLxD = LayerNorm(dtype=self.dtype, name="norm_mlp")(x_BxLxD)
        return x_BxLxD + Mlp(config.mlp_dim, config.gelu, self.dtype, name="mlp")(y_BxLxD), None


class Transformer(nn.Module):
    """`depth` blocks as one scan: parameters are stacked on a leading axis, and compile time does not grow with depth.

    There is no norm after the last block; the towers place it differently.
    """

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask_Bx1xLxL: jax.Array | None = None) -> jax.Array:
        block: Callable = Block
        if self.config.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            block = nn.remat(Block, prevent_cse=False, policy=dots if self.config.remat == "dots" else None)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType] (its type leaves out nn.broadcast)
            length=self.config.depth,
            unroll=self.config.depth if self.config.depth <= UNROLLED_DEPTH else 1,
        )
        return stack(self.config, self.dtype, name="blocks")(x_BxLxD, mask_Bx1xLxL)[0]
