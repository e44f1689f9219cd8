"""Colour jitter and normalisation, on the device: there they are fused and free, on the host they cost decode time.

The jitter is SimCLR's (Chen et al. 2020), with the strength and shares the released recipe uses (0.4; jitter on 80 %,
grey on 20 % of the pictures). The order of its four parts is fixed here; SimCLR shuffles it per picture.

Legend: B batch, H/W image height/width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from clips_jax.config import DataConfig
from clips_jax.models.image_tower import normalize

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as SimCLR's rgb_to_grayscale
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # NTSC


def _luma(image_HxWx3: jax.Array) -> jax.Array:
    return jnp.einsum("hwc,c->hw", image_HxWx3, jnp.array(LUMA), precision="highest")[..., None]


def _rotate_hue(image_HxWx3: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates chroma in YIQ: linear, so unlike HSV it has no branches; luma stays."""
    angle = 2 * jnp.pi * turns
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    zero, one = jnp.zeros(()), jnp.ones(())
    rotation_3x3 = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos]).reshape(3, 3)
    to_yiq_3x3, to_rgb_3x3 = jnp.array(RGB_TO_YIQ), jnp.array(np.linalg.inv(RGB_TO_YIQ), jnp.float32)
    matrix_3x3 = jnp.linalg.multi_dot([to_rgb_3x3, rotation_3x3, to_yiq_3x3], precision="highest")
    return jnp.einsum("hwc,dc->hwd", image_HxWx3, matrix_3x3, precision="highest")


def jitter(image_HxWx3: jax.Array, key: jax.Array, config: DataConfig) -> jax.Array:
    """Brightness, contrast, saturation and hue of one picture, float in 0 to 1; sometimes all grey."""
    apply_key, gray_key, factor_key, hue_key = jax.random.split(key, 4)
    strength, hue = 0.8 * config.jitter, 0.2 * config.jitter
    brightness, contrast, saturation = jax.random.uniform(factor_key, (3,), minval=1 - strength, maxval=1 + strength)
    changed = jnp.clip(image_HxWx3 * brightness, 0, 1)
    changed = jnp.clip((changed - _luma(changed).mean()) * contrast + _luma(changed).mean(), 0, 1)
    changed = jnp.clip((changed - _luma(changed)) * saturation + _luma(changed), 0, 1)
    changed = jnp.clip(_rotate_hue(changed, jax.random.uniform(hue_key, (), minval=-hue, maxval=hue)), 0, 1)
    image_HxWx3 = jnp.where(jax.random.bernoulli(apply_key, config.jitter_probability), changed, image_HxWx3)
    gray = jax.random.bernoulli(gray_key, config.grayscale_probability)
    return jnp.where(gray, _luma(image_HxWx3), image_HxWx3)


def prepare_images(images_BxHxWx3: jax.Array, keys_B: jax.Array | None, config: DataConfig) -> jax.Array:
    """uint8 (B, H, W, 3) -> normalised float32, jittered if there are keys (training)."""
    images_BxHxWx3 = images_BxHxWx3.astype(jnp.float32) / 255
    if keys_B is not None and (config.jitter or config.grayscale_probability):
        images_BxHxWx3 = jax.vmap(lambda image, key: jitter(image, key, config))(images_BxHxWx3, keys_B)
    return normalize(images_BxHxWx3)
