"""Rows from a table (CSV, TSV, JSON lines, parquet) whose pictures are files in a folder, or bytes in the table."""

import codecs
import csv
import dataclasses
import io
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

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
PICTURE_COLUMNS = ("image", "image_path", "path", "filepath", "file_path", "file_name", "filename", "file")
KEY_COLUMNS = ("key", "id", "uid")
_MAX_FIELD = 1 << 27  # bytes of a CSV field; csv's own limit is below a long caption
_BATCH = 256  # parquet rows held at once
_OTHER_DELIMITERS = ";\t|"  # of a CSV whose header has no comma: spreadsheets of half of Europe write semicolons


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
        """A task for every `rows_per_shard` rows of each table; counts them, which reads CSV and JSON lines once.

        Raises:
          ValueError: a table has no column for the picture, or none of the name that is said; names its columns.
          FileNotFoundError: no such table, or no such folder of pictures.
        """
        del work
        if self.images and storage.is_local(self.images) and not os.path.isdir(self.images):
            raise FileNotFoundError(f"--images {self.images}: no such folder.")
        tasks: list[Task] = []
        for path in list_files(self.pattern, ENDINGS):
            self._check_columns(path)
            count, state = _count(path), storage.state(path)
            for start in range(0, count, self.rows_per_shard):
                stop = min(start + self.rows_per_shard, count)
                tasks.append(Task(len(tasks), path, start, stop, *state))
        return tasks, []

    def _check_columns(self, path: str) -> None:
        names = columns(path)
        if names is None:
            return
        known = {name.lower() for name in names}
        pictures = (self.image_column,) if self.image_column else PICTURE_COLUMNS
        if not known & {name.lower() for name in pictures}:
            raise ValueError(
                f"{path}: no column {' or '.join(pictures)} for the picture; name one of {', '.join(names)} with "
                "--image_column."
            )
        if self.key_column and self.key_column.lower() not in known:
            raise ValueError(f"--key_column {self.key_column}: no such column in {path}; it has {', '.join(names)}.")

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
            fields = {**{field.lower(): value for field, value in fields.items()}, **fields}
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
    """The first value that is not empty, whatever the case of the names."""
    found = (fields.get(name, fields.get(name.lower())) for name in names)
    return next((value for value in found if value not in (None, "")), None)


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
    plain = value.strip().replace("\\", "/")
    try:
        return read_inside(root, value, max_bytes), _extension(value)
    except Refused as error:
        if plain != value and error.reason == "missing_picture":  # a table from Windows, or with spaces at its commas
            return read_inside(root, plain, max_bytes), _extension(plain)
        if "://" in value:
            raise Refused(
                error.reason, f"{value}: an address; fetch the pictures first, e.g. with img2dataset"
            ) from error
        raise


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
        csv_like = lower.endswith((".csv", ".tsv"))
        # newline="" leaves line ends to csv: they may be within cells, or carriage returns alone.
        lines = io.TextIOWrapper(binary, _encoding(path), "surrogateescape", newline="" if csv_like else "\n")
        rows = _csv(lines, "\t" if lower.endswith(".tsv") else ",") if csv_like else _json_lines(lines)
        yield from itertools.islice(rows, start, stop)


def _encoding(path: str) -> str:
    """UTF-8, or UTF-16 where a byte order mark says so."""
    with storage.open_bytes(path) as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def columns(path: str) -> list[str] | None:
    """The columns of a table; None for JSON lines, where each row has its own."""
    if path.lower().endswith((".jsonl", ".ndjson")):
        return None
    if path.lower().endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        try:
            with storage.open_bytes(path) as file:
                return list(pyarrow.parquet.ParquetFile(file).schema_arrow.names)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is no parquet file, or a damaged one: {error}") from error
    header = next(read_table(path, 0, 1), None)
    return None if header is None or isinstance(header, str) else list(header)


def _json_lines(lines: Iterator[str]) -> Iterator[dict[str, Any] | str]:
    for line in lines:
        if line.strip():
            try:
                yield parse_object(line.encode("utf-8", "surrogateescape"))
            except ValueError as error:
                yield str(error)


def _csv(lines: Iterator[str], delimiter: str) -> Iterator[dict[str, Any] | str]:
    csv.field_size_limit(_MAX_FIELD)
    first = next(lines, "")
    if delimiter not in first:
        delimiter = next((other for other in _OTHER_DELIMITERS if other in first), delimiter)
    at_end = False

    def all_lines() -> Iterator[str]:
        nonlocal at_end
        yield first
        yield from lines
        at_end = True

    reader = csv.reader(all_lines(), delimiter=delimiter)
    header: list[str] | None = None
    last = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {reader.line_num}: {error}"
            continue
        first_line, last = last + 1, reader.line_num
        if header is None:
            header = [name.strip() for name in cells]
        elif at_end:  # the reader asked for more within this row
            yield f"line {first_line}: a quote that is closed nowhere; everything to line {last} is in it"
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
