"""The decoder that writes the whole recaption from the picture and the AltText (CLIPS, section 3.3).

Legend: B batch, P prefix length, T target positions, D decoder width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clips_jax.config import CaptionerConfig
from clips_jax.masks import combination_mask
from clips_jax.models.layers import Dense, LayerNorm, Transformer


class Captioner(nn.Module):
    """One transformer over [ image tokens | text tokens | target queries ] under the combination mask."""

    config: CaptionerConfig
    vocab_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, prefix: dict[str, tuple[jax.Array, jax.Array]], targets_BxT: jax.Array, bos: int
    ) -> tuple[jax.Array, jax.Array]:
        """Hidden states of the target positions.

        Args:
          prefix: by name, in order: tokens (B, N, any width) and bool (B, N), False on padding.
          targets_BxT: int (B, T). "learnable" reads nothing but its shape; "teacher_forced" reads it shifted by one.
          bos: the token before the first target.

        Returns:
          hidden_BxTxD, in `dtype`; head_DxV, float32. Their product is the logits; the loss takes it, so that no
          (B, T, V) array need exist here.
        """
        config, width = self.config, self.config.transformer.width
        length = targets_BxT.shape[1]
        # Learned queries: the released recipe. The same table serves as positions when tokens are fed.
        queries_TxD = self.param("queries", nn.initializers.normal(0.02), (config.target_length, width))[:length]
        x_BxTxD = jnp.broadcast_to(queries_TxD.astype(self.dtype)[None], (len(targets_BxT), length, width))
        if config.kind == "teacher_forced":
            shifted_BxT = jnp.pad(targets_BxT, ((0, 0), (1, 0)), constant_values=bos)[:, :-1]
            embed = nn.Embed(
                self.vocab_size, width, dtype=self.dtype, embedding_init=nn.initializers.normal(0.02), name="tokens"
            )
            x_BxTxD = x_BxTxD + embed(shifted_BxT)
        projected = [
            Dense(width, use_bias=False, dtype=self.dtype, name=f"project_{name}")(tokens)
            for name, (tokens, _) in prefix.items()
        ]
        real_BxP = jnp.concatenate([real for _, real in prefix.values()], axis=1)
        x_BxLxD = jnp.concatenate([*projected, x_BxTxD], axis=1)
        mask_Bx1xLxL = combination_mask(real_BxP, length)
        x_BxLxD = Transformer(config.transformer, self.dtype, name="transformer")(x_BxLxD, mask_Bx1xLxL)
        hidden_BxTxD = LayerNorm(dtype=self.dtype, name="norm")(x_BxLxD[:, -length:])
        head_DxV = self.param("head", nn.initializers.xavier_uniform(), (width, self.vocab_size))
        return hidden_BxTxD, head_DxV
