"""A tiny config and made-up batches, for tests of the model and the step."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clips_jax.batch import Batch, TokenizedText
from clips_jax.config import (
    CaptionerConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    ImageTowerConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PackingConfig,
    TextConfig,
    TextTowerConfig,
    TransformerConfig,
    ViewConfig,
)
from clips_jax.data.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(pad=0, bos=2, eos=3, cls=4)
VOCAB_SIZE = 64


def config(batch_size: int = 8, depth: int = 2, **changes: Any) -> Config:
    """CLIPS in full: two views and a captioner; widths are multiples of 8, so that any mesh of 8 divides them."""
    stack = TransformerConfig(width=32, depth=depth, heads=4, mlp_dim=64)
    base = Config(
        data=DataConfig("none", {"alt_text": TextConfig(8), "recaption": TextConfig(24, fallback="alt_text")}),
        model=ModelConfig(
            image=ImageTowerConfig(stack, image_size=16, patch_size=8),
            text=TextTowerConfig(stack, VOCAB_SIZE, length=16),
            joint_dim=24,
            captioner=CaptionerConfig(stack, kind="teacher_forced", target_length=12),
        ),
        objective=ObjectiveConfig(
            {
                "alt": ViewConfig({"alt_text": 1.0}, length=11),
                "recap": ViewConfig({"recaption": 1.0}, length=16, mask="sub_caption", budget=8),
            }
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_samples=batch_size, mu_dtype="float32"),
        checkpoint=CheckpointConfig(every_steps=2),
        batch_size=batch_size,
        total_samples=10 * batch_size,
    )
    return dataclasses.replace(base, **changes)


def packed(config: Config, **settings: int) -> Config:
    """The same with packed texts."""
    text = dataclasses.replace(config.model.text, packing=PackingConfig(row_length=20, **settings))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))


def batch(config: Config, step: int = 0) -> Batch:
    """Numbers that depend on the step alone."""
    rng = np.random.default_rng(step)
    rows, size = config.batch_size, config.model.image.image_size

    def text(length: int) -> TokenizedText:
        tokens = rng.integers(5, VOCAB_SIZE, (rows, length)).astype(np.int32)
        sentence_ids = np.cumsum(rng.random((rows, length)) < 0.2, axis=1).astype(np.int32)
        sentence_ids -= sentence_ids[:, :1]
        padding = np.arange(length)[None] >= rng.integers(1, length + 1, (rows, 1))
        return TokenizedText(np.where(padding, 0, tokens), np.where(padding, -1, sentence_ids))

    images = rng.integers(0, 256, (rows, size, size, 3)).astype(np.uint8)
    return Batch(images, {name: text(c.length) for name, c in config.data.texts.items()})


def one_device() -> Mesh:
    """The mesh of a run on one device."""
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))


def assert_trees_close(a: Any, b: Any, **tolerance: float) -> None:
    """Leaf by leaf, naming the leaf that differs."""
    leaves_a, leaves_b = (jax.tree_util.tree_leaves_with_path(tree) for tree in (a, b))
    assert len(leaves_a) == len(leaves_b)
    for (path, x), (_, y) in zip(leaves_a, leaves_b, strict=True):
        np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **tolerance)
