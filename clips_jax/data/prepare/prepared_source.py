"""Rows from a set that was prepared before, to store its pictures smaller; a task for each of its shards."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

from clips_jax.data.array_records import ArrayRecordFiles
from clips_jax.data.examples import BadRecord
from clips_jax.data.prepare import storage
from clips_jax.data.prepare.rows import Row, Task
from clips_jax.data.tars import Rejected
from clips_jax.data.triples import IMAGE, open_builder

_BATCH = 256  # records read at once


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A split of a TFDS set in ArrayRecord; all its features are kept.

    Attributes:
      dataset: TFDS name, "name" or "name/config".
      data_dir: its TFDS folder; "" is `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      split: a whole split.
    """

    dataset: str
    data_dir: str = ""
    split: str = "train"

    def tasks(self, work: str) -> tuple[list[Task], list[Rejected]]:
        """A task for each shard.

        Raises:
          ValueError: no such split.
          FileNotFoundError: not prepared, or a shard is missing.
        """
        del work
        splits = open_builder(self.dataset, self.data_dir).info.splits
        if self.split not in splits:
            raise ValueError(f"--from_split {self.split!r}: {self.dataset} has {', '.join(sorted(splits))}.")
        files = [str(file) for file in splits[self.split].filepaths]
        missing = [path for path in files if not storage.exists(path)]
        if missing:
            raise FileNotFoundError(f"{len(missing)} of {len(files)} shards are missing, the first {missing[0]}.")
        counts = splits[self.split].shard_lengths
        return [
            Task(number, path, 0, count, *storage.state(path))
            for number, (path, count) in enumerate(zip(files, counts, strict=True))
        ], []

    def folder(self) -> str:
        """Where the set lies."""
        return str(open_builder(self.dataset, self.data_dir).data_dir)

    def features(self) -> Any:
        """The features of the set."""
        return _features(self.dataset, self.data_dir)

    def rows(self, task: Task, work: str) -> Iterator[Row | Rejected]:
        """The records of a shard; `fields` is the record without its picture. Those that rotted are rejected."""
        import tensorflow_datasets as tfds

        features = self.features()
        with storage.local_copy(task.path, storage.scratch(work)) as path:
            records = ArrayRecordFiles(os.path.dirname(path), [os.path.basename(path)], [0], [task.stop])
            for start in range(0, len(records), _BATCH):
                positions = range(start, min(start + _BATCH, len(records)))
                for position, data in zip(positions, records.read_each(positions), strict=True):
                    if isinstance(data, BadRecord):
                        yield Rejected(f"{task.path}[{position}]", "damaged_record", str(data))
                        continue
                    try:
                        record = features.deserialize_example_np(data, decoders={IMAGE: tfds.decode.SkipDecoding()})
                    except Exception as error:  # the parser raises many kinds on damaged bytes
                        yield Rejected(f"{task.path}[{position}]", "damaged_record", str(error))
                        continue
                    picture = record.pop(IMAGE)
                    fields = {name: _plain(value) for name, value in record.items()}
                    yield Row(str(fields.get("id", f"{task.number:05d}-{position}")), picture, fields)


@functools.lru_cache(maxsize=4)
def _features(dataset: str, data_dir: str) -> Any:
    return open_builder(dataset, data_dir).info.features


def _plain(value: Any) -> Any:
    """What `features.encode_example` takes again, and JSON, too."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if getattr(value, "ndim", None) == 0 else value.tolist() if hasattr(value, "tolist") else value
