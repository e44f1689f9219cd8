"""The full-size recipe: what `clips_s16`, `clips_b16`, `clips_l14`, `clips_so400m14` and `clips_h14` have in common.

Numbers without a comment are from the paper and the released configs (docs/method.md); "assumption" marks the rest.
"""

import dataclasses

from ml_collections import ConfigDict

from clips_jax.config import ConfigError
from clips_jax.config.parse import parse_arguments
from configs import common


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: resolution in pixels, batch size, samples seen, peak learning rate, samples of warm-up."""

    image_size: int
    batch_size: int
    total_samples: int
    learning_rate: float
    warmup_samples: int


# The study of S, B and L at patch 16: pre-training and a short fine-tuning.
STUDY = (
    Stage(112, 32_768, 2_560_000_000, 1.024e-3, 25_600_000),
    Stage(224, 16_384, 128_000_000, 2.56e-5, 2_560_000),  # assumption: the whole row
)
# The full recipe.
FULL = (
    Stage(84, 32_768, 12_800_000_000, 1.024e-3, 51_000_000),
    Stage(224, 16_384, 1_020_000_000, 2.56e-5, 26_000_000),
    Stage(336, 8_192, 256_000_000, 3.2e-6, 0),
)


def get_config(size: str, patch_size: int, stages: tuple[Stage, ...], arguments: str | None) -> ConfigDict:
    """What the `get_config` of a full-size config returns: arguments stage, released_format, smoke."""
    arg = parse_arguments(arguments, stage=1, smoke=False, released_format=False)
    config = full_size(size, patch_size, stages, arg.stage, arg.released_format)
    return smoke(config) if arg.smoke else config


def full_size(size: str, patch_size: int, stages: tuple[Stage, ...], stage: int, released_format: bool) -> ConfigDict:
    """A stage of the recipe at full size; the data set is the user's.

    Args:
      size: row of `sizes.SIZES`.
      patch_size: pixels.
      stages: the recipe's.
      stage: 1 to len(stages).
      released_format: build exactly what the released CLIPS weights are: a class token, padding attended to, both
        views 80 tokens long. Without it padding is masked, so views can be as short as their content.
    """
    if not 1 <= stage <= len(stages):
        raise ConfigError(f"config argument stage={stage}: the recipe has stages 1 to {len(stages)}.")
    settings = stages[stage - 1]
    config = ConfigDict()
    config.seed = 0
    config.batch_size = settings.batch_size
    config.total_samples = settings.total_samples
    config.log_every_steps = 50
    # A stage hands over parameters only. The name makes a forgotten --config.init_from an error that says so.
    config.init_from = "" if stage == 1 else f"WORKDIR_OF_STAGE_{stage - 1}"
    # A TFDS data set of triples (features image, alt_text, recaption), and its 32,000-piece tokenizer.
    config.data = dict(dataset="recap_datacomp", texts=common.texts(77, 128))
    config.model = common.model(
        size,
        settings.image_size,
        patch_size,
        vocab_size=32_000,
        text_length=80,
        remat="dots",  # assumption: the fastest policy where it fits
        attention="fused",  # at every length of every stage, by the compiler's cycles (docs/step.md)
        kind="learnable",
        target_length=128,
        condition_on=("image", "alt"),
        # AltTexts average 15 tokens; the captioner sees the first 31 and CLS (assumption; released recipe: all 80).
        condition_length=0 if released_format else 32,
    )
    config.model.dtype = "bfloat16"
    config.model.image.class_token = released_format
    config.model.text.mask_padding = not released_format
    if not released_format:
        # An AltText and a sentence are 43 tokens with their special ones (assumption); 48 hold 99.9 % (docs/step.md).
        config.model.text.packing = dict(tokens_per_example=48, group=32, row_length=128)
    # Budget 32 of one random sentence. 40 = 32 tokens and 3 special ones, rounded up to a multiple of 8.
    config.objective = dict(views=common.views("clips", alt_length=80, recap_length=80 if released_format else 40))
    config.objective.views.recap.budget = 32
    config.objective.caption_weight = 2.0
    config.optimizer = dict(learning_rate=settings.learning_rate, warmup_samples=settings.warmup_samples)
    config.checkpoint = dict(every_steps=1000, keep=3, keep_every_steps=10_000)  # assumption
    # Parameters over 16 chips, whole copies of that over the rest: on a torus of 16 x 16 each axis is a ring, and on
    # v5e gathers over one axis of 256 turn into all-reduces (docs/scale.md).
    config.mesh = dict(data=-1, fsdp=16)
    return common.complete(config)


def smoke(config: ConfigDict) -> ConfigDict:
    """The same stage of the same recipe at a tiny size on the built-in data: a minute on two cores, not a result."""
    tiny = common.model("nano", 1, 1, 1, 1, kind="learnable")
    for stack, shape in ((config.model[name], tiny[name]) for name in ("image", "text", "captioner")):
        for key in ("width", "depth", "heads", "mlp_dim"):
            stack.transformer[key] = shape.transformer[key]
    config.model.joint_dim = tiny.joint_dim
    config.model.text.vocab_size = 2048
    config.model.image.image_size = 3 * config.model.image.patch_size
    config.batch_size = 32
    config.total_samples = 20 * config.batch_size
    config.log_every_steps = 5
    config.init_from = ""
    config.data.dataset = "emoji"
    config.data.workers = 0
    config.mesh.fsdp = 1
    if config.model.text.packing:
        config.model.text.packing.group = 16
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_samples = 5 * config.batch_size
    config.checkpoint.every_steps = 10
    config.evaluation = common.emoji_evaluation(every_steps=0)
    return common.complete(config)
