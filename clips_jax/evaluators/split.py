"""A split as evaluators see it: pictures decoded on demand and embedded once, everything else in memory."""

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from clips_jax.config import Config, ConfigError
from clips_jax.data.examples import BadRecord
from clips_jax.data.images import BadImage
from clips_jax.data.tar_records import is_tars
from clips_jax.data.triples import Records, open_builder
from clips_jax.evaluators import Encoder, Load

# Records read at once while their texts are collected.
_READ = 256
# What stands in for a picture that cannot be read.
_GREY = 128
# Decoded pictures are kept if a split's take no more bytes than this: several evaluators and evaluations use them.
_KEPT_PIXELS = 1 << 28


class RecordSource(Protocol):
    """Random access to records: dicts with "image" as encoded bytes."""

    def __len__(self) -> int: ...

    def read_each(
        self, indices: Sequence[int], features: Collection[str] | None = None
    ) -> Sequence[dict[str, Any] | BadRecord]:
        """The records at these positions, with these features at least; an error in place of one that is damaged."""
        ...


class Split:
    """One split of a dataset, under one encoder.

    Attributes:
      features: the records in order, without their pictures. Records whose bytes are damaged are left out.
      damaged: how many are.
    """

    def __init__(self, records: RecordSource, encoder: Encoder, class_names: dict[str, list[str]] | None = None):
        """Reads all records once; `class_names` holds the names of each ClassLabel feature."""
        self._records = records
        self._encoder = encoder
        self._class_names = class_names or {}
        self._embeddings: np.ndarray | None = None
        self._pixels: dict[int, np.ndarray] = {}
        self.features: list[dict[str, Any]] = []
        self._positions: list[int] = []  # of the features' records
        wanted = [name for name in getattr(records, "features", ()) if name != "image"] or None
        for start in range(0, len(records), _READ):
            positions = range(start, min(start + _READ, len(records)))
            for position, record in zip(positions, records.read_each(positions, wanted), strict=True):
                if not isinstance(record, BadRecord):
                    self.features.append({name: value for name, value in record.items() if name != "image"})
                    self._positions.append(position)
        self.damaged = len(records) - len(self.features)
        self._unreadable = np.zeros(len(self), bool)
        size = encoder.image_size
        self._keep_pixels = len(self) * size * size * 3 <= _KEPT_PIXELS

    def __len__(self) -> int:
        return len(self.features)

    def column(self, feature: str) -> list[Any]:
        """One feature of all records; raises `ConfigError` if they do not have it."""
        if self.features and feature not in self.features[0]:
            raise ConfigError(f"evaluation: records have no feature {feature!r}; they have {sorted(self.features[0])}.")
        return [record[feature] for record in self.features]

    def kept(self, leave_out: str) -> np.ndarray:
        """int64 (n,): positions of the records whose boolean feature `leave_out` is not true ("" keeps all)."""
        if not leave_out:
            return np.arange(len(self))
        return np.flatnonzero(~np.asarray(self.column(leave_out), bool))

    def has_class_names(self, feature: str) -> bool:
        """Whether it is a ClassLabel feature."""
        return feature in self._class_names

    def class_names(self, feature: str) -> list[str]:
        """Names of a ClassLabel feature; raises `ConfigError` if it is none."""
        if feature not in self._class_names:
            raise ConfigError(
                f"evaluation: {feature!r} is not a ClassLabel feature; the dataset has {sorted(self._class_names)}."
            )
        return self._class_names[feature]

    def encoded_image(self, position: int) -> bytes:
        """The picture as it is stored."""
        return self._images([position])[0]

    def _images(self, positions: Sequence[int]) -> list[bytes]:
        """Picture files; b"", which is no picture, where the record cannot be read any more."""
        found = self._records.read_each([self._positions[position] for position in positions], ("image",))
        return [b"" if isinstance(record, BadRecord) else record["image"] for record in found]

    def load(self, positions: Sequence[int]) -> np.ndarray:
        """uint8 (n, S, S, 3); a picture that cannot be read comes out grey and is remembered."""
        wanted = [int(position) for position in positions]
        found = {position: self._pixels[position] for position in wanted if position in self._pixels}
        missing = sorted(set(wanted) - set(found))
        if missing:
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders let other threads run
                found |= zip(missing, pool.map(self._decode, missing, self._images(missing)), strict=True)
        if self._keep_pixels:
            self._pixels |= found
        return np.stack([found[position] for position in wanted])

    def _decode(self, position: int, data: bytes) -> np.ndarray:
        size = self._encoder.image_size
        try:
            return self._encoder.preprocessing.pixels(data)
        except BadImage:
            self._unreadable[position] = True
            return np.full((size, size, 3), _GREY, np.uint8)

    def subset(self, positions: Sequence[int]) -> Load:
        """A `load` whose picture i is this split's picture `positions[i]`."""
        return lambda indices: self.load([int(positions[int(index)]) for index in indices])

    def embeddings(self) -> np.ndarray:
        """float32 (N, E); NaN where the picture cannot be read, so that it is never right."""
        if self._embeddings is None:
            embeddings = np.array(self._encoder.images(self.load, len(self)), np.float32)
            embeddings[self.bad()] = np.nan
            self._embeddings = embeddings
        return self._embeddings

    def forget_embeddings(self) -> None:
        """To be called when the encoder's parameters have changed."""
        self._embeddings = None

    def name(self, position: int) -> str:
        """What tells a person which record this is."""
        names = getattr(self._records, "names", None)
        if names is not None:
            return names[self._positions[position]]
        record = self.features[position]
        return str(next((record[key] for key in ("id", "key", "name") if key in record), position))

    def bad(self) -> np.ndarray:
        """bool (N,): pictures found unreadable so far, by any process; all processes call it together."""
        if jax.process_count() == 1:
            return self._unreadable
        return np.any(np.asarray(multihost_utils.process_allgather(self._unreadable)), axis=0, keepdims=False)


class Splits:
    """Splits by (dataset, data_dir, name), each opened once."""

    def __init__(self, config: Config, encoder: Encoder):
        self._data = config.data
        self._encoder = encoder
        self._open: dict[tuple[str, str, str], Split] = {}

    def get(self, name: str, dataset: str = "", data_dir: str = "") -> Split:
        """The split; a dataset or folder that is "" is the training data's."""
        dataset = dataset or self._data.dataset
        data_dir = data_dir or self._data.data_dir
        key = (dataset, data_dir, name)
        if key not in self._open:
            records = Records(dataset, name, data_dir)
            self._open[key] = Split(records, self._encoder, class_names_of(dataset, data_dir))
        return self._open[key]

    def forget_embeddings(self) -> None:
        """To be called when the encoder's parameters have changed."""
        for split in self._open.values():
            split.forget_embeddings()


def class_names_of(dataset: str, data_dir: str) -> dict[str, list[str]]:
    """The names of each ClassLabel feature of a prepared data set; tars have none."""
    if is_tars(dataset):
        return {}
    import tensorflow_datasets as tfds  # slow to import, and only needed where a dataset is opened

    features = open_builder(dataset, data_dir).info.features
    return {name: list(kind.names) for name, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)}
