"""Records of evaluation sets, from the formats that people have them in; a picture is read when it is needed."""

import csv
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from clips_jax.config import ConfigError
from clips_jax.data.pictures import list_pictures
from clips_jax.data.triples import Records
from clips_jax.evaluators.data_sets import RecordsConfig
from clips_jax.evaluators.split import RecordSource, class_names_of

# Pictures looked for before a set is read, to tell a wrong folder from a bad file.
_LOOKED_FOR = 20


class Files:
    """Records whose pictures are files. A picture that is not there reads as b"", which is no picture.

    Attributes:
      names: path of each record's picture.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], paths: Sequence[str]):
        """Raises `FileNotFoundError` if none of the first pictures exists: the folder is wrong."""
        self._rows, self.names = rows, list(paths)
        first = self.names[:_LOOKED_FOR]
        if first and not any(os.path.isfile(path) for path in first):
            raise FileNotFoundError(
                f"{first[0]}: not there, nor are the {len(first) - 1} next; is --data_root the right folder?"
            )

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return (*self._rows[0], "image")

    def read_each(self, indices: Sequence[int], features: Collection[str] | None = None) -> list[dict[str, Any]]:
        """The records at `indices`; without "image" in `features` no picture is read."""
        records = [dict(self._rows[index]) for index in indices]
        if features is None or "image" in features:
            for record, index in zip(records, indices, strict=True):
                record["image"] = _bytes(self.names[index])
        return records


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def open_records(config: RecordsConfig, root: str) -> tuple[RecordSource, dict[str, list[str]]]:
    """The records, and the class names of each feature that is a class number.

    Raises:
      FileNotFoundError, ConfigError: not there, or not of the format; the message names the file.
    """
    if config.format == "tfds":
        return Records(config.path, config.split or "test", root), class_names_of(config.path, root)
    path = os.path.join(root, config.path)
    if config.format == "tars":
        return Records(path, config.split or "train"), {}
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder; --data_root is {root or 'the current folder'}.")
    if config.format == "folder":
        return _open_folders(path)
    images = os.path.join(root, config.images)
    rows = _caption_rows(path, config.split) if config.format == "captions_json" else _table_rows(path, config)
    if not rows:
        raise ConfigError(f"{path}: no record{f' of split {config.split!r}' if config.split else ''} in it.")
    return Files(rows, [_inside(images, str(row.pop("file"))) for row in rows]), {}


def _inside(folder: str, name: str) -> str:
    """A picture's path; raises `ConfigError` if a table's name leads out of the folder."""
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise ConfigError(f"picture {name!r} is not inside {folder}: absolute paths and '..' are refused.")
    return os.path.join(folder, name)


def _open_folders(path: str) -> tuple[Files, dict[str, list[str]]]:
    classes = sorted(name for name in os.listdir(path) if os.path.isdir(os.path.join(path, name)))
    rows, paths = [], []
    for number, name in enumerate(classes):
        for file in list_pictures(os.path.join(path, name)):
            rows.append({"label": number, "key": f"{name}/{file}"})
            paths.append(os.path.join(path, name, file))
    if not rows:
        raise ConfigError(f"{path}: wants a folder per class with pictures in it; there are {len(classes)} folders.")
    return Files(rows, paths), {"label": classes}


def _caption_rows(path: str, split: str) -> list[dict[str, Any]]:
    """Rows of Karpathy's format (pictures with sentences) or COCO's (pictures, and annotations that name them)."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ConfigError(f"{path}: not JSON: {error}") from error
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise ConfigError(f"{path}: neither Karpathy's nor COCO's format: it has no list \"images\".")
    if "annotations" in content:
        captions: dict[Any, list[str]] = {}
        for annotation in content["annotations"]:
            if "caption" in annotation:
                captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        return [
            {"key": str(image["id"]), "file": image["file_name"], "captions": captions.get(image["id"], [])}
            for image in images
        ]
    rows = []
    for image in images:
        if "sentences" not in image:
            raise ConfigError(f"{path}: a picture without sentences, and no annotations: {sorted(image)}.")
        if not split or image.get("split") == split:
            file = os.path.join(image.get("filepath", ""), image["filename"])
            captions_of = [sentence["raw"] for sentence in image["sentences"]]
            rows.append({"key": os.path.splitext(image["filename"])[0], "file": file, "captions": captions_of})
    return rows


def _table_rows(path: str, config: RecordsConfig) -> list[dict[str, Any]]:
    rows = []
    for row in _read_table(path):
        flat = dict(_flattened(row))
        missing = [name for name in (config.image, *config.where) if name not in flat]
        if missing:
            raise ConfigError(f"{path}: no column {missing[0]!r} in record {len(rows)}; there are {sorted(flat)}.")
        if all(str(flat[name]) == value for name, value in config.where.items()):
            rows.append(flat | {"file": config.image_file.replace("{}", str(flat[config.image]))})
    # Every record has every feature: "" where a row has none.
    names = dict.fromkeys(name for row in rows for name in row)
    whole = [{name: row.get(name, "") for name in names if name != "image"} for row in rows]
    return _grouped(whole) if config.grouped else whole


def _grouped(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one picture as one, in the order of their first ones; texts become lists."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        record = found.setdefault(row["file"], {name: [] for name in row} | {"file": row["file"]})
        for name, value in row.items():
            if name != "file":
                record[name] += value if isinstance(value, list) else [value]
    return list(found.values())


def _flattened(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", "" if value is None else value


def _read_table(path: str) -> Iterator[Mapping[str, Any]]:
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        yield from pq.read_table(path).to_pylist()
    elif path.endswith((".csv", ".tsv")):
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file, delimiter="\t" if path.endswith(".tsv") else ",")
    elif path.endswith((".jsonl", ".jsonlines", ".ndjson")):
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"{path}, line {number}: not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ConfigError(f"{path}, line {number}: not an object.")
                yield row
    else:
        raise ConfigError(f"{path}: tables end in .csv, .tsv, .jsonl, .jsonlines, .ndjson or .parquet.")
