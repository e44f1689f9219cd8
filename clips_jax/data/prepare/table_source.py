"""Rows from a table (CSV, TSV, JSON lines, parquet) whose pictures are files in a folder, or bytes in the table."""

import csv
import dataclasses
import itertools
import os
import stat
from collections.abc import Iterator
from typing import Any

from clips_jax.data.file_patterns import list_files
from clips_jax.data.prepare import storage
from clips_jax.data.prepare.pictures import PictureOptions, Refused
from clips_jax.data.prepare.rows import Row, Task
from clips_jax.data.tars import Rejected, parse_object

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
PICTURE_COLUMNS = ("image", "image_path", "path", "filepath", "file_path", "file_name", "filename", "file")
KEY_COLUMNS = ("key", "id", "uid")
_MAX_FIELD = 1 << 27  # bytes of a CSV field; csv's own limit is below a long caption
_BATCH = 256  # parquet rows held at once


@dataclasses.dataclass(frozen=True)
class Table:
    """Tables and a folder of pictures.

    Attributes:
      pattern: tables, as `file_patterns.list_files` takes them.
      images: folder that the table's paths start from; no path leaves it. "" is each table's own folder.
      image_column: holds a path, or a picture's bytes; "" finds one of `PICTURE_COLUMNS`.
      key_column: "" finds one of `KEY_COLUMNS`; without one, rows are called by table and number.
      rows_per_shard: rows of an output shard.
      max_bytes: of a picture's file; a larger one is not even read.
    """

    pattern: str | tuple[str, ...]
    images: str = ""
    image_column: str = ""
    key_column: str = ""
    rows_per_shard: int = 10_000
    max_bytes: int = PictureOptions.max_bytes

    def tasks(self, work: str) -> tuple[list[Task], list[Rejected]]:
        """A task for every `rows_per_shard` rows of each table; counts them, which reads CSV and JSON lines once."""
        del work
        tasks: list[Task] = []
        for path in list_files(self.pattern, ENDINGS):
            count, state = _count(path), storage.state(path)
            for start in range(0, count, self.rows_per_shard):
                stop = min(start + self.rows_per_shard, count)
                tasks.append(Task(len(tasks), path, start, stop, *state))
        return tasks, []

    def rows(self, task: Task, work: str) -> Iterator[Row | Rejected]:
        """The rows of a part of a table; a key that comes again within it is rejected."""
        del work
        root = self.images or os.path.dirname(task.path) or "."
        stem = os.path.basename(task.path).partition(".")[0]
        seen: set[str] = set()
        for number, fields in enumerate(read_table(task.path, task.start, task.stop), task.start):
            name = f"{stem}-{number}"
            if isinstance(fields, str):
                yield Rejected(name, "bad_row", fields)
                continue
            key = _first(fields, (self.key_column,) if self.key_column else KEY_COLUMNS)
            key = name if key is None else str(key)
            if key in seen:
                yield Rejected(key, "duplicate_key", f"row {number} of {task.path}; the first one is used")
                continue
            seen.add(key)
            try:
                value = _first(fields, (self.image_column,) if self.image_column else PICTURE_COLUMNS)
                data, extension = _picture(value, root, self.max_bytes)
            except Refused as error:
                yield Rejected(key, error.reason, str(error))
                continue
            yield Row(key, data, fields, extension)


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) not in (None, "")), None)


def _picture(value: Any, root: str, max_bytes: int) -> tuple[bytes, str]:
    """Bytes and extension of the picture that a table's cell holds or names."""
    if isinstance(value, dict):  # Hugging Face's {"bytes", "path"}
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            return data, _extension(path) if isinstance(path, str) else ""
        value = path
    if isinstance(value, bytes):
        return value, ""
    if not isinstance(value, str):
        raise Refused("no_picture", "no path and no bytes in the picture's column")
    return read_inside(root, value, max_bytes), _extension(value)


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].removeprefix(".").lower()


def read_inside(root: str, path: str, max_bytes: int) -> bytes:
    """The bytes of a regular file inside a folder.

    Raises:
      Refused: "unsafe_path" (it leads out of the folder, also by a link), "missing_picture" (no regular file of this
        name), "picture_file_too_large".
    """
    if "\0" in path:
        raise Refused("unsafe_path", "a zero byte in the path")
    if not storage.is_local(root):
        return _read_remote(root, path, max_bytes)
    inside = os.path.realpath(root)
    real = os.path.realpath(os.path.join(inside, path))
    if os.path.commonpath((inside, real)) != inside:
        raise Refused("unsafe_path", f"{path} leads out of {root}")
    try:
        status = os.stat(real)
        if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
            raise Refused("missing_picture", f"{path} is no file")
        if status.st_size > max_bytes:
            raise Refused("picture_file_too_large", f"{status.st_size} bytes, more than {max_bytes}")
        with open(real, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, PermissionError, OSError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("missing_picture", f"{path}: {error}") from error


def _read_remote(root: str, path: str, max_bytes: int) -> bytes:
    if "://" in path or path.startswith("/") or ".." in path.split("/"):
        raise Refused("unsafe_path", f"{path} leads out of {root}")
    try:
        with storage.open_bytes(f"{root.rstrip('/')}/{path}") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise Refused("missing_picture", str(error)) from error
    if len(data) > max_bytes:
        raise Refused("picture_file_too_large", f"more than {max_bytes} bytes")
    return data


def _count(path: str) -> int:
    if path.lower().endswith(".parquet"):
        import pyarrow.parquet

        with storage.open_bytes(path) as file:
            return pyarrow.parquet.ParquetFile(file).metadata.num_rows
    return sum(1 for _ in read_table(path, 0, None))


def read_table(path: str, start: int, stop: int | None) -> Iterator[dict[str, Any] | str]:
    """Rows `start` to `stop` - 1 of a table as dicts; a row that is none comes as a text that says why.

    Text that is not UTF-8 keeps its bytes as surrogates, which `captions.clean` repairs and counts.
    """
    lower = path.lower()
    if not lower.endswith(ENDINGS):
        raise ValueError(f"{path}: a table ends with {', '.join(ENDINGS)}.")
    if lower.endswith(".parquet"):
        yield from _parquet(path, start, stop)
        return
    with storage.open_bytes(path) as binary:
        lines = (line.decode("utf-8", "surrogateescape") for line in binary)
        rows = _json_lines(lines) if lower.endswith(".jsonl") else _csv(lines, "\t" if lower.endswith(".tsv") else ",")
        yield from itertools.islice(rows, start, stop)


def _json_lines(lines: Iterator[str]) -> Iterator[dict[str, Any] | str]:
    for line in lines:
        if line.strip():
            try:
                yield parse_object(line.encode("utf-8", "surrogateescape"))
            except ValueError as error:
                yield str(error)


def _csv(lines: Iterator[str], delimiter: str) -> Iterator[dict[str, Any] | str]:
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(lines, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {reader.line_num}: {error}"
            continue
        if header is None:
            header = [name.removeprefix("\ufeff").strip() for name in cells]
        elif len(cells) == len(header):
            yield dict(zip(header, cells, strict=True))
        elif cells:  # an empty line is no row
            yield f"line {reader.line_num}: {len(cells)} cells, the header has {len(header)}"


def _parquet(path: str, start: int, stop: int | None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with storage.open_bytes(path) as binary:
        file = pyarrow.parquet.ParquetFile(binary)
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if last > start and (stop is None or first < stop):
                skip = max(0, start - first)
                take = None if stop is None else stop - first
                batches = file.iter_batches(_BATCH, row_groups=[group])
                rows = itertools.chain.from_iterable(map(rows_of_batch, batches))
                yield from itertools.islice(rows, skip, take)
            first = last


def rows_of_batch(batch: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow batch as dicts; a column of strings that are not all UTF-8 comes as bytes."""
    columns = [_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # parquet does not check its strings
        import pyarrow

        if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            return column.cast(pyarrow.large_binary()).to_pylist()
        return [None] * len(column)  # within a list or struct
