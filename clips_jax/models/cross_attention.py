"""A captioner that reads the picture through cross-attention in every block, as CoCa's decoder does (Yu et al. 2022).

It predicts each target from the targets before it and the whole prefix, like the teacher-forced captioner; only the way
in differs. CoCa shares the first half of its decoder with its text tower and reads the picture in the second half only;
here the text tower is that of every other member, so that members differ in one thing, and every block reads it.

Legend: B batch, P prefix length, T target positions, C keys and values held (P + T), D decoder width, V vocabulary,
H heads, K head width.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clips_jax.config import CaptionerConfig, TransformerConfig
from clips_jax.models.captioner import Prefix, Written
from clips_jax.models.layers import Attention, Cache, Dense, DenseGeneral, Embed, LayerNorm, Mlp, attend, kernel_init


class CrossAttention(nn.Module):
    """Multi-head attention of x_BxTxD onto a context of the same width."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, context: jax.Array | Cache, mask_Bx1x1xP: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Attends.

        Args:
          context: (B, P, D), or its keys and values (B, P, H, K) as an earlier call returned them.
          mask_Bx1x1xP: bool, False on what nobody sees.

        Returns:
          x_BxTxD; the context's keys and values.
        """
        width = x_BxTxD.shape[-1]

        def project(name: str, tokens: jax.Array) -> jax.Array:
            shape = (self.heads, width // self.heads)
            return DenseGeneral(shape, dtype=self.dtype, kernel_init=kernel_init, name=name)(tokens)

        if isinstance(context, tuple):
            key, value = context
        else:
            key, value = project("key", context), project("value", context)
        out_BxTxHxK = attend(project("query", x_BxTxD), key, value, mask_Bx1x1xP)
        out = DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, kernel_init=kernel_init, name="out")
        return out(out_BxTxHxK), (key, value)


class CrossBlock(nn.Module):
    """Pre-norm block: self-attention over the targets, cross-attention onto the prefix, MLP."""

    config: TransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        mask_Bx1xTxT: jax.Array,
        context_BxPxD: jax.Array | None,
        real_BxP: jax.Array,
        cache: Cache | None = None,
        position: jax.Array | int = 0,
    ) -> tuple[jax.Array, Any]:
        """One block, in the form `nn.scan` wants.

        Args:
          mask_Bx1xTxT: who sees whom among the targets (the second T is all that the cache has room for, if given).
          context_BxPxD: the prefix; None takes it from the cache.
          cache: keys and values (B, P + T, H, K), the prefix's first. x is written from target `position` on.

        Returns:
          x_BxTxD; the cache with what this call has read and written, None without cache.
        """
        config, prefix = self.config, real_BxP.shape[1]
        targets_cache = None if cache is None else (cache[0][:, prefix:], cache[1][:, prefix:])
        y_BxTxD = LayerNorm(dtype=self.dtype, name="norm_attention")(x_BxTxD)
        attention = Attention(config.heads, self.dtype, name="attention")
        y_BxTxD, targets_cache = attention(y_BxTxD, mask_Bx1xTxT, targets_cache, position)
        x_BxTxD = x_BxTxD + y_BxTxD
        if context_BxPxD is None:
            assert cache is not None
            context: jax.Array | Cache = (cache[0][:, :prefix], cache[1][:, :prefix])
        else:
            context = context_BxPxD
        y_BxTxD = LayerNorm(dtype=self.dtype, name="norm_cross_attention")(x_BxTxD)
        cross_attention = CrossAttention(config.heads, self.dtype, name="cross_attention")
        y_BxTxD, (key, value) = cross_attention(y_BxTxD, context, real_BxP[:, None, None])
        x_BxTxD = x_BxTxD + y_BxTxD
        y_BxTxD = LayerNorm(dtype=self.dtype, name="norm_mlp")(x_BxTxD)
        x_BxTxD = x_BxTxD + Mlp(config.mlp_dim, config.gelu, self.dtype, name="mlp")(y_BxTxD)
        if targets_cache is None:
            return x_BxTxD, None
        return x_BxTxD, (
            jnp.concatenate([key, targets_cache[0]], axis=1),
            jnp.concatenate([value, targets_cache[1]], axis=1),
        )


class CrossAttentionCaptioner(nn.Module):
    """The decoder with cross-attention; called like `Captioner`."""

    config: CaptionerConfig
    vocab_size: int
    dtype: jnp.dtype

    def setup(self) -> None:
        """Declares the parts."""
        config, width = self.config, self.config.transformer.width
        initializer = nn.initializers.normal(0.02)
        self.positions = self.param("positions", initializer, (config.target_length, width))
        self.tokens = Embed(self.vocab_size, width, dtype=self.dtype, embedding_init=initializer)
        self.project = {name: Dense(width, use_bias=False, dtype=self.dtype) for name in config.condition_on}
        self.norm_prefix = LayerNorm(dtype=self.dtype)
        block: Callable = CrossBlock
        if config.transformer.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if config.transformer.remat == "dots" else None
            block = nn.remat(CrossBlock, prevent_cse=False, policy=policy)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=config.transformer.depth,
        )
        self.blocks = stack(config.transformer, self.dtype)
        self.norm = LayerNorm(dtype=self.dtype)
        self.head = self.param("head", nn.initializers.xavier_uniform(), (width, self.vocab_size))

    def _read(self, prefix: Prefix) -> tuple[jax.Array, jax.Array]:
        """The prefix as every block's context, (B, P, D), and which of it is real, (B, P)."""
        projected = [self.project[name](tokens) for name, (tokens, _) in prefix.items()]
        context_BxPxD = self.norm_prefix(jnp.concatenate(projected, axis=1))
        return context_BxPxD, jnp.concatenate([real for _, real in prefix.values()], axis=1)

    def __call__(self, prefix: Prefix, targets_BxT: jax.Array, bos: int) -> tuple[jax.Array, jax.Array]:
        """Hidden states of the target positions; arguments and results as `Captioner`'s."""
        length = targets_BxT.shape[1]
        shifted_BxT = jnp.pad(targets_BxT, ((0, 0), (1, 0)), constant_values=bos)[:, :-1]
        x_BxTxD = self.tokens(shifted_BxT) + self.positions[:length].astype(self.dtype)[None]
        causal_1x1xTxT = jnp.tril(jnp.ones((length, length), bool))[None, None]
        x_BxTxD, _ = self.blocks(x_BxTxD, causal_1x1xTxT, *self._read(prefix), None, 0)
        return self.norm(x_BxTxD), self.head

    def start(self, prefix: Prefix) -> Written:
        """Reads the prefix, once, and leaves room for `target_length` targets."""
        context_BxPxD, real_BxP = self._read(prefix)
        stack, (rows, prefix_length) = self.config.transformer, real_BxP.shape
        length = self.config.target_length
        shape = (stack.depth, rows, prefix_length + length, stack.heads, stack.width // stack.heads)
        cache = jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)
        # What this pass computes of the targets is overwritten by the first `next`; it is run for the prefix's part.
        x_Bx1xD = jnp.zeros((rows, 1, stack.width), self.dtype)
        mask_1x1x1xT = jnp.ones((1, 1, 1, length), bool)
        _, cache = self.blocks(x_Bx1xD, mask_1x1x1xT, context_BxPxD, real_BxP, cache, 0)
        return Written(cache, real_BxP)

    def next(self, written: Written, tokens_B: jax.Array, position: jax.Array) -> tuple[jax.Array, Written]:
        """Writes one token per row; arguments and results as `Captioner.next`'s."""
        position_D = jax.lax.dynamic_index_in_dim(self.positions, position, keepdims=False).astype(self.dtype)
        x_Bx1xD = (position_D[None] + self.tokens(tokens_B))[:, None]
        seen_1x1x1xT = (jnp.arange(self.config.target_length) <= position)[None, None, None]
        x_Bx1xD, cache = self.blocks(x_Bx1xD, seen_1x1x1xT, None, written.real_BxP, written.cache, position)
        logits_BxV = self.norm(x_Bx1xD)[:, 0].astype(jnp.float32) @ self.head
        return logits_BxV, Written(cache, written.real_BxP)
