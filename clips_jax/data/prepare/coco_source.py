"""Rows from COCO captions: a JSON file with `images` and `annotations`, and a folder of pictures.

The JSON is read once, and written as JSON lines, a picture with all its captions each; from there it is a table.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

from clips_jax.data.prepare import storage
from clips_jax.data.prepare.rows import Row, Task
from clips_jax.data.prepare.table_source import Table
from clips_jax.data.tars import Rejected


@dataclasses.dataclass(frozen=True)
class Coco:
    """COCO captions.

    Attributes:
      annotations: the JSON file, such as captions_val2017.json.
      images: folder of the pictures.
      rows_per_shard: pictures of an output shard.
    """

    annotations: str
    images: str
    rows_per_shard: int = 10_000

    def tasks(self, work: str) -> tuple[list[Task], list[Rejected]]:
        """A task for every `rows_per_shard` pictures, by image id.

        Raises:
          ValueError: the file is no COCO captions file.
          FileNotFoundError: there is no such file, or no such folder of pictures.
        """
        try:
            with storage.open_bytes(self.annotations) as file:
                data = file.read()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.annotations}: no such file.") from error
        rows, rejected = read_annotations(data, self.annotations)
        # Named by content: the same captions give the same tasks, changed ones new tasks.
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        path = os.path.join(work, f"coco-{hashlib.sha256(lines.encode()).hexdigest()[:16]}.jsonl")
        if not storage.exists(path):
            storage.write_text(path, lines)
        tasks, _ = self._table(path).tasks(work)
        return [dataclasses.replace(task, modified=0.0) for task in tasks], rejected

    def rows(self, task: Task, work: str) -> Iterator[Row | Rejected]:
        """The pictures of a task; `fields` holds the list `captions`."""
        yield from self._table(task.path).rows(task, work)

    def _table(self, path: str) -> Table:
        return Table(path, self.images, "image", "key", self.rows_per_shard)


def read_annotations(data: bytes, path: str) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Pictures by id with their captions in order of annotation, {"key", "image", "captions"}; and what is no row."""
    try:
        found = json.loads(data.decode("utf-8-sig", "replace"))
        images, annotations = found["images"], found["annotations"]
        if not isinstance(images, list) or not isinstance(annotations, list):
            raise TypeError("`images` and `annotations` are lists")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no COCO captions file: {type(error).__name__}: {error}") from error
    rejected: list[Rejected] = []
    by_id: dict[int | str, dict[str, Any]] = {}
    for number, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        identity = image.get("id") if isinstance(image, dict) else None
        if not isinstance(name, str) or not isinstance(identity, int | str):
            rejected.append(Rejected(f"images[{number}]", "bad_row", "no `id` or no `file_name`"))
        elif identity in by_id:
            rejected.append(Rejected(str(identity), "duplicate_key", f"images[{number}]; the first one is used"))
        else:
            by_id[identity] = {"key": str(identity), "image": name, "captions": []}
    order = sorted(range(len(annotations)), key=lambda number: _annotation_id(annotations[number], number))
    for number in order:
        annotation = annotations[number]
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        row = by_id.get(image_id) if isinstance(image_id, int | str) else None
        if row is None:
            rejected.append(Rejected(f"annotations[{number}]", "no_such_image", "its `image_id` is not in `images`"))
        else:
            row["captions"].append(annotation.get("caption"))
    keys = sorted(
        by_id,
        key=lambda identity: (isinstance(identity, str), identity if isinstance(identity, int) else 0, str(identity)),
    )
    return [by_id[identity] for identity in keys], rejected


def _annotation_id(annotation: Any, number: int) -> tuple[int, int]:
    identity = annotation.get("id") if isinstance(annotation, dict) else None
    return (identity if isinstance(identity, int) else 0, number)
