"""Image tokens left out during training.

Before the image tower (FLIP, Li et al. 2023; CLIPA, Li et al. 2023), or between the tower and the captioner
(OpenVision 2, Liu et al. 2025).

Each example keeps a random subset of its own, drawn from its key, in the order of the picture; every example keeps as
many, so shapes stay static. Evaluation sees all tokens.

Legend: B batch, N tokens, K tokens kept, D width.
"""

import flax.struct
import jax
import jax.numpy as jnp

from clips_jax.config import ModelConfig

# Folded into an example's key: which patches the tower sees, which tokens the captioner sees.
TOWER_STREAM, CAPTIONER_STREAM = 0, 1


@flax.struct.dataclass
class Kept:
    """Which image tokens stay in a training step; None is all of them.

    Attributes:
      tower: int (B, K), patches that the image tower sees, increasing.
      captioner: int (B, K), tokens among the tower's that the captioner sees, increasing.
    """

    tower: jax.Array | None = None
    captioner: jax.Array | None = None


def count_kept(count: int, share: float) -> int:
    """How many of `count` tokens stay; at least one."""
    return max(round(count * share), 1)


def draw_kept(config: ModelConfig, keys_B: jax.Array) -> Kept:
    """What each example of a training batch keeps: a function of the config and the examples' keys."""
    count = (config.image.image_size // config.image.patch_size) ** 2
    tower = captioner = None
    if config.image.keep_tokens < 1:
        kept = count_kept(count, config.image.keep_tokens)
        tower, count = _draw(keys_B, TOWER_STREAM, count, kept), kept
    if config.captioner and config.captioner.keep_image_tokens < 1:
        count += config.image.class_token
        captioner = _draw(keys_B, CAPTIONER_STREAM, count, count_kept(count, config.captioner.keep_image_tokens))
    return Kept(tower, captioner)


def _draw(keys_B: jax.Array, stream: int, count: int, kept: int) -> jax.Array:
    """`kept` of `count` positions per example, increasing: int (B, kept)."""

    def one(key: jax.Array) -> jax.Array:
        return jnp.sort(jax.random.permutation(jax.random.fold_in(key, stream), count)[:kept])

    return jax.vmap(one)(keys_B)


def select(x_BxNxD: jax.Array, kept_BxK: jax.Array | None) -> jax.Array:
    """The kept tokens, (B, K, D), bit for bit; x itself if `kept_BxK` is None.

    A product with a one-hot matrix: gathers on a sharded batch can turn into all-reduces (docs/decisions.md).
    """
    if kept_BxK is None:
        return x_BxNxD
    choice_BxKxN = (kept_BxK[..., None] == jnp.arange(x_BxNxD.shape[1])[None, None]).astype(x_BxNxD.dtype)
    return jnp.einsum("bkn,bnd->bkd", choice_BxKxN, x_BxNxD, precision=jax.lax.Precision.HIGHEST)
