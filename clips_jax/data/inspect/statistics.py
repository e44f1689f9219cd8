"""What the records of a run are like: texts, sentences, picture sizes, and what cannot be used."""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from clips_jax.config import Config
from clips_jax.data.images import BadImage, Picture
from clips_jax.data.open_tokenizer import Tokenizer
from clips_jax.data.order import Mixture, record_index
from clips_jax.data.pipeline import Source, draw_texts, open_sources
from clips_jax.data.triples import IMAGE, BadRecord, texts_of

_RECORDS_PER_READ = 256
# Longer texts are counted as this long. No config ships more.
_LONGEST = 1024


@dataclasses.dataclass
class TextStatistics:
    """One named text over the sample.

    Attributes:
      lengths: tokens per text, uncut.
      sentences: per text.
      empty: texts that are empty in the record.
      length: tokens that the config ships.
    """

    length: int
    lengths: list[int] = dataclasses.field(default_factory=list)
    sentences: list[int] = dataclasses.field(default_factory=list)
    empty: int = 0

    @property
    def truncated(self) -> float:
        """The share of texts longer than is shipped."""
        return float(np.mean(np.array(self.lengths) > self.length)) if self.lengths else 0.0


@dataclasses.dataclass
class Statistics:
    """A sample of the records that a run uses, in the run's order.

    Attributes:
      sizes: (width, height) of each picture, upright.
      bytes_per_picture: of each picture's file.
      bad: reasons for records that cannot be used, with how many and an example.
      per_source: records of the sample by data set.
    """

    texts: dict[str, TextStatistics]
    records: int = 0
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    bytes_per_picture: list[int] = dataclasses.field(default_factory=list)
    bad: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    per_source: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def sample_records(config: Config, sources: list[Source], count: int) -> Iterator[tuple[Source, Any]]:
    """(data set, record or `BadRecord`) at the run's first `count` positions: the order is a shuffle, so at random."""
    mixture = Mixture([source.weight for source in sources], config.seed)
    for start in range(0, count, _RECORDS_PER_READ):
        positions = np.arange(start, min(start + _RECORDS_PER_READ, count))
        numbers, own = mixture.locate(positions)
        found: list[Any] = [None] * len(positions)
        for number, source in enumerate(sources):
            rows, size = np.flatnonzero(numbers == number), len(source.records)
            indices = [record_index(position, size, config.seed, number) for position in own[rows].tolist()]
            for row, record in zip(rows, source.records.read_each(indices, source.needed), strict=True):
                found[row] = (source, record)
        yield from found


def collect(config: Config, tokenizer: Tokenizer, count: int) -> Statistics:
    """Statistics of the first `count` positions of the run; pictures are decoded to see that they can be.

    Raises:
      ConfigError, FileNotFoundError: as `train_batches`.
    """
    found = Statistics({name: TextStatistics(text.length) for name, text in config.data.texts.items()})
    pending: list[dict[str, str]] = []

    def tokenize() -> None:
        for name, text in found.texts.items():
            texts = [one[name] for one in pending]
            _, sentence_ids = tokenizer.tokenize(texts, _LONGEST)
            text.lengths += (sentence_ids >= 0).sum(axis=1).tolist()
            text.sentences += (sentence_ids.max(axis=1) + 1).tolist()
        pending.clear()

    for position, (source, record) in enumerate(sample_records(config, open_sources(config.data), count)):
        found.records += 1
        found.per_source[source.name or source.dataset] += 1
        if isinstance(record, BadRecord):
            _add_bad(found, "record", f"position {position}: {record}")
            continue
        raw = {name: record[feature] if feature else "" for name, feature in source.features.items()}
        for name, value in raw.items():
            found.texts[name].empty += not (value if isinstance(value, str) else "".join(value)).strip()
        pending.append(texts_of(draw_texts(raw, config.data.texts, position, config.seed), config.data.texts))
        try:
            picture = Picture(record[IMAGE])
            picture.decode(max(picture.scales), fast=True)
            found.sizes.append((picture.width, picture.height))
            found.bytes_per_picture.append(len(record[IMAGE]))
        except BadImage as error:
            _add_bad(found, "image", f"position {position}: {error}")
        if len(pending) == _RECORDS_PER_READ:
            tokenize()
    if pending:
        tokenize()
    return found


def _add_bad(found: Statistics, reason: str, example: str) -> None:
    count, first = found.bad.get(reason, (0, example))
    found.bad[reason] = (count + 1, first)
