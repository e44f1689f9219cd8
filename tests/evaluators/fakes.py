"""A data set of plainly coloured pictures and an encoder that knows them, for tests of evaluators and the report."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from clips_jax.config import (
    CaptionerConfig,
    CaptionLossConfig,
    CheckpointConfig,
    ClassificationConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ImageTowerConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RetrievalConfig,
    TextConfig,
    TextTowerConfig,
    TransformerConfig,
    ViewConfig,
)
from clips_jax.evaluators import Load
from clips_jax.preprocessing import Preprocessing

GROUPS = ["round_things", "flat_things", "odd_things"]
# The red value of picture i; `FakeEncoder` reads i back from it.
STEP = 5


def picture(index: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (index * STEP, 90, 160)).save(file, "PNG")
    return file.getvalue()


def record(index: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"record {index}",
        "image": picture(index),
        "alt_text": f"thing {index}",
        "recaption": f"This is thing {index}. It is a picture.",
        "name": f"thing {index}",
        "aliases": [f"thing {index}", f"also thing {index}"],
        "group": index % len(GROUPS),
        "is_flag": index % 4 == 3,
    } | changes


class FakeRecords:
    """Random access to a list of records. Counts the reads, to show that a split is read once."""

    def __init__(self, records: Sequence[dict[str, Any]]):
        self._records = records
        self.pictures_read = 0

    def __len__(self) -> int:
        return len(self._records)

    def read_each(self, indices: Sequence[int], features: Any = None) -> list[dict[str, Any]]:
        self.pictures_read += len(indices)
        return [dict(self._records[index]) for index in indices]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return self.read_each(indices)


def install(monkeypatch: Any, splits: dict[str, Sequence[dict[str, Any]]]) -> dict[str, FakeRecords]:
    """Makes the evaluators see these splits, whatever dataset they open; returns the opened ones."""
    opened: dict[str, FakeRecords] = {}

    def open_records(dataset: str, split: str, data_dir: str = "") -> FakeRecords:
        return opened.setdefault(split, FakeRecords(splits[split]))

    for module in ("split", "pixel_baseline"):
        monkeypatch.setattr(f"clips_jax.evaluators.{module}.Records", open_records)
    monkeypatch.setattr("clips_jax.evaluators.split.class_names_of", lambda dataset, data_dir: {"group": GROUPS})
    return opened


class FakeEncoder:
    """Maps picture i and every text with the number i to the same random direction; `mistaken` pictures to another.

    Prompts without a number (class names) go to the mean of the class's directions.
    """

    image_size = 8
    preprocessing = Preprocessing.of_training(8)

    def __init__(self, count: int, has_captioner: bool = True, mistaken: Sequence[int] = ()):
        self.has_captioner = has_captioner
        self._mistaken = frozenset(mistaken)
        table = np.random.default_rng(0).normal(size=(count, 32))
        self._table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
        self.encoded_pictures = 0

    def images(self, load: Load, count: int) -> np.ndarray:
        self.encoded_pictures += count
        rows = []
        for start in range(0, count, 7):
            pixels = load(range(start, min(start + 7, count)))
            assert pixels.shape[1:] == (8, 8, 3) and pixels.dtype == np.uint8
            for index in np.rint(pixels[..., 0].mean(axis=(1, 2)) / STEP).astype(int):
                moved = (index + 1) % len(self._table) if index in self._mistaken else index
                rows.append(self._table[moved % len(self._table)])
        return np.stack(rows)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._text(text) for text in texts])

    def token_ids(self, texts: Sequence[str]) -> np.ndarray:
        """A token per word, up to 6, then padding; CLS (1) last."""
        rows = np.zeros((len(texts), 7), np.int32)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text.split()[:6])] = 2
        rows[:, -1] = 1
        return rows

    def _text(self, text: str) -> np.ndarray:
        number = re.search(r"thing (\d+)", text)
        if number:
            return self._table[int(number[1]) % len(self._table)]
        for index, group in enumerate(GROUPS):
            if group.replace("_", " ") in text:
                mean = self._table[index :: len(GROUPS)].mean(axis=0)
                return mean / np.linalg.norm(mean)
        return np.eye(32, dtype=np.float32)[0]

    def caption_loss(
        self, load: Load, count: int, alt_texts: Sequence[str], targets: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        assert len(load(range(count))) == len(alt_texts) == len(targets) == count
        words = np.asarray([len(text.split()) for text in targets])
        return 0.5 * words, words

    def captions(self, load: Load, count: int, alt_texts: Sequence[str], decoding: Any = None) -> list[str]:
        assert len(load(range(count))) == count
        return [f"A picture of {text}." for text in alt_texts]


def make_config(captioner: bool = True, **evaluation: Any) -> Config:
    """A small config that evaluates the splits "test" and "train"."""
    tower = TransformerConfig(width=8, depth=1, heads=1, mlp_dim=16)
    return Config(
        data=DataConfig(dataset="fake", texts={"alt_text": TextConfig(16), "recaption": TextConfig(64, "alt_text")}),
        model=ModelConfig(
            image=ImageTowerConfig(tower, image_size=8, patch_size=4),
            text=TextTowerConfig(tower, vocab_size=100),
            joint_dim=32,
            captioner=CaptionerConfig(tower) if captioner else None,
        ),
        objective=ObjectiveConfig(views={"alt": ViewConfig({"alt_text": 1.0}, length=16)}),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_samples=1),
        checkpoint=CheckpointConfig(every_steps=10),
        batch_size=4,
        total_samples=40,
        evaluation=EvaluationConfig(
            **{
                "retrieval": {
                    "names": RetrievalConfig(split="test", text="name", headline=True),
                    "no_flags": RetrievalConfig(split="test", text="aliases", leave_out="is_flag"),
                },
                "classification": {"group": ClassificationConfig("test", "group", templates=("{}", "some {}"))},
                "caption_loss": {"test": CaptionLossConfig("test")},
                "pixel_baseline": "test",
            }
            | evaluation
        ),
    )
