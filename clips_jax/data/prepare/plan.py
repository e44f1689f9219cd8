"""What a run is to make, as one value that travels to workers; where its files lie; when a shard is up to date."""

import dataclasses
import hashlib
import json
import os
from typing import Any

from clips_jax.data.prepare.pictures import PictureOptions
from clips_jax.data.prepare.prepared_source import Prepared
from clips_jax.data.prepare.record import TextOptions
from clips_jax.data.prepare.rows import Source, Task

# Raise it when the same input and options would give other records: shards done by older code are then done again.
_CODE_VERSION = 2
FILE_SUFFIX = "array_record"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A split to prepare.

    Attributes:
      name, version, split: the data set's, in TFDS' sense.
      folder: where the data set is written: DATA_DIR/NAME/VERSION. Nothing is written anywhere else.
      source: where rows come from.
      texts, picture: what becomes of them.
    """

    name: str
    version: str
    split: str
    folder: str
    source: Source
    texts: TextOptions = TextOptions()
    picture: PictureOptions = PictureOptions()

    @property
    def work(self) -> str:
        """Folder of the state that restarts need; may be deleted when the set is complete."""
        return os.path.join(self.folder, "work", self.split)

    def shard_name(self, number: int, count: int) -> str:
        """TFDS' name of a shard's file."""
        return f"{self.name}-{self.split}.{FILE_SUFFIX}-{number:05d}-of-{count:05d}"

    def shard_path(self, number: int, count: int) -> str:
        """The file of a shard."""
        return os.path.join(self.folder, self.shard_name(number, count))

    def work_path(self, number: int, count: int, kind: str) -> str:
        """A file beside a shard: "done.json", "rejected.jsonl" or "hashes.npy"."""
        return os.path.join(self.work, f"{number:05d}-of-{count:05d}.{kind}")

    def fingerprint(self, *parts: Any) -> str:
        """Changes with anything that changes what is written: options, code version, and `parts` (JSON)."""
        source = self.source_options()
        source.pop("pattern", None)  # the files that it names are in the tasks
        options = {
            "code": _CODE_VERSION,
            "source": source,
            "texts": dataclasses.asdict(self.texts),
            "picture": dataclasses.asdict(self.picture),
        }
        text = json.dumps([options, *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def source_options(self) -> dict[str, Any]:
        """The source as JSON."""
        return {"kind": type(self.source).__name__.lower(), **dataclasses.asdict(self.source)}  # pyright: ignore

    def features(self) -> Any:
        """The TFDS features of a record."""
        import tensorflow_datasets as tfds

        if isinstance(self.source, Prepared):
            return self.source.features()
        text = tfds.features.Text()
        return tfds.features.FeaturesDict(
            {
                "id": text,
                "image": tfds.features.Image(shape=(None, None, 3)),
                "alt_text": text,
                "recaption": text,
                **{name: text for name in self.texts.texts},
                **{name: tfds.features.Sequence(text) for name in self.texts.text_lists},
            }
        )


def task_json(task: Task) -> dict[str, Any]:
    """A task as JSON."""
    return dataclasses.asdict(task)
