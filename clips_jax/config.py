"""The typed, frozen form of a config: every setting a run has, and what it means.

`configs/*.py` return an `ml_collections.ConfigDict`, because that is what people override and sweep on the command
line. `config_parse.from_config_dict` turns it into these dataclasses, `config_check` checks them before anything
compiles; from there on nothing in the package sees a dict.
"""

import dataclasses
import typing
from typing import Any, Literal

from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE

Mask = Literal["truncation", "random", "block", "sub_caption"]


class ConfigError(ValueError):
    """A config that cannot run; the message starts with the key."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """One named text of a record, as the pipeline ships it to the devices.

    Attributes:
      length: tokens shipped per text, without special tokens; longer texts are cut, shorter ones padded.
      fallback: the text that stands in when this one is empty ("" = none: an empty text stays empty).
    """

    length: int
    fallback: str = ""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from and how pictures are read.

    Attributes:
      dataset: TFDS name, "name" or "name/config". "emoji" is the built-in one, built on first use.
      data_dir: TFDS folder; "" is `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      texts: the texts of a record by feature name.
      crop_area: smallest and largest share of the picture's area that a random-resized crop keeps.
      crop_ratio: smallest and largest width / height of that crop.
      jitter: strength s of the colour jitter (SimCLR: brightness, contrast, saturation within 0.8 s, hue within
        0.2 s, applied to `jitter_probability` of the pictures); 0 turns it off.
      grayscale_probability: share of the pictures turned grey.
      workers: worker processes that load batches; 0 loads in threads of this process.
      threads: threads per process that load batches.
      prefetch: batches kept ready per thread pool.
      max_bad_fraction: the run stops when more than this share of a batch's records cannot be read.
    """

    dataset: str
    texts: dict[str, TextConfig]
    split: str = "train"
    data_dir: str = ""
    crop_area: tuple[float, float] = (0.4, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    jitter: float = 0.4
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    workers: int = 0
    threads: int = 2
    prefetch: int = 4
    max_bad_fraction: float = 0.1


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Attributes: path: a SentencePiece model; "" takes `tokenizer.model` from the prepared dataset's folder."""

    path: str = ""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a stack of pre-norm blocks.

    Attributes:
      gelu: "tanh" or "exact" (erf); the released CLIPS weights use exact in the image tower, tanh in the text tower.
      remat: what the backward pass recomputes: "none"; "dots", everything but matrix products; "full", all but the
        block's input.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    gelu: Literal["tanh", "exact"] = "tanh"
    remat: Literal["none", "dots", "full"] = "none"


@dataclasses.dataclass(frozen=True)
class ImageTowerConfig:
    """A ViT.

    Attributes:
      image_size, patch_size: pixels.
      class_token: prepend one; it takes part in attention but the mean over patches leaves it out.
      pool: "mean" over the patches (the recipe); "concatenate" reads every patch in its place through the head, which
        learns much faster on few pictures and steps, and ties the head to the resolution.
      positions: "sincos2d" is fixed (MoCo v3 layout) and follows the resolution; "learned" is a parameter.
    """

    transformer: TransformerConfig
    image_size: int
    patch_size: int
    class_token: bool = False
    pool: Literal["mean", "concatenate"] = "mean"
    positions: Literal["sincos2d", "learned"] = "sincos2d"


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """A bidirectional text transformer, pooled at the CLS token in the last position.

    Attributes:
      vocab_size: rows of the token table; at least the tokenizer's size.
      length: rows of the position table, so the longest sequence, special tokens included.
      mask_padding: whether padding is hidden from attention; the released CLIPS weights attend to it (False).
    """

    transformer: TransformerConfig
    vocab_size: int
    length: int = 80
    mask_padding: bool = True


@dataclasses.dataclass(frozen=True)
class CaptionerConfig:
    """The decoder that writes a text from the picture and, if named, a text view.

    Attributes:
      kind: "learnable" predicts every position from learned queries in one pass (the released recipe);
        "teacher_forced" is autoregressive.
      target: name of the text to write.
      target_length: positions predicted, the closing EOS included.
      condition_on: "image" and names of text views.
      every: the captioner trains on every n-th example of a batch; 1 is all of them.
    """

    transformer: TransformerConfig
    kind: Literal["learnable", "teacher_forced"] = "learnable"
    target: str = "recaption"
    target_length: int = 128
    condition_on: tuple[str, ...] = ("image", "alt")
    every: int = 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Attributes: joint_dim: width of the space that pictures and texts share; dtype: of the activations
    (parameters are always float32)."""

    image: ImageTowerConfig
    text: TextTowerConfig
    joint_dim: int
    captioner: CaptionerConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


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


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to zero.

    Attributes:
      warmup_samples: samples seen during warm-up.
      clip_norm: global gradient norm is clipped here; 0 turns clipping off (the recipe has none).
      freeze: regular expressions on parameter paths; what they match is not updated.
      mu_dtype: dtype of the first moment.
    """

    learning_rate: float
    warmup_samples: int
    weight_decay: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 0.0
    mu_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    freeze: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; -1 for one axis means all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def resolve(self, device_count: int) -> dict[str, int]:
        """Sizes by axis name; raises `ConfigError` if they do not multiply to `device_count`."""
        sizes = dataclasses.asdict(self)
        unknown = [axis for axis, size in sizes.items() if size == -1]
        wrong = [axis for axis, size in sizes.items() if size < 1 and size != -1]
        if wrong:
            raise ConfigError(f"mesh.{wrong[0]}: {sizes[wrong[0]]} is not a number of devices; use 1 or more, or -1.")
        known = 1
        for size in sizes.values():
            known *= size if size != -1 else 1
        if len(unknown) > 1:
            raise ConfigError(f"mesh: only one axis can be -1, but {', '.join(unknown)} are.")
        if unknown and device_count % known == 0:
            sizes[unknown[0]] = device_count // known
        elif unknown or known != device_count:
            raise ConfigError(
                f"mesh: {sizes} needs a multiple of {known} devices and there are {device_count}; "
                "change mesh.data, mesh.fsdp or mesh.tensor so that they multiply to it."
            )
        return sizes


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Attributes: every_steps: save interval; keep: the newest n are kept; keep_every_steps: and every step that
    is a multiple of this, for good (0 = none)."""

    every_steps: int
    keep: int = 2
    keep_every_steps: int = 0


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Image-text retrieval on a split.

    Attributes:
      text: feature that holds the query, a string or a list of strings (several captions per picture).
      sentence: index of the one sentence of the text that is used; -1 is the whole text.
      leave_out: boolean feature; records where it is true are left out ("" = none).
      dataset, data_dir: "" takes the training data's.
      headline: shown in the progress line and in the report's plot.
    """

    split: str
    text: str
    sentence: int = -1
    leave_out: str = ""
    dataset: str = ""
    data_dir: str = ""
    headline: bool = False


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """Zero-shot classification on a split.

    Attributes:
      label: a ClassLabel feature; its names are the class names.
      templates: prompts with one "{}"; a class embedding is the mean over them, as in CLIP.
    """

    split: str
    label: str
    templates: tuple[str, ...] = ("{}",)
    leave_out: str = ""
    dataset: str = ""
    data_dir: str = ""


@dataclasses.dataclass(frozen=True)
class CaptionLossConfig:
    """Caption cross-entropy per token on a split."""

    split: str
    dataset: str = ""
    data_dir: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, by name; results are called "retrieval/NAME" and so on.

    Attributes:
      every_steps: interval during training (0 = only at the end).
      batch_size: pictures or texts encoded at once; rounded up to the mesh.
      pixel_baseline: split whose pictures are also looked up among the training pictures by raw pixels ("" = none).
    """

    every_steps: int = 0
    batch_size: int = 256
    retrieval: dict[str, RetrievalConfig] = dataclasses.field(default_factory=dict)
    classification: dict[str, ClassificationConfig] = dataclasses.field(default_factory=dict)
    caption_loss: dict[str, CaptionLossConfig] = dataclasses.field(default_factory=dict)
    pixel_baseline: str = ""


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run is a function of.

    Attributes:
      batch_size: examples per step over all devices.
      total_samples: samples seen by the end; the run has `total_samples // batch_size` steps.
      log_every_steps: interval of the progress line and of the logged metrics.
      init_from: workdir whose newest checkpoint gives the initial parameters (the stages of a recipe); "" = none.
    """

    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    batch_size: int
    total_samples: int
    tokenizer: TokenizerConfig = TokenizerConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log_every_steps: int = 50
    init_from: str = ""
    seed: int = 0

    @property
    def total_steps(self) -> int:
        return self.total_samples // self.batch_size


def to_dict(config: Config) -> dict[str, Any]:
    """The JSON-ready form; `from_config_dict(to_dict(c)) == c`."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
