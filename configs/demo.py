"""CLIPS on the built-in emoji drawings, on two CPU cores.

    python -m clips_jax.main --config configs/demo.py --workdir runs/demo

Measured on two cores: 4 minutes of training; R@1 by name on unseen drawings 43.4 / 45.3 (image to text / text to image,
mean over seeds 0 to 2), `method=clip` 39.5 / 41.2. `smoke=True`: 31 seconds, chance.

Arguments (after a colon, `configs/demo.py:method=clip,smoke=True`):
  method: clips (default); clip, AltText only; recap_mix, one text per picture: AltText (0.8) or recaption (0.2).
  captioner: False trains without the captioner. clip and recap_mix have none.
  released_format: True builds what the released CLIPS models are, so that other libraries can hold it exactly: a class
    token, the mean over patches, padding attended to, both views equally long.
  smoke: a tiny model and 20 steps, to see everything run.
"""

from ml_collections import ConfigDict

from clips_jax.config.parse import parse_arguments
from configs import common

VOCAB_SIZE = 2048  # rows of the token table; the built-in tokenizer has 2000 pieces


def get_config(arguments: str | None = None) -> ConfigDict:
    """The config; see the module's docstring for the arguments."""
    arg = parse_arguments(arguments, method="clips", captioner=True, released_format=False, smoke=False)
    captioner = {}
    if arg.captioner and arg.method == "clips":
        captioner = dict(kind="teacher_forced", target_length=32, every=8, condition_on=("image", "alt"))
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 32 if arg.smoke else 128
    config.total_samples = config.batch_size * (20 if arg.smoke else 1800)
    config.log_every_steps = 5 if arg.smoke else 50
    config.data = dict(
        dataset="emoji",
        texts=common.texts(16, 128),
        # Drawings fill their pictures and differ in style, not in place: light augmentation measured best.
        crop_area=(0.85, 1.0),
        crop_ratio=(0.9, 1.1111),
        jitter=0.15,
        grayscale_probability=0.05,
        workers=0,  # the step runs on the same cores
        threads=2,
    )
    alt_length, recap_length = (24, 24) if arg.released_format else (14, 24)
    text_length = recap_length if arg.released_format else 48
    config.model = common.model("nano" if arg.smoke else "micro", 32, 8, VOCAB_SIZE, text_length, **captioner)
    config.model.image.pool = "mean" if arg.released_format else "concatenate"
    config.model.image.class_token = arg.released_format
    config.model.text.mask_padding = not arg.released_format
    config.objective = dict(views=common.views(arg.method, alt_length, recap_length), caption_weight=0.25)
    config.optimizer = dict(
        learning_rate=1e-3,
        warmup_samples=config.total_samples // 20,
        weight_decay=0.3,
        mu_dtype="float32",
    )
    config.checkpoint = dict(every_steps=10 if arg.smoke else 300, keep=2)
    config.evaluation = common.emoji_evaluation(every_steps=10 if arg.smoke else 300)
    return common.complete(config)
