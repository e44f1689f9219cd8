"""Rows from tar shards, with a recaption from a table joined to them if there is one."""

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import json
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any

from clips_jax.data import captions, tars
from clips_jax.data.file_patterns import list_files
from clips_jax.data.prepare import storage
from clips_jax.data.prepare.rows import Row, Task
from clips_jax.data.tars import Rejected, Sample

_OPENERS: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
# An unpacked tar may be this many times its file, at most: text packs 10-fold, pictures hardly at all. Assumption.
_MAX_UNPACKED = 200
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PACKED_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)


@dataclasses.dataclass(frozen=True)
class Recaptions:
    """A table joined to the samples of tars.

    Attributes:
      pattern: parquet files.
      join_on: what a sample is found by. "key": the sample's key. Else the field of this name in its JSON; "sha256"
        is worked out from the picture's bytes where the JSON has none.
      join_column: the table's column; "" is the same name.
      columns: columns taken over, those that the table has; by default all that texts are taken from.
    """

    pattern: str
    join_on: str = "sha256"
    join_column: str = ""
    columns: tuple[str, ...] = (*captions.ALT_TEXT_FIELDS, *captions.RECAPTION_FIELDS)


@dataclasses.dataclass(frozen=True)
class Tars:
    """Tar shards as img2dataset and webdataset write them; each gives one output shard.

    Attributes:
      pattern: the tars, as `file_patterns.list_files` takes them; .tar, and packed ones (.tar.gz, .bz2, .xz).
      recaptions: a table to join.
    """

    pattern: str | tuple[str, ...]
    recaptions: Recaptions | None = None

    def tasks(self, work: str) -> tuple[list[Task], list[Rejected]]:
        """A task for each tar."""
        del work
        files = list_files(self.pattern, (*tars.TAR_ENDINGS, *tars.COMPRESSED_TAR_ENDINGS))
        return [Task(number, path, 0, 0, *storage.state(path)) for number, path in enumerate(files)], []

    def rows(self, task: Task, work: str) -> Iterator[Row | Rejected]:
        """The samples of a tar."""
        recaptions = self.recaptions
        joined = read_sidecar(sidecar(work, task.number)) if recaptions else None
        with open_tar(task.path, work) as (file, index):
            yield from index.rejected
            if not index.has_end:
                yield Rejected("", NO_END_MARKER, task.path)
            for sample in index.samples:
                large = [part for part, (_, size) in sample.parts.items() if size > MAX_PART_BYTES]
                if large:
                    yield Rejected(sample.key, "part_too_large", f"{large[0]} has more than {MAX_PART_BYTES} bytes")
                    continue
                try:
                    fields = _fields(file, sample)
                except ValueError as error:
                    yield Rejected(sample.key, "bad_json", str(error))
                    continue
                picture = read_part(file, sample, sample.picture)
                found: tuple[int, dict[str, Any]] = (0, {})
                if recaptions and joined is not None:
                    found = joined.get(join_value(recaptions.join_on, sample.key, fields, picture), found)
                yield Row(sample.key, picture, fields | found[1], sample.picture, None if joined is None else found[0])


# Larger parts are not even read. Assumption: no picture or caption is.
MAX_PART_BYTES = 256 << 20
NO_END_MARKER = "tar_without_end"  # not a row: counted among what was normalised


def sidecar(work: str, number: int) -> str:
    """The file that holds the joined rows of a shard."""
    return os.path.join(work, f"{number:05d}.recaptions.json")


def sidecar_hash(work: str, number: int) -> str:
    """The file that holds the SHA-256 of a shard's joined rows, as JSON; written after them."""
    return os.path.join(work, f"{number:05d}.recaptions.sha256")


def read_sidecar(path: str) -> dict[str, tuple[int, dict[str, Any]]]:
    """By join value how many rows the table has, and the one that is taken."""
    with storage.open_bytes(path) as file:
        return json.loads(file.read())


def join_value(join_on: str, key: str, fields: dict[str, Any], picture: bytes | None) -> str:
    """What a sample is looked up by; "" matches nothing."""
    if join_on == "key":
        return key
    value = fields.get(join_on)
    if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        return normal_join_value(value)
    if join_on == "sha256" and picture is not None:
        return hashlib.sha256(picture).hexdigest()
    return ""


def normal_join_value(value: Any) -> str:
    """Join values as they are compared: text without white space around it; hashes in lower-case hexadecimal.

    Hashes may be bytes, UUIDs may have dashes, whole numbers may be floats (a column with gaps in pandas).
    """
    if isinstance(value, bytes):
        value = value.decode() if value.isascii() and value.decode().isprintable() else value.hex()
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip().encode("utf-8", "replace").decode()  # no halves of surrogate pairs: they cannot travel
    if _UUID.fullmatch(text):
        text = text.replace("-", "")
    hexadecimal = len(text) in (32, 40, 64) and not set(text.lower()) - set("0123456789abcdef")
    return text.lower() if hexadecimal else text


def without_zeros(value: str) -> str:
    """A number without leading zeros, else the value: "000012" and 12 are the same key where no other one fits."""
    return (value.lstrip("0") or "0") if value.isdecimal() else value


def join_values(task: Task, work: str, join_on: str) -> list[str]:
    """The join values of a tar's samples; pictures are read only where their hash is needed."""
    values = []
    with open_tar(task.path, work) as (file, index):
        for sample in index.samples:
            if any(size > MAX_PART_BYTES for _, size in sample.parts.values()):
                continue
            try:
                fields = {} if join_on == "key" else _fields(file, sample)
            except ValueError:
                continue
            needs_picture = join_on == "sha256" and not fields.get("sha256")
            picture = read_part(file, sample, sample.picture) if needs_picture else None
            values.append(join_value(join_on, sample.key, fields, picture))
    return [value for value in values if value]


@contextlib.contextmanager
def open_tar(path: str, work: str) -> Iterator[tuple[Any, tars.TarIndex]]:
    """The tar as a local, unpacked file, and its index. Unpacked copies lie in `work` while they are used."""
    scratch = storage.scratch(work)
    with storage.local_copy(path, scratch) as local:
        with open(local, "rb") as file:
            magic = file.read(6)
            opener = next((opener for start, opener in _OPENERS if magic.startswith(start)), None)
            if opener is None:
                yield file, tars.index_tar(file, os.path.getsize(local))
                return
        os.makedirs(scratch, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch) as unpacked:
            problem = _unpack(opener, local, unpacked)
            index = tars.index_tar(unpacked, unpacked.tell())
            # Damage to the packing shows as damage to the tar, too; the sample it hits is reported there.
            if problem and not index.rejected:
                index.rejected.append(Rejected("", "damaged_tar", problem))
            yield unpacked, index


def _unpack(opener: Any, path: str, target: Any) -> str:
    """Unpacks as far as it goes; returns what stopped it, or ""."""
    limit = _MAX_UNPACKED * max(os.path.getsize(path), 1 << 20)
    try:
        with opener(path, "rb") as source:
            while block := source.read(1 << 20):
                target.write(block)
                if target.tell() > limit:
                    return f"unpacks to more than {limit} bytes"
    except _PACKED_DAMAGE as error:
        return f"{type(error).__name__}: {error}"
    return ""


def read_part(file: Any, sample: Sample, part: str) -> bytes:
    """The bytes of a part of a sample."""
    offset, size = sample.parts[part]
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise OSError(f"{sample.key}.{part}: the tar became shorter while it was read.")
    return data


def _fields(file: Any, sample: Sample) -> dict[str, Any]:
    """The sample's JSON and its texts (.txt, .caption …) as one dict; `ValueError` if the JSON is no object."""
    fields: dict[str, Any] = {}
    if "json" in sample.parts:
        fields = tars.parse_object(read_part(file, sample, "json"))
    for part in ("txt", *tars.TEXT_PARTS):
        if part in sample.parts:
            fields[part] = read_part(file, sample, part)
    return fields
