"""Tar shards read in place, by position: small sets and evaluation without conversion.

`data.dataset` may be tars instead of a TFDS name: "/data/{00000..00003}.tar", "/data/*.tar". The headers of all tars
are read once (about 25,000 members per second), the index stays in memory (about 1 kB a sample) and travels to workers.
A damaged tar's whole samples are used; what is left out is counted and logged. For large sets and compressed tars:
`python -m clips_jax.data.prepare`.
"""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import logging

from clips_jax.config import ConfigError
from clips_jax.data import captions, tars
from clips_jax.data.examples import BadRecord
from clips_jax.data.file_patterns import list_files
from clips_jax.data.splits import absolute_split
from clips_jax.data.tars import Sample

_IMAGE = "image"
_SPLIT = "train"
_SAMPLES_FOR_FEATURES = 100  # looked at for a JSON that says which features there are
_CLASS = "cls"  # webdataset's extension for a class number
_TEXTS = ("txt", *tars.TEXT_PARTS)


def is_tars(dataset: str) -> bool:
    """Whether `dataset` names tars, not a TFDS set."""
    return dataset.lower().endswith(tars.TAR_ENDINGS)


@dataclasses.dataclass(frozen=True)
class _Place:
    file: int
    sample: Sample


class TarSource:
    """The samples of tars, in the order of the files and of each file. `triples.Records` opens it. Picklable.

    A record is a dict: "id" (the key), "image" (the undecoded file), "alt_text" and "recaption" (from the parts and
    JSON fields that `prepare` takes, or ""), "label" (the .cls, if the first sample has one), and every text, list of
    texts and whole number of the JSON under the names that the first sample with a JSON has.

    Attributes:
      features: names of the features.
      text_features: names of those that are a text, or a list of texts.
    """

    def __init__(self, dataset: str, split: str = _SPLIT):
        """Reads the headers.

        Args:
          dataset: as `file_patterns.list_files` takes it.
          split: "train", or a slice of it such as "train[:90%]".

        Raises:
          FileNotFoundError: no such tar.
          ConfigError: no usable sample, or another split.
        """
        self._dataset = dataset
        self._files = list_files(dataset, tars.TAR_ENDINGS)
        self._places: list[_Place] = []
        left_out: Counter[str] = Counter()
        for number, path in enumerate(self._files):
            with open(path, "rb") as file:
                index = tars.index_tar(file, os.path.getsize(path))
            self._places += [_Place(number, sample) for sample in index.samples]
            left_out.update(rejected.reason for rejected in index.rejected)
        if left_out:
            counts = ", ".join(f"{reason} {count}" for reason, count in sorted(left_out.items()))
            logging.warning("%s: %d samples; left out: %s.", dataset, len(self._places), counts)
        if not self._places:
            raise ConfigError(f"data.dataset: {dataset} holds no sample with a picture ({dict(left_out)}).")
        self._find_features()
        self._places = self._places[_slice(split, len(self._places), dataset)]

    def _find_features(self) -> None:
        parts, found = self._first_fields()
        self._numbers = tuple(name for name, value in found.items() if type(value) is int)
        self._lists = tuple(name for name, value in found.items() if _is_texts(value) and name != _IMAGE)
        texts = tuple(name for name, value in found.items() if isinstance(value, str))
        self._fields = tuple(name for name in texts if name not in ("id", "alt_text", "recaption", _IMAGE))
        self.text_features = tuple(sorted({"id", "alt_text", "recaption", *self._fields, *self._lists}))
        label = ("label",) if _CLASS in parts else ()
        self._numbers = tuple(name for name in self._numbers if name not in (*self.text_features, *label, _IMAGE))
        self.features = tuple(sorted({*self.text_features, *self._numbers, *label, _IMAGE}))

    def _first_fields(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Parts of the first sample, and fields of the first one that has a JSON which can be read."""
        parts: dict[str, bytes] = {}
        for place in self._places[:_SAMPLES_FOR_FEATURES]:
            found = self._read_parts(place)
            parts = parts or found
            with contextlib.suppress(ValueError):
                if "json" in found:
                    return parts, tars.parse_object(found["json"])
        return parts, {}

    def __len__(self) -> int:
        return len(self._places)

    def keys(self) -> list[str]:
        """By position the sample's key."""
        return [place.sample.key for place in self._places]

    def file(self, position: int) -> str:
        """The tar that the sample at `position` lies in."""
        return self._files[self._places[position].file]

    def read_each(self, indices: Sequence[int], features: Collection[str]) -> list[dict[str, Any] | BadRecord]:
        """The records at `indices`, in that order, each with all its features, or the error that names it."""
        del features  # reading less would save nothing
        return [self._record(self._places[index]) for index in indices]

    def _record(self, place: _Place) -> dict[str, Any] | BadRecord:
        try:
            parts = self._read_parts(place)
            fields = tars.parse_object(parts["json"]) if "json" in parts else {}
            record: dict[str, Any] = {name: captions.clean(fields.get(name, ""))[0] for name in self._fields}
            record.update((name, _texts(fields.get(name))) for name in self._lists)
            record.update((name, _number(fields.get(name))) for name in self._numbers)
            record["id"] = place.sample.key
            record[_IMAGE] = parts[place.sample.picture]
            found = {**fields, **{part: parts[part] for part in _TEXTS if part in parts}}
            record["alt_text"] = _first_text(found, captions.ALT_TEXT_FIELDS)
            record["recaption"] = _first_text(found, captions.RECAPTION_FIELDS)
            if "label" in self.features and "label" not in record:
                record["label"] = int(parts[_CLASS]) if _CLASS in parts else -1
            return record
        except (OSError, ValueError) as error:
            return BadRecord(f"{self._files[place.file]}, sample {place.sample.key}: {error}")

    def _read_parts(self, place: _Place) -> dict[str, bytes]:
        sample, parts = place.sample, {}
        with open(self._files[place.file], "rb", buffering=0) as file:  # opened anew: no state, safe in threads
            for part in (sample.picture, *_TEXTS, "json", _CLASS):
                if part in sample.parts:
                    offset, size = sample.parts[part]
                    parts[part] = os.pread(file.fileno(), size, offset)
                    if len(parts[part]) != size:
                        raise ValueError(f"the tar changed: {part} is cut short")
        return parts


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _first_text(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first text of the fields `names`, of a list its first one, that is not empty; else ""."""
    for name in names:
        value = fields.get(name)
        for one in value if isinstance(value, list) else [value]:
            text, _ = captions.clean(one)
            if text:
                return text
    return ""


def _texts(value: Any) -> list[str]:
    return [captions.clean(item)[0] for item in value] if isinstance(value, list) else []


def _number(value: Any) -> int:
    return value if type(value) is int else -1


def _slice(split: str, count: int, dataset: str) -> slice:
    """A TFDS slice as positions."""
    import tensorflow_datasets as tfds

    if split.partition("[")[0] != _SPLIT:
        raise ConfigError(f"split {split!r} of {dataset}: tars have one split, {_SPLIT!r}, and slices of it.")
    info: Any = {_SPLIT: tfds.core.SplitInfo(name=_SPLIT, shard_lengths=[count], num_bytes=0)}
    try:
        (part,) = tfds.core.ReadInstruction.from_spec(absolute_split(split, lambda _: count)).to_absolute(info)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"split {split!r} of {dataset}: {error}") from error
    return slice(part.from_, part.to)
