"""What configs share: the model of a size, and the views and captioner of each method."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from clips_jax.config import ConfigError
from clips_jax.config.parse import from_config_dict
from clips_jax.models.sizes import SIZES


def complete(config: ConfigDict) -> ConfigDict:
    """Checks a config and fills in every default, so that any key can be overridden on the command line."""
    return ConfigDict(dataclasses.asdict(from_config_dict(config)), convert_dict=True)


def model(
    size: str,
    image_size: int,
    patch_size: int,
    vocab_size: int,
    text_length: int,
    remat: str = "none",
    attention: str = "plain",
    **captioner: Any,
) -> ConfigDict:
    """The model of a row of `sizes.SIZES`; keyword arguments beyond are the captioner's (none: no captioner)."""
    shapes = SIZES[size]

    def stack(shape: Any) -> dict[str, Any]:
        return dataclasses.asdict(shape) | {"remat": remat, "attention": attention}

    config = ConfigDict()
    config.image = dict(transformer=stack(shapes.image), image_size=image_size, patch_size=patch_size)
    config.text = dict(transformer=stack(shapes.text), vocab_size=vocab_size, length=text_length)
    config.joint_dim = shapes.joint_dim
    if captioner:
        config.captioner = dict(transformer=stack(shapes.decoder), **captioner)
    return config


def views(method: str, alt_length: int, recap_length: int) -> ConfigDict:
    """Text views of a method, as the family of methods (docs/decisions.md) defines them.

    "clips": AltText, and one random sentence of the recaption. "clip": AltText. "recap_mix": one text, the AltText with
    probability 0.8, else the recaption. Lengths include the three special tokens.
    """
    alt = dict(sources={"alt_text": 1.0}, mask="truncation", length=alt_length)
    if method == "clips":
        recap = dict(sources={"recaption": 1.0}, mask="sub_caption", length=recap_length)
        return ConfigDict(dict(alt=alt, recap=recap))
    if method == "clip":
        return ConfigDict(dict(alt=alt))
    if method == "recap_mix":
        sources = {"alt_text": 0.8, "recaption": 0.2}
        return ConfigDict(dict(mix=dict(sources=sources, mask="truncation", length=max(alt_length, recap_length))))
    raise ConfigError(f"config argument method={method}: not one of clips, clip, recap_mix.")


def texts(alt_length: int, recap_length: int) -> ConfigDict:
    """The two texts of a triple, in tokens shipped; an empty recaption falls back to the AltText."""
    return ConfigDict(dict(alt_text=dict(length=alt_length), recaption=dict(length=recap_length, fallback="alt_text")))


def emoji_evaluation(every_steps: int) -> ConfigDict:
    """The evaluators of the built-in data.

    The headline is retrieval by name: recaptions hold measured colours of the very picture, which flatters. Flags
    flatter too, so there is a row without them.
    """
    config = ConfigDict(dict(every_steps=every_steps, batch_size=256, pixel_baseline="unseen_drawings"))
    config.retrieval = dict(
        unseen_drawings=dict(split="unseen_drawings", text="name", headline=True),
        unseen_drawings_without_flags=dict(split="unseen_drawings", text="name", leave_out="is_flag"),
        unseen_drawings_first_sentence=dict(split="unseen_drawings", text="recaption", sentence=0),
        unseen_concepts=dict(split="unseen_concepts", text="name"),
    )
    config.classification = dict(
        unseen_drawings_group=dict(
            split="unseen_drawings", label="group", templates=("{}", "an emoji of {}", "a picture of {}")
        ),
    )
    config.caption_loss = dict(unseen_drawings=dict(split="unseen_drawings"))
    return config
