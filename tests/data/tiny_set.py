"""A small data set whose pictures tell which record they are, and what the loader makes of it."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from clips_jax import config as config_module
from clips_jax.config import Config, DataConfig, TextConfig, TokenizerConfig
from clips_jax.data.pipeline import train_batches
from clips_jax.data.tokenizer import train_sentencepiece

COUNT, BATCH, SIZE = 37, 10, 12
TEXTS = {"alt_text": TextConfig(6), "recaption": TextConfig(40, fallback="alt_text")}


class Tiny(tfds.core.GeneratorBasedBuilder):
    """37 pictures, each of one grey, PNG and JPEG; in the configuration "damaged" every fourth is no picture."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="whole"), tfds.core.BuilderConfig(name="damaged")]
    pkg_dir_path = None  # below: a folder for the metadata that TFDS looks for

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(None, None, 3)),
                "alt_text": tfds.features.Text(),
                "recaption": tfds.features.Text(),
                "aliases": tfds.features.Sequence(tfds.features.Text()),
                "group": tfds.features.ClassLabel(names=["even", "odd"]),
                "is_flag": tfds.features.Scalar(dtype=np.bool_),
            }
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            assert self.builder_config is not None
            damaged = self.builder_config.name == "damaged" and i % 4 == 0
            yield (
                i,
                {
                    "id": str(i),
                    "image": io.BytesIO(b"\x89PNG no picture" if damaged else picture(i)),
                    "alt_text": f"picture {i}",
                    "recaption": "" if i % 5 == 0 else f"A grey picture. It has number {i}. é",
                    "aliases": ["grau", "grå"],
                    "group": i % 2,
                    "is_flag": i % 2 == 0,
                },
            )


def picture(i):
    buffer = io.BytesIO()
    image = Image.new("RGB", (20 + i, 40 - i), (5 * i, 5 * i, 5 * i))
    image.save(buffer, "PNG" if i % 2 else "JPEG", **({} if i % 2 else {"quality": 100}))
    return buffer.getvalue()


def build(folder):
    """Writes both configurations and a tokenizer; returns the folder's name."""
    Tiny.pkg_dir_path = folder
    for name in ("whole", "damaged"):
        builder = Tiny(data_dir=folder, config=name, file_format="array_record")
        builder.download_and_prepare()
    texts = [text for i in range(COUNT) for text in (f"picture {i}", f"A grey picture. It has number {i}. é")]
    train_sentencepiece(texts, str(folder / "tokenizer.model"), 80)
    return str(folder)


def make_config(folder, dataset="tiny/whole", seed=0, batch_size=BATCH, **data):
    data = {"workers": 0} | data
    tower = config_module.TransformerConfig(width=8, depth=1, heads=1, mlp_dim=8)
    return Config(
        data=DataConfig(dataset, TEXTS, data_dir=folder, **data),
        model=config_module.ModelConfig(
            image=config_module.ImageTowerConfig(tower, image_size=SIZE, patch_size=4),
            text=config_module.TextTowerConfig(tower, vocab_size=80),
            joint_dim=8,
        ),
        objective=config_module.ObjectiveConfig(views={}),
        optimizer=config_module.OptimizerConfig(learning_rate=0.0, warmup_samples=0),
        checkpoint=config_module.CheckpointConfig(every_steps=1),
        batch_size=batch_size,
        total_samples=1000,
        tokenizer=TokenizerConfig(f"{folder}/tokenizer.model"),
        seed=seed,
    )


def leaves(batch):
    texts = [array for _, text in sorted(batch.texts.items()) for array in (text.tokens, text.sentence_ids)]
    return [batch.images, *texts]


def load(config, rows=None, start=0, stop=3):
    rows = np.arange(config.batch_size) if rows is None else rows
    return [(leaves(batch), stats) for batch, stats in train_batches(config, rows, start, stop)]


def assert_same(one, other):
    assert len(one) == len(other)
    for (arrays, stats), (other_arrays, other_stats) in zip(one, other, strict=True):
        assert stats == other_stats
        for array, other_array in zip(arrays, other_arrays, strict=True):
            assert array.dtype == other_array.dtype
            np.testing.assert_array_equal(array, other_array)


def record_numbers(images):
    """Which record each picture is, from its grey value."""
    return [round(float(image.mean()) / 5) for image in images]
