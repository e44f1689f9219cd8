"""Settings of the model: the shape of the towers and of the captioner."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a stack of pre-norm blocks.

    Attributes:
      gelu: "tanh" or "exact" (erf); the released CLIPS weights use exact in the image tower, tanh in the text tower.
      remat: what the backward pass recomputes: "none"; "dots", everything but matrix products; "full", all but the
        block's input.
      attention: in a training step on TPUs, "fused" is a kernel of our own that keeps no logits
        (`models.fused_attention`), "plain" is left to the compiler. Everywhere else both are `layers.attend`.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    gelu: Literal["tanh", "exact"] = "tanh"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["plain", "fused"] = "plain"


@dataclasses.dataclass(frozen=True)
class ImageTowerConfig:
    """A ViT.

    Attributes:
      image_size, patch_size: pixels.
      class_token: prepend one; it takes part in attention but the mean over patches leaves it out.
      pool: "mean" over the patches (the recipe); "concatenate" reads every patch in its place through the head, which
        learns much faster on few pictures and steps, and ties the head to the resolution.
      positions: "sincos2d" is fixed (MoCo v3 layout) and follows the resolution; "learned" is a parameter.
      keep_tokens: share of the patches that a training example keeps, drawn anew each time (FLIP, CLIPA); 1 is all.
        Kept patches keep their positions; evaluation sees every patch.
    """

    transformer: TransformerConfig
    image_size: int
    patch_size: int
    class_token: bool = False
    pool: Literal["mean", "concatenate"] = "mean"
    positions: Literal["sincos2d", "learned"] = "sincos2d"
    keep_tokens: float = 1.0


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """Texts of several examples in one row of the text tower, in training; the features are the same.

    A group of consecutive examples shares `group * tokens_per_example / row_length` rows. If their texts need more than
    that, the longest are cut to the greatest common length that fits: metric "text/cut". "text/fill" is the share of
    the rows that holds tokens; set `tokens_per_example` so that the first stays near 0 and the second near 1.

    Attributes:
      tokens_per_example: room for all views of an example together, special tokens included.
      group: examples; larger groups vary less in length. Must divide the examples of a device.
      row_length: tokens of a row, at least the longest view.
    """

    tokens_per_example: int
    group: int = 64
    row_length: int = 128


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """A bidirectional text transformer, pooled at the CLS token in the last position.

    Attributes:
      vocab_size: rows of the token table; at least the tokenizer's size.
      length: rows of the position table, so the longest sequence, special tokens included.
      mask_padding: whether padding is hidden from attention; the released CLIPS weights attend to it (False).
      packing: how views are packed in training; None gives each text a row of its own.
    """

    transformer: TransformerConfig
    vocab_size: int
    length: int = 80
    mask_padding: bool = True
    packing: PackingConfig | None = None


@dataclasses.dataclass(frozen=True)
class CaptionerConfig:
    """The decoder that writes a text from the picture and, if named, a text view.

    Attributes:
      kind: "learnable" predicts every position from learned queries in one pass (the released recipe);
        "teacher_forced" is autoregressive; "cross_attention" is too, but reads picture and text through
        cross-attention instead of as a prefix (CoCa).
      target: name of the text to write.
      target_length: positions predicted, the closing EOS included.
      condition_on: "image" and names of text views.
      condition_length: tokens of a text view that the captioner sees: the first ones and CLS. 0 is all of them.
      every: the captioner trains on every n-th example of a batch; 1 is all of them.
      keep_image_tokens: share of the image tower's tokens that the captioner is given in training, drawn anew for each
        example (OpenVision 2: 0.25 to 0.35); 1 is all.
    """

    transformer: TransformerConfig
    kind: Literal["learnable", "teacher_forced", "cross_attention"] = "learnable"
    target: str = "recaption"
    target_length: int = 128
    condition_on: tuple[str, ...] = ("image", "alt")
    condition_length: int = 0
    every: int = 1
    keep_image_tokens: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Attributes: joint_dim: width of the space that pictures and texts share; dtype: of the activations
    (parameters are always float32)."""

    image: ImageTowerConfig
    text: TextTowerConfig
    joint_dim: int
    captioner: CaptionerConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
