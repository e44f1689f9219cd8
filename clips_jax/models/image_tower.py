"""The image tower: a ViT with mean pooling (Dosovitskiy et al. 2021; CLIPS, section 4).

Legend: B batch, N patches, P patch size, D width, E joint width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clips_jax.config import ImageTowerConfig
from clips_jax.models.layers import Dense, LayerNorm, Transformer
from clips_jax.models.token_dropping import select

# ImageNet channel statistics, of values in 0 to 1 (the recipe; torchvision).
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def normalize(images_BxHxWx3: jax.Array) -> jax.Array:
    """float (B, H, W, 3) in 0 to 1 -> zero mean, unit variance per channel."""
    mean_1x1x1x3, std_1x1x1x3 = (jnp.array(x).reshape(1, 1, 1, 3) for x in (IMAGE_MEAN, IMAGE_STD))
    return (images_BxHxWx3 - mean_1x1x1x3) / std_1x1x1x3


def sincos_positions(grid: int, width: int) -> np.ndarray:
    """Fixed 2-D positions, MoCo v3 layout (Chen et al. 2021): [sin x, cos x, sin y, cos y].

    Returns:
      float32 (grid * grid, width), row by row.
    """
    omega = 1.0 / 10_000.0 ** (np.arange(width // 4) / (width // 4 - 1))
    y_N, x_N = (axis.reshape(-1) for axis in np.mgrid[:grid, :grid])
    x_NxW, y_NxW = np.outer(x_N, omega), np.outer(y_N, omega)
    return np.concatenate([np.sin(x_NxW), np.cos(x_NxW), np.sin(y_NxW), np.cos(y_NxW)], axis=1).astype(np.float32)


class ImageTower(nn.Module):
    """ViT: patches -> blocks -> mean over patches -> LayerNorm -> projection (or `pool="concatenate"`).

    Attributes:
      joint_dim: width of the features; 0 leaves out the last norm and the projection, for models that are not
        contrastive: the features are then the mean itself.
    """

    config: ImageTowerConfig
    joint_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images_BxHxWx3: jax.Array, kept_BxK: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Encodes normalised pictures.

        Args:
          images_BxHxWx3: float (B, image_size, image_size, 3), see `normalize`.
          kept_BxK: int (B, K), the patches that are looked at (`token_dropping`); None is all of them.

        Returns:
          features_BxE: in `dtype`, not L2-normalised.
          tokens_BxNxD: the last block's output (class token first, if there is one), before any norm.
        """
        config, width = self.config, self.config.transformer.width
        size, grid = config.patch_size, config.image_size // config.patch_size
        if images_BxHxWx3.shape[1:] != (config.image_size, config.image_size, 3):
            raise ValueError(f"images are {images_BxHxWx3.shape[1:]}, the tower is for {config.image_size} px squares")
        patches_BxNxC = images_BxHxWx3.reshape(-1, grid, size, grid, size, 3).swapaxes(2, 3)
        patches_BxNxC = patches_BxNxC.reshape(-1, grid**2, size * size * 3)
        # A convolution whose stride is its size is one matrix product over flattened patches.
        x_BxNxD = Dense(width, use_bias=False, dtype=self.dtype, name="patches")(patches_BxNxC)
        if config.positions == "sincos2d":
            positions_NxD = jnp.asarray(sincos_positions(grid, width))
            class_position_1xD = jnp.zeros((1, width))
        else:
            shape = (grid**2 + config.class_token, width)
            table = self.param("positions", nn.initializers.normal(width**-0.5), shape)
            class_position_1xD, positions_NxD = table[: config.class_token], table[config.class_token :]
        x_BxNxD = select(x_BxNxD + positions_NxD.astype(self.dtype)[None], kept_BxK)
        if config.class_token:
            token_1xD = self.param("class_token", nn.initializers.zeros, (1, width)) + class_position_1xD
            token_Bx1xD = jnp.broadcast_to(token_1xD.astype(self.dtype)[None], (x_BxNxD.shape[0], 1, width))
            x_BxNxD = jnp.concatenate([token_Bx1xD, x_BxNxD], axis=1)
        x_BxNxD = Transformer(config.transformer, self.dtype, name="transformer")(x_BxNxD)
        pooled_BxD = x_BxNxD[:, int(config.class_token) :]
        if config.pool == "mean":
            pooled_BxD = pooled_BxD.mean(axis=1)
        if not self.joint_dim:
            return pooled_BxD.reshape(len(x_BxNxD), -1), x_BxNxD
        pooled_BxD = LayerNorm(dtype=self.dtype, name="norm")(pooled_BxD).reshape(len(x_BxNxD), -1)
        return Dense(self.joint_dim, use_bias=False, dtype=self.dtype, name="head")(pooled_BxD), x_BxNxD
