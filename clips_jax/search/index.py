"""An index of pictures: embeddings in a memory-mapped Faiss file, names in parquet, and what both were made with.

Search is exact (inner products with every embedding): well below a second up to a million pictures.
Embeddings and names are written under new names and `index.json`, which points at them, is replaced last: an index is
the old one or the new one, never a mixture.
"""

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from typing import Any

import faiss
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clips_jax.config import ConfigError
from clips_jax.data.pictures import Pictures, decoded_chunks
from clips_jax.pretrained import Positions, Pretrained
from clips_jax.progress import Progress

META_FILE = "index.json"
_SCHEMA = pa.schema([("name", pa.string()), ("size", pa.int64()), ("time", pa.int64()), ("error", pa.string())])


@dataclasses.dataclass(frozen=True)
class Changes:
    """How the pictures differ from those in the index, in numbers."""

    new: int
    changed: int
    gone: int

    def __str__(self) -> str:
        parts = [f"{count:,} {name}" for name, count in dataclasses.asdict(self).items() if count]
        return ", ".join(parts) or "nothing changed"


class PictureIndex:
    """An index opened for searching.

    Attributes:
      meta: what it was made with: "model" (path), "step", "positions", "fingerprint", "paths", "dimension".
      names: of the pictures in it, by number.
      bad: by name why pictures are not in it.
    """

    def __init__(self, folder: str):
        """Opens it; the embeddings stay on disk until they are needed. Raises `FileNotFoundError` if there is none."""
        path = os.path.join(folder, META_FILE)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no index there; make one: python -m clips_jax.search index PICTURES …")
        with open(path, encoding="utf-8") as file:
            self.meta: dict[str, Any] = json.load(file)
        rows = pq.read_table(os.path.join(folder, self.meta["pictures"])).to_pylist()
        self.names = [row["name"] for row in rows if not row["error"]]
        self.bad = {row["name"]: row["error"] for row in rows if row["error"]}
        self._states = {row["name"]: (row["size"], row["time"]) for row in rows}
        self._vectors = faiss.read_index(os.path.join(folder, self.meta["vectors"]), faiss.IO_FLAG_MMAP_IFC)
        if self._vectors.ntotal != len(self.names):
            raise ConfigError(f"{folder}: {self._vectors.ntotal} embeddings, {len(self.names)} names: make it anew.")

    def search(self, query_E: np.ndarray, count: int) -> list[tuple[int, float]]:
        """The `count` nearest pictures to a normalised embedding, best first: (number, cosine)."""
        scores, numbers = self._vectors.search(query_E[None].astype(np.float32), min(count, len(self.names)))
        return [(int(number), float(score)) for number, score in zip(numbers[0], scores[0], strict=True)]

    def embedding(self, number: int) -> np.ndarray:
        """float32 (E,) of the picture with this number."""
        return self._vectors.reconstruct(number)

    def embeddings(self) -> dict[str, np.ndarray]:
        """By name of a picture its embedding."""
        return {name: self._vectors.reconstruct(number) for number, name in enumerate(self.names)}

    def changes(self, pictures: Pictures) -> Changes:
        """What happened to the pictures since they were indexed."""
        now = dict(zip(pictures.names, pictures.states(), strict=True))
        kept = now.keys() & self._states.keys()
        changed = sum(now[name] != self._states[name] for name in kept)
        return Changes(len(now) - len(kept), changed, len(self._states) - len(kept))

    def unchanged(self, name: str, state: tuple[int, int]) -> bool:
        """Whether the picture is here as it is now."""
        return self._states.get(name) == state


def fingerprint(model: Pretrained) -> str:
    """A hash of everything that an embedding depends on: parameters, architecture, preprocessing, tokenizer."""
    digest = hashlib.blake2b(digest_size=16)
    parts = (model.config.model, model.preprocessing, model.tokenizer.identity())
    digest.update(repr(parts).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Made:
    """What `make_index` did: pictures in the index, how many of them were embedded now, and how many are bad."""

    total: int
    embedded: int
    bad: int


def make_index(
    folder: str, paths: Sequence[str], model: Pretrained, batch_size: int, positions: Positions = ""
) -> Made:
    """Embeds the pictures that an index in this folder does not hold yet, and writes the index.

    Args:
      folder: of the index; created.
      paths: as `Pictures` takes them.
      model: embeds; with another one than before, everything is embedded anew.
      batch_size: pictures at once.
      positions: what `load` was told, for whoever opens the index.

    Raises:
      FileNotFoundError: no pictures. ConfigError: none of them can be read.
    """
    paths = [os.path.abspath(path) for path in paths]
    pictures = Pictures(paths)
    identity, states = fingerprint(model), pictures.states()
    held: dict[str, np.ndarray] = {}
    errors: dict[str, str] = {}
    if os.path.isfile(os.path.join(folder, META_FILE)):
        old = PictureIndex(folder)
        if old.meta["fingerprint"] == identity:
            same = {n for n, state in zip(pictures.names, states, strict=True) if old.unchanged(n, state)}
            held = {name: vector for name, vector in old.embeddings().items() if name in same}
            errors = {name: error for name, error in old.bad.items() if name in same}
    missing = [i for i, name in enumerate(pictures.names) if name not in held and name not in errors]
    if missing:
        for name, result in _embed(pictures.subset(missing), model, batch_size).items():
            if isinstance(result, str):
                errors[name] = result
            else:
                held[name] = result
    if not held:
        raise ConfigError(f"none of the {len(pictures):,} pictures can be read: {next(iter(errors.values()))}")
    rows = [
        {"name": name, "size": size, "time": time, "error": errors.get(name, "")}
        for name, (size, time) in zip(pictures.names, states, strict=True)
    ]
    vectors = np.stack([held[name] for name in pictures.names if name in held])
    meta = {"model": os.path.abspath(model.path), "step": model.step, "fingerprint": identity, "paths": paths}
    meta["positions"] = positions
    _write(folder, vectors, rows, meta)
    return Made(len(vectors), len(missing), len(errors))


def _embed(pictures: Pictures, model: Pretrained, batch_size: int) -> dict[str, np.ndarray | str]:
    """By name the embedding, or why there is none."""
    chunk_size = min(batch_size, len(pictures))
    progress, found = Progress("pictures", len(pictures)), {}
    for chunk in decoded_chunks(pictures, model.preprocessing, chunk_size):
        last = len(chunk.records) - 1
        row = [min(i, last) for i in range(chunk_size)]  # always as many: nothing compiles twice
        images = chunk.images
        vectors = model.encoder.images(lambda rows, images=images, row=row: images[[row[i] for i in rows]], chunk_size)
        for i, error in enumerate(chunk.errors):
            found[pictures.names[chunk.start + i]] = error or vectors[i]
        progress.show(len(found))
    return found


def _write(folder: str, vectors: np.ndarray, rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
    os.makedirs(folder, exist_ok=True)
    version = uuid.uuid4().hex[:12]
    files = {"vectors": f"vectors-{version}.faiss", "pictures": f"pictures-{version}.parquet"}
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    faiss.write_index(index, os.path.join(folder, files["vectors"]))
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), os.path.join(folder, files["pictures"]))
    temporary = os.path.join(folder, f".{META_FILE}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(meta | files | {"dimension": vectors.shape[1]}, file, indent=2)
    os.replace(temporary, os.path.join(folder, META_FILE))
    for name in os.listdir(folder):  # of older versions, and of runs that were killed
        if name.startswith(("vectors-", "pictures-")) and name not in files.values():
            os.remove(os.path.join(folder, name))
