"""The text tower: a bidirectional transformer pooled at its CLS token (CLIPS, section 4).

Legend: B batch, L sequence, D width, E joint width; G, F, R, V: see `packing`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clips_jax.config import TextTowerConfig
from clips_jax.masks import SegmentMask
from clips_jax.models.layers import Dense, Embed, LayerNorm, Transformer
from clips_jax.packing import Packed, cls_places, take


class TextTower(nn.Module):
    """Token and position tables -> blocks -> LayerNorm -> the CLS token's projection.

    CLS takes the last row of the position table whatever the sequence's length. A view of 32 tokens is then the same
    sequence as one of 80 with its padding cut away, and with `mask_padding` gives the same features.

    Attributes:
      joint_dim: width of the features; 0 leaves out the projection, as in `ImageTower`.
    """

    config: TextTowerConfig
    joint_dim: int
    dtype: jnp.dtype

    def setup(self) -> None:
        """Declares the parts."""
        config, width = self.config, self.config.transformer.width
        # OpenAI CLIP's standard deviations for both tables.
        self.tokens = Embed(config.vocab_size, width, dtype=self.dtype, embedding_init=nn.initializers.normal(0.02))
        self.positions = self.param("positions", nn.initializers.normal(0.01), (config.length, width))
        self.transformer = Transformer(config.transformer, self.dtype)
        self.norm = LayerNorm(dtype=self.dtype)
        if self.joint_dim:
            self.head = Dense(self.joint_dim, use_bias=False, dtype=self.dtype)

    def __call__(self, tokens_BxL: jax.Array, real_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes framed texts (`masks.frame`).

        Args:
          tokens_BxL: int (B, L), L at most `config.length`.
          real_BxL: bool (B, L), False on padding.

        Returns:
          features_BxE: in `dtype`, not L2-normalised.
          tokens_BxLxD: normalised outputs of all tokens.
        """
        length = tokens_BxL.shape[1]
        positions_LxD = jnp.concatenate([self.positions[: length - 1], self.positions[-1:]])
        x_BxLxD = self.tokens(tokens_BxL) + positions_LxD.astype(self.dtype)[None]
        mask_Bx1xLxL = None
        if self.config.mask_padding:
            mask_Bx1xLxL = jnp.broadcast_to(real_BxL[:, None, None, :], (len(real_BxL), 1, length, length))
        x_BxLxD = self.norm(self.transformer(x_BxLxD, mask_Bx1xLxL))
        return self._project(x_BxLxD[:, -1]), x_BxLxD

    def packed(self, packed: Packed) -> tuple[jax.Array, jax.Array]:
        """Encodes packed texts (`packing.pack`); the same features as one by one.

        Returns:
          features_BxVxE: in `dtype`, not L2-normalised.
          tokens_GxFxD: normalised outputs of all tokens.
        """
        assert self.config.packing
        groups, length = len(packed.tokens_GxF), self.config.packing.row_length
        tokens_RxL, positions_RxL, segments_RxL = (
            x_GxF.reshape(-1, length) for x_GxF in (packed.tokens_GxF, packed.positions_GxF, packed.segments_GxF)
        )
        x_RxLxD = self.tokens(tokens_RxL) + self.positions.astype(self.dtype)[positions_RxL]
        x_RxLxD = self.norm(self.transformer(x_RxLxD, SegmentMask(segments_RxL, prefix=length)))
        x_GxFxD = x_RxLxD.reshape(groups, -1, x_RxLxD.shape[-1])
        return self._project(take(x_GxFxD, cls_places(packed))), x_GxFxD

    def _project(self, cls: jax.Array) -> jax.Array:
        return self.head(cls) if self.joint_dim else cls
