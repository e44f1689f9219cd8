"""Settings of the objective: what the text tower sees, and the losses."""

import dataclasses
from typing import Literal

from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE

Mask = Literal["truncation", "random", "block", "sub_caption"]


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """One text input of the text tower.

    Attributes:
      sources: probability by text name; each example draws one.
      mask: how the text is reduced to the budget.
      length: sequence length, BOS, EOS and CLS included.
      budget: tokens kept; 0 is as many as fit, `length - 3`.
      sentences: for "sub_caption": the number of random sentences that may be used (the recipe: 1); 0 is as many as
        the budget holds.
      weight: share of this view in the contrastive loss, relative to the other views.
    """

    sources: dict[str, float]
    length: int
    mask: Mask = "truncation"
    budget: int = 0
    sentences: int = 1
    weight: float = 1.0

    @property
    def tokens_kept(self) -> int:
        return self.budget or self.length - SPECIALS_PER_SEQUENCE


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """loss = contrastive_weight * weighted mean over views + caption_weight * caption loss.

    Attributes:
      views: the text tower's inputs by name; the name appears in the metrics.
      contrastive: "softmax" (InfoNCE both ways), "sigmoid" (SigLIP) or "none".
      scale_init: initial logit scale (1 / temperature): 1 / 0.07 for softmax, 10 for sigmoid.
      bias_init: initial logit bias, sigmoid only (SigLIP: -10).
      scale_max: the scale is clamped here after every update (CLIP: 100).
    """

    views: dict[str, ViewConfig]
    contrastive: Literal["softmax", "sigmoid", "none"] = "softmax"
    contrastive_weight: float = 1.0
    caption_weight: float = 2.0
    scale_init: float = 1 / 0.07
    bias_init: float = -10.0
    scale_max: float = 100.0
