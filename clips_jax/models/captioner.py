"""The decoder that writes the whole recaption from the picture and the AltText (CLIPS, section 3.3).

Legend: B batch, P prefix length, T target positions, D decoder width, V vocabulary.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from clips_jax.config import CaptionerConfig
from clips_jax.masks import SegmentMask, combination_mask
from clips_jax.models.layers import Cache, Dense, Embed, LayerNorm, Transformer

Prefix = dict[str, tuple[jax.Array, jax.Array]]  # by name, in order: tokens (B, N, any width), real bool (B, N)


@flax.struct.dataclass
class Written:
    """What the captioner has read and written so far, so that the next token costs one position, not all of them.

    Attributes:
      cache: keys and values (depth, B, P + T, heads, head width); prefix first.
      real_BxP: bool, False on the prefix's padding.
    """

    cache: Cache
    real_BxP: jax.Array


# The axis of the rows of each part of a `Written`.
ROW_AXES = Written(cache=(1, 1), real_BxP=0)  # pyright: ignore[reportArgumentType] (numbers in place of arrays)


class Captioner(nn.Module):
    """One transformer over [ image tokens | text tokens | target queries ] under the combination mask."""

    config: CaptionerConfig
    vocab_size: int
    dtype: jnp.dtype

    def setup(self) -> None:
        """Declares the parts."""
        config, width = self.config, self.config.transformer.width
        # Learned queries: the released recipe. The same table serves as positions when tokens are fed.
        self.queries = self.param("queries", nn.initializers.normal(0.02), (config.target_length, width))
        if config.kind == "teacher_forced":
            initializer = nn.initializers.normal(0.02)
            self.tokens = Embed(self.vocab_size, width, dtype=self.dtype, embedding_init=initializer)
        self.project = {name: Dense(width, use_bias=False, dtype=self.dtype) for name in config.condition_on}
        self.transformer = Transformer(config.transformer, self.dtype)
        self.norm = LayerNorm(dtype=self.dtype)
        self.head = self.param("head", nn.initializers.xavier_uniform(), (width, self.vocab_size))

    def _read(self, prefix: Prefix) -> tuple[jax.Array, jax.Array]:
        """The prefix as the transformer's inputs, (B, P, D), and which of them are real, (B, P)."""
        projected = [self.project[name](tokens) for name, (tokens, _) in prefix.items()]
        return jnp.concatenate(projected, axis=1), jnp.concatenate([real for _, real in prefix.values()], axis=1)

    def __call__(self, prefix: Prefix, targets_BxT: jax.Array, bos: int) -> tuple[jax.Array, jax.Array]:
        """Hidden states of the target positions.

        Args:
          prefix: by name, in order: tokens (B, N, any width) and bool (B, N), False on padding.
          targets_BxT: int (B, T). "learnable" reads nothing but its shape; "teacher_forced" reads it shifted by one.
          bos: the token before the first target.

        Returns:
          hidden_BxTxD, in `dtype`; head_DxV, float32. Their product is the logits; the loss takes it, so that no
          (B, T, V) array need exist here.
        """
        length, width = targets_BxT.shape[1], self.config.transformer.width
        queries_TxD = self.queries[:length].astype(self.dtype)
        x_BxTxD = jnp.broadcast_to(queries_TxD[None], (len(targets_BxT), length, width))
        if self.config.kind == "teacher_forced":
            shifted_BxT = jnp.pad(targets_BxT, ((0, 0), (1, 0)), constant_values=bos)[:, :-1]
            x_BxTxD = x_BxTxD + self.tokens(shifted_BxT)
        x_BxPxD, real_BxP = self._read(prefix)
        x_BxLxD = jnp.concatenate([x_BxPxD, x_BxTxD], axis=1)
        # The combination mask, but for the prefix' padding, which sees itself and is seen by nobody.
        segments_BxL = jnp.pad(real_BxP.astype(jnp.int32), ((0, 0), (0, length)), constant_values=1)
        x_BxLxD = self.transformer(x_BxLxD, SegmentMask(segments_BxL, prefix=real_BxP.shape[1]))
        return self.norm(x_BxLxD[:, -length:]), self.head

    def start(self, prefix: Prefix) -> Written:
        """Reads the prefix, once, and leaves room for `target_length` targets; "teacher_forced" only."""
        x_BxPxD, real_BxP = self._read(prefix)
        length = self.config.target_length
        cache = self.transformer.empty_cache(len(real_BxP), real_BxP.shape[1] + length)
        # The rows of the combination mask that belong to the prefix: nothing of the targets is visible.
        mask_Bx1xPxC = combination_mask(real_BxP, length)[:, :, : real_BxP.shape[1]]
        return Written(self.transformer(x_BxPxD, mask_Bx1xPxC, cache)[1], real_BxP)

    def next(self, written: Written, tokens_B: jax.Array, position: jax.Array) -> tuple[jax.Array, Written]:
        """Writes one token per row.

        Args:
          written: of `start`, or of the call before.
          tokens_B: int (B,), the target before `position`: BOS at position 0.
          position: int (), 0 to T - 1.

        Returns:
          logits_BxV, float32, of the target at `position`; what is written then.
        """
        query_D = jax.lax.dynamic_index_in_dim(self.queries, position, keepdims=False).astype(self.dtype)
        x_Bx1xD = (query_D[None] + self.tokens(tokens_B))[:, None]
        seen_T = jnp.arange(self.config.target_length) <= position
        seen_BxT = jnp.broadcast_to(seen_T[None], (len(tokens_B), len(seen_T)))
        mask_Bx1x1xC = jnp.concatenate([written.real_BxP, seen_BxT], axis=1)[:, None, None]
        place = written.real_BxP.shape[1] + position
        x_Bx1xD, cache = self.transformer(x_Bx1xD, mask_Bx1x1xC, written.cache, place)
        logits_BxV = self.norm(x_Bx1xD)[:, 0].astype(jnp.float32) @ self.head
        return logits_BxV, Written(cache, written.real_BxP)
