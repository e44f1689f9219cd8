"""The text tower: a bidirectional transformer pooled at its CLS token (CLIPS, section 4).

Legend: B batch, L sequence, D width, E joint width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clips_jax.config import TextTowerConfig
from clips_jax.models.layers import Dense, LayerNorm, Transformer


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

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, real_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes framed texts (`masks.frame`).

        Args:
          tokens_BxL: int (B, L), L at most `config.length`.
          real_BxL: bool (B, L), False on padding.

        Returns:
          features_BxE: in `dtype`, not L2-normalised.
          tokens_BxLxD: normalised outputs of all tokens.
        """
        config, width, length = self.config, self.config.transformer.width, tokens_BxL.shape[1]
        # OpenAI CLIP's standard deviations for both tables.
        embed = nn.Embed(
            config.vocab_size, width, dtype=self.dtype, embedding_init=nn.initializers.normal(0.02), name="tokens"
        )
        table_LxD = self.param("positions", nn.initializers.normal(0.01), (config.length, width))
        positions_LxD = jnp.concatenate([table_LxD[: length - 1], table_LxD[-1:]])
        x_BxLxD = embed(tokens_BxL) + positions_LxD.astype(self.dtype)[None]
        mask_Bx1xLxL = None
        if config.mask_padding:
            mask_Bx1xLxL = jnp.broadcast_to(real_BxL[:, None, None, :], (len(real_BxL), 1, length, length))
        x_BxLxD = Transformer(config.transformer, self.dtype, name="transformer")(x_BxLxD, mask_Bx1xLxL)
        x_BxLxD = LayerNorm(dtype=self.dtype, name="norm")(x_BxLxD)
        if not self.joint_dim:
            return x_BxLxD[:, -1], x_BxLxD
        features_BxE = Dense(self.joint_dim, use_bias=False, dtype=self.dtype, name="head")(x_BxLxD[:, -1])
        return features_BxE, x_BxLxD
