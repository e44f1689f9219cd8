"""A table that grows for hours and appears whole: rows collect in a file beside it, which a killed run goes on with."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clips_jax.config import ConfigError

ENDINGS = (".jsonl", ".parquet")
_ROWS_AT_ONCE = 10_000


class GrowingTable:
    """Rows of text columns, as JSON lines or parquet. Rows with an "error" end up in a list of their own.

    Attributes:
      path: the table. partial: rows so far, JSON lines after one of settings. bad: the list of errors.
    """

    def __init__(self, path: str):
        """Raises `ConfigError` if the ending is unknown, the folder is missing or the table is already there."""
        self.path, self.partial, self.bad = path, f"{path}.partial", f"{path}.bad.jsonl"
        if not path.endswith(ENDINGS):
            raise ConfigError(f"--out {path}: the name must end in {' or '.join(ENDINGS)}.")
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise ConfigError(f"--out {path}: there is no folder {os.path.dirname(path)}.")
        if os.path.exists(path):
            raise ConfigError(f"--out {path}: already there, whole. Remove it to write it again.")

    def open(self, settings: Mapping[str, Any]) -> int:
        """Begins, or goes on with what a killed run left; returns the number of rows that are there.

        Raises `ConfigError` if that run had other settings.
        """
        header = json.dumps(settings, sort_keys=True) + "\n"
        kept, count = b"", -1
        if os.path.exists(self.partial):
            with open(self.partial, "rb") as file:
                content = file.read()
            kept = content[: content.rfind(b"\n") + 1]  # the last line may be torn
            count = kept.count(b"\n") - 1
        if count < 0:
            kept, count = header.encode(), 0
        elif kept[: kept.index(b"\n") + 1] != header.encode():
            raise ConfigError(
                f"{self.partial} was begun with other settings, or other pictures: "
                f"{kept.splitlines()[0].decode()}. Use these, or remove it to begin anew."
            )
        with open(self.partial, "wb") as file:
            file.write(kept)
        return count

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows; what this returns from survives a kill."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with open(self.partial, "ab") as file:
            file.write(lines.encode("utf-8", "replace"))

    def finish(self) -> tuple[int, int]:
        """Writes the table and the list of errors, if there are any; returns the number of rows in each."""
        temporary = f"{self.path}.tmp"
        write = _write_parquet if self.path.endswith(".parquet") else _write_jsonl
        written = write(temporary, (row for row in self._rows() if "error" not in row))
        left_out = _write_jsonl(f"{self.bad}.tmp", (row for row in self._rows() if "error" in row))
        if left_out:
            os.replace(f"{self.bad}.tmp", self.bad)
        else:
            os.remove(f"{self.bad}.tmp")
        os.replace(temporary, self.path)
        os.remove(self.partial)
        return written, left_out

    def _rows(self) -> Iterator[dict[str, Any]]:
        with open(self.partial, encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)


def _write_jsonl(path: str, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(path: str, rows: Iterator[dict[str, Any]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in ("key", "re_caption", "alt_text", "image", "sha256")])
    count, waiting = 0, []
    with pq.ParquetWriter(path, schema) as writer:
        for row in rows:
            waiting.append(row)
            if len(waiting) == _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                count, waiting = count + len(waiting), []
        writer.write_table(pa.Table.from_pylist(waiting, schema))
    return count + len(waiting)
