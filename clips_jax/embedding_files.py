"""Where `embed` writes: an `.npz`, which is collected and written at the end, or a `.parquet`, which grows.

Both are written under a temporary name and renamed when whole.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

ENDINGS = (".npz", ".parquet")
# An .npz holds strings as rows of the width of the longest; beyond this many bytes one long text costs too much.
MOST_STRING_BYTES = 1 << 30


class Npz:
    """Arrays `image_names`, `image_embeddings`, `texts`, `text_embeddings`, `token_ids`, `bad_images`, …"""

    def __init__(self, path: str):
        self._path, self._temporary = path, f"{path}.tmp-{os.getpid()}"
        self._parts: dict[str, list[Any]] = {}

    def images(self, names: Sequence[str], embeddings_NxE: np.ndarray) -> None:
        """Adds pictures, in order."""
        self._add(image_names=names, image_embeddings=embeddings_NxE)

    def texts(self, texts: Sequence[str], embeddings_NxE: np.ndarray, tokens_NxL: np.ndarray) -> None:
        """Adds texts, in order, with the ids that the text tower read."""
        self._add(texts=texts, text_embeddings=embeddings_NxE, token_ids=tokens_NxL)

    def bad_images(self, names: Sequence[str], reasons: Sequence[str]) -> None:
        """Adds pictures that have no row."""
        self._add(bad_images=names, bad_image_reasons=reasons)

    def _add(self, **columns: Any) -> None:
        for name, part in columns.items():
            self._parts.setdefault(name, []).append(part)

    def finish(self) -> None:
        """Writes the file; raises `ValueError` if its strings would be unreasonably large."""
        arrays = {name: self._joined(name, parts) for name, parts in self._parts.items()}
        with open(self._temporary, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] (takes them for allow_pickle)
        os.replace(self._temporary, self._path)

    def _joined(self, name: str, parts: list[Any]) -> np.ndarray:
        if isinstance(parts[0], np.ndarray):
            return np.concatenate(parts)
        strings = [string for part in parts for string in part]
        longest = max(map(len, strings), default=0)
        if 4 * longest * len(strings) > MOST_STRING_BYTES:
            raise ValueError(
                f"{self._path}: {name} would take {4 * longest * len(strings) >> 20} MB, because .npz gives each of "
                f"{len(strings)} strings the width of the longest ({longest} characters). Write a .parquet instead."
            )
        return np.array(strings, dtype=f"<U{max(longest, 1)}")  # not object: it would be pickled

    def abandon(self) -> None:
        """Leaves nothing behind."""
        _remove(self._temporary)


class Parquet:
    """Rows of `kind` ("image", "text" or "bad_image"), `name`, `embedding` and `token_ids`.

    `name` is the file's name, or the text itself; of a bad image it is followed by the reason in `note`.
    """

    def __init__(self, path: str):
        import pyarrow as pa  # here, so that embedding to .npz does without
        import pyarrow.parquet as pq

        self._pa, self._path, self._temporary = pa, path, f"{path}.tmp-{os.getpid()}"
        self._vector = pa.list_(pa.float32())  # a fixed-size list with nulls cannot be read back (pyarrow 25)
        fields = {"kind": pa.string(), "name": pa.string(), "embedding": self._vector}
        self._schema = pa.schema(fields | {"token_ids": pa.list_(pa.int32()), "note": pa.string()})
        self._writer = pq.ParquetWriter(self._temporary, self._schema)

    def images(self, names: Sequence[str], embeddings_NxE: np.ndarray) -> None:
        """Adds a row group of pictures."""
        self._write("image", names, embeddings_NxE, None, None)

    def texts(self, texts: Sequence[str], embeddings_NxE: np.ndarray, tokens_NxL: np.ndarray) -> None:
        """Adds a row group of texts, with the ids that the text tower read."""
        self._write("text", texts, embeddings_NxE, tokens_NxL, None)

    def bad_images(self, names: Sequence[str], reasons: Sequence[str]) -> None:
        """Adds rows without an embedding."""
        self._write("bad_image", names, None, None, reasons)

    def _write(
        self,
        kind: str,
        names: Sequence[str],
        embeddings_NxE: np.ndarray | None,
        tokens_NxL: np.ndarray | None,
        notes: Sequence[str] | None,
    ) -> None:
        pa, rows = self._pa, len(names)
        vectors = pa.nulls(rows, self._vector)
        if embeddings_NxE is not None:
            starts = np.arange(0, embeddings_NxE.size + 1, embeddings_NxE.shape[1], dtype=np.int32)
            vectors = pa.ListArray.from_arrays(starts, pa.array(embeddings_NxE.reshape(-1)))
        tokens = [None] * rows if tokens_NxL is None else list(tokens_NxL)
        columns = [
            pa.array([kind] * rows, pa.string()),
            pa.array(list(names), pa.string()),
            vectors,
            pa.array(tokens, pa.list_(pa.int32())),
            pa.array([None] * rows if notes is None else list(notes), pa.string()),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def finish(self) -> None:
        """Completes the file."""
        self._writer.close()
        os.replace(self._temporary, self._path)

    def abandon(self) -> None:
        """Leaves nothing behind."""
        self._writer.close()
        _remove(self._temporary)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
