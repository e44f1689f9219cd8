"""Somebody's pictures by position: files, folders and tars, for what embeds, captions and searches them."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from clips_jax.data.examples import BadRecord
from clips_jax.data.images import BadImage
from clips_jax.data.tar_records import TarSource, is_tars
from clips_jax.preprocessing import Preprocessing

# Names that are taken for pictures in a folder; what is inside decides whether they are. Other files are not looked at.
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Pictures:
    """Pictures in order: as the paths are given, within a folder sorted by name, within tars as they lie.

    A record is a dict: "id" (the key that joins to other tables: a tar's key, a file's path within its folder without
    its ending), "image" (the undecoded file; b"" if it cannot be read) and "alt_text" (the text beside it: the tar's
    .txt or its JSON's caption, a file's .txt; else "").

    Attributes:
      names: by position; a file's path, or a tar's path and key ("shards/3.tar#000012"), for shards may repeat keys.
      keys: by position what is the "id" of the record.
    """

    def __init__(self, paths: Sequence[str]):
        """Opens `paths`: picture files, folders (with all folders in them), tars as `data.dataset` takes them.

        A folder without pictures stands for the tars in it.

        Raises:
          FileNotFoundError: a path is not there, or a folder has neither; names it.
        """
        self.names: list[str] = []
        self.keys: list[str] = []
        self._places: list[tuple[TarSource | None, int]] = []
        for path in paths:
            if is_tars(path):
                self._add_tars(path)
            elif os.path.isdir(path):
                self._add_folder(path)
            elif os.path.isfile(path):
                self._add_file(path, os.path.basename(path))
            else:
                raise FileNotFoundError(f"{path}: no such picture, folder or tar.")

    def _add_tars(self, pattern: str) -> None:
        source = TarSource(pattern)
        for position, key in enumerate(source.keys()):
            self.names.append(f"{source.file(position)}#{key}")
            self.keys.append(key)
            self._places.append((source, position))

    def _add_folder(self, folder: str) -> None:
        files = list_pictures(folder)
        tars = [name for name in sorted(os.listdir(folder)) if is_tars(name) and not files]
        for name in tars:
            self._add_tars(os.path.join(folder, name))
        if not files and not tars:
            raise FileNotFoundError(
                f"{folder}: no picture in it, and no tar; names must end in {', '.join(PICTURE_ENDINGS)}, or .tar."
            )
        for name in files:
            self._add_file(os.path.join(folder, name), name)

    def _add_file(self, path: str, name: str) -> None:
        self.names.append(path)
        self.keys.append(os.path.splitext(name)[0].replace(os.sep, "/"))
        self._places.append((None, 0))

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, positions: Sequence[int]) -> "Pictures":
        """Only those at `positions`."""
        part = Pictures(())
        for name in ("names", "keys", "_places"):
            setattr(part, name, [getattr(self, name)[position] for position in positions])
        return part

    def read(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The records at `positions`, in that order."""
        return [self._read(position) for position in positions]

    def _read(self, position: int) -> dict[str, Any]:
        source, place = self._places[position]
        record = {"id": self.keys[position], "image": b"", "alt_text": ""}
        try:
            if source is not None:
                found = source.read_each([place], ("image", "alt_text"))[0]
                if isinstance(found, BadRecord):
                    return record
                return record | {"image": found["image"], "alt_text": found["alt_text"]}
            path = self.names[position]
            with open(path, "rb") as file:
                record["image"] = file.read()
            text = os.path.splitext(path)[0] + ".txt"
            if os.path.isfile(text):
                with open(text, encoding="utf-8", errors="replace") as file:
                    record["alt_text"] = file.read().strip()
        except (OSError, ValueError):
            pass  # b"" is no picture; whoever decodes it counts it
        return record

    def states(self) -> list[tuple[int, int]]:
        """By position what changes with the picture: size and time of change (ns) of its file or tar; -1 if gone."""
        tars: dict[str, tuple[int, int]] = {}
        found = []
        for name, (source, place) in zip(self.names, self._places, strict=True):
            if source is None:
                found.append(_state(name))
            else:
                tar = source.file(place)
                if tar not in tars:
                    tars[tar] = _state(tar)
                found.append(tars[tar])
        return found


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some pictures in a row, decoded.

    Attributes:
      start: position of the first.
      records: without the bytes of their pictures; with "sha256" of these, in hexadecimal.
      images: uint8 (n, S, S, 3); grey where the picture cannot be read.
      errors: by record why its picture cannot be read, "" if it can.
    """

    start: int
    records: list[dict[str, Any]]
    images: np.ndarray
    errors: list[str]


def decoded_chunks(
    pictures: Pictures, preprocessing: Preprocessing, chunk_size: int, start: int = 0
) -> Iterator[Chunk]:
    """All pictures from `start` on, `chunk_size` at a time; the next chunk is decoded while the caller uses one.

    Args:
      preprocessing: the model's.
    """
    size = preprocessing.image_size
    grey = np.full((size, size, 3), 128, np.uint8)

    def decode(record: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray, str]:
        data = record.pop("image")
        record["sha256"] = hashlib.sha256(data).hexdigest()
        try:
            return record, preprocessing.pixels(data), ""
        except BadImage as error:
            return record, grey, str(error) if data else "the file cannot be read, or is empty"

    def load(first: int) -> Chunk:
        positions = range(first, min(first + chunk_size, len(pictures)))
        found = list(decoders.map(decode, pictures.read(positions)))
        images = np.stack([image for _, image, _ in found])
        return Chunk(first, [record for record, _, _ in found], images, [error for _, _, error in found])

    starts = range(start, len(pictures), chunk_size)
    with ThreadPoolExecutor(os.cpu_count()) as decoders, ThreadPoolExecutor(1) as ahead:
        coming = [ahead.submit(load, first) for first in starts[:1]]
        for first in starts:
            chunk = coming.pop().result()
            if first + chunk_size < len(pictures):
                coming.append(ahead.submit(load, first + chunk_size))
            yield chunk


def list_pictures(folder: str) -> list[str]:
    """Paths within `folder` of its picture files, also in folders inside it, sorted; hidden ones are left out."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if name.lower().endswith(PICTURE_ENDINGS) and not name.startswith(".")]
        found += [os.path.relpath(os.path.join(where, name), folder) for name in names]
    return sorted(found)


def _state(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
