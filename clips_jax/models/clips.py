"""CLIPS: the two towers, the captioner and the temperature.

Legend: B batch, E joint width, T target positions, D decoder width, V vocabulary.
"""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from clips_jax.config import ModelConfig, ObjectiveConfig
from clips_jax.models.captioner import Captioner, Prefix, Written
from clips_jax.models.cross_attention import CrossAttentionCaptioner
from clips_jax.models.image_tower import ImageTower
from clips_jax.models.text_tower import TextTower
from clips_jax.models.token_dropping import Kept, select
from clips_jax.packing import Packed, View, take, token_places

Views = dict[str, View]


@flax.struct.dataclass
class Outputs:
    """What the losses read.

    Attributes:
      image_BxE: float32, L2-normalised.
      texts_BxVxE: float32, L2-normalised; views in the order of the objective's.
      scale, bias: float32 () of the logits: scale * cosine + bias.
      caption: hidden (C, T, D) and head (D, V) of the captioner, C = B / `captioner.every`; None without captioner.
    """

    image_BxE: jax.Array
    texts_BxVxE: jax.Array
    scale: jax.Array
    bias: jax.Array
    caption: tuple[jax.Array, jax.Array] | None


def l2_normalize(x_BxE: jax.Array) -> jax.Array:
    """Unit rows in float32; a zero row stays zero and has a finite gradient."""
    x_BxE = x_BxE.astype(jnp.float32)
    return x_BxE * jax.lax.rsqrt(jnp.maximum((x_BxE**2).sum(axis=-1, keepdims=True), 1e-12))


def every_nth(tree: Any, every: int) -> Any:
    """Rows 0, n, 2n, … of every array: as a reshape, so that each part of a sharded batch stays where it is."""
    return jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:])[:, 0], tree)


class Clips(nn.Module):
    """The model of any member of the family; `ModelConfig` and `ObjectiveConfig` say which.

    The objective is read for the names of the views and the initial temperature only.
    """

    config: ModelConfig
    objective: ObjectiveConfig
    bos: int

    def setup(self) -> None:
        """Declares the parts: `image`, `text` (if there are views), `captioner` (if there is one).

        Without a contrastive loss nothing leads into the joint space: the towers then have no head.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        contrastive = self.objective.contrastive != "none"
        self.image = ImageTower(config.image, config.joint_dim if contrastive else 0, dtype)
        if self.objective.views:
            self.text = TextTower(config.text, config.joint_dim if contrastive else 0, dtype)
        if config.captioner:
            cross = config.captioner.kind == "cross_attention"
            kind = CrossAttentionCaptioner if cross else Captioner
            self.captioner = kind(config.captioner, config.text.vocab_size, dtype)
        if self.objective.contrastive != "none":
            log_scale = nn.initializers.constant(math.log(self.objective.scale_init))
            self.logit_scale = self.param("logit_scale", log_scale, ())
        if self.objective.contrastive == "sigmoid":
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(self.objective.bias_init), ())

    def encode_image(self, images_BxHxWx3: jax.Array) -> jax.Array:
        """Normalised pictures -> float32 (B, E), L2-normalised."""
        return l2_normalize(self.image(images_BxHxWx3)[0])

    def encode_text(self, view: View) -> jax.Array:
        """Framed tokens -> float32 (B, E), L2-normalised."""
        return l2_normalize(self.text(*view)[0])

    def encode_tokens(self, images_BxHxWx3: jax.Array, views: Views) -> dict[str, jax.Array]:
        """What the captioner is conditioned on: token outputs (B, N, D) by name, "image" and the views'."""
        return {"image": self.image(images_BxHxWx3)[1]} | {name: self.text(*view)[1] for name, view in views.items()}

    def decode(self, tokens: dict[str, jax.Array], views: Views, targets_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The captioner on `encode_tokens`' result: hidden_BxTxD and head_DxV."""
        return self.captioner(self._prefix(tokens, views), targets_BxT, self.bos)

    def start_caption(self, tokens: dict[str, jax.Array], views: Views) -> Written:
        """Begins to write captions from `encode_tokens`' result; see `Captioner.start`."""
        return self.captioner.start(self._prefix(tokens, views))

    def next_token(self, written: Written, tokens_B: jax.Array, position: jax.Array) -> tuple[jax.Array, Written]:
        """Logits of the next target; see `Captioner.next`."""
        return self.captioner.next(written, tokens_B, position)

    def _prefix(self, tokens: dict[str, jax.Array], views: Views) -> Prefix:
        assert self.config.captioner
        length, prefix = self.config.captioner.condition_length, {}
        for name in self.config.captioner.condition_on:
            real = jnp.ones(tokens[name].shape[:2], bool) if name == "image" else views[name][1]
            prefix[name] = (tokens[name], real)
            if name != "image" and 0 < length < real.shape[1]:  # the first tokens, and CLS
                prefix[name] = jax.tree.map(lambda x: jnp.concatenate([x[:, : length - 1], x[:, -1:]], 1), prefix[name])
        return prefix

    def _packed_prefix(self, image_BxNxD: jax.Array, tokens_GxFxD: jax.Array, packed: Packed) -> Prefix:
        """`_prefix` of every `captioner.every`-th example, tokens fetched from packed rows."""
        captioner, views = self.config.captioner, self.objective.views
        assert captioner
        chosen = image_BxNxD, packed.starts_BxV, packed.lengths_BxV
        image_BxNxD, starts_BxV, lengths_BxV = every_nth(chosen, captioner.every)
        prefix = {}
        for name in captioner.condition_on:
            if name == "image":
                prefix[name] = image_BxNxD, jnp.ones(image_BxNxD.shape[:2], bool)
            else:
                length = min(captioner.condition_length or views[name].length, views[name].length)
                view = list(views).index(name)
                places_BxC, real_BxC = token_places(starts_BxV[:, view], lengths_BxV[:, view], length)
                prefix[name] = take(tokens_GxFxD, places_BxC), real_BxC
        return prefix

    def __call__(
        self,
        images_BxHxWx3: jax.Array,
        texts: Views | Packed,
        targets_BxT: jax.Array | None,
        kept: Kept = Kept(),  # noqa: B008 (frozen)
    ) -> Outputs:
        """The training pass.

        Args:
          images_BxHxWx3: float32 (B, H, W, 3), normalised.
          texts: framed tokens by view, or all views packed.
          targets_BxT: int (B, T), the captioner's targets; None without captioner, or where only the embeddings matter.
          kept: the image tokens that this step keeps.
        """
        features_BxE, tokens_BxNxD = self.image(images_BxHxWx3, kept.tower)
        tokens_BxNxD = select(tokens_BxNxD, kept.captioner)
        captions = self.config.captioner is not None and targets_BxT is not None
        every = self.config.captioner.every if self.config.captioner else 1
        prefix: Prefix = {}
        if isinstance(texts, Packed):
            texts_BxVxE, tokens_GxFxD = self.text.packed(texts)
            if captions:
                prefix = self._packed_prefix(tokens_BxNxD, tokens_GxFxD, texts)
        else:
            encoded = {name: self.text(*view) for name, view in texts.items()}
            empty = jnp.zeros((len(features_BxE), 0, features_BxE.shape[-1]))
            texts_BxVxE = jnp.stack([features for features, _ in encoded.values()], axis=1) if encoded else empty
            if captions:
                tokens = {"image": tokens_BxNxD} | {name: tokens for name, (_, tokens) in encoded.items()}
                prefix = self._prefix(every_nth(tokens, every), every_nth(texts, every))
        caption = self.captioner(prefix, every_nth(targets_BxT, every), self.bos) if captions else None
        scale, bias = self.scale_and_bias()
        return Outputs(l2_normalize(features_BxE), l2_normalize(texts_BxVxE), scale, bias, caption)

    def scale_and_bias(self) -> tuple[jax.Array, jax.Array]:
        """Of the logits: float32 (), 1 and 0 where the objective has none."""
        has_scale, has_bias = self.objective.contrastive != "none", self.objective.contrastive == "sigmoid"
        scale = jnp.exp(self.logit_scale) if has_scale else jnp.ones(())
        return scale, self.logit_bias if has_bias else jnp.zeros(())
