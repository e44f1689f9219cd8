"""What is in a tar shard: samples by key, as img2dataset and webdataset write them. Nothing is ever extracted to disk.

A sample is all members whose names agree up to the first dot of the base name: `a/000017.jpg`, `a/000017.txt` and
`a/000017.json` are the parts `jpg`, `txt` and `json` of sample `a/000017`. They may lie anywhere in the tar.
"""

import dataclasses
import json
import posixpath
import tarfile
from typing import Any, BinaryIO

PICTURE_PARTS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif", "jpe", "img", "image")
TAR_ENDINGS = (".tar",)
COMPRESSED_TAR_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclasses.dataclass
class Sample:
    """One sample. `parts`: lower-case extension -> (offset, size) of its bytes in the tar."""

    key: str
    parts: dict[str, tuple[int, int]]

    @property
    def picture(self) -> str:
        """The part that holds the picture, "" if there is none."""
        return next((part for part in self.parts if part in PICTURE_PARTS), "")


@dataclasses.dataclass(frozen=True)
class Rejected:
    """Something that did not become a record: which one, a reason to count by, and what was found."""

    key: str
    reason: str
    detail: str = ""


@dataclasses.dataclass
class TarIndex:
    """What a tar holds.

    Attributes:
      samples: those with a picture, in the order of their first members.
      rejected: everything else that is not a folder.
      has_end: whether the tar ends with its end marker; if not, its writer may have been killed.
    """

    samples: list[Sample]
    rejected: list[Rejected]
    has_end: bool = True


def index_tar(file: BinaryIO, size: int) -> TarIndex:
    """Reads the headers of an uncompressed tar; damage is reported in the result, not raised.

    Args:
      file: seekable.
      size: its bytes.
    """
    builder = _IndexBuilder(size)
    file.seek(0)  # tarfile starts where the file stands
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # it would remember every header  # pyright: ignore[reportAttributeAccessIssue]
                builder.add(member)
            # tarfile takes a header that it cannot read for the end.
            file.seek(tar.offset)
            block = file.read(tarfile.BLOCKSIZE)
        if any(block):
            builder.damage("damaged_tar", f"no readable header at byte {tar.offset}")
        return builder.finish(has_end=bool(block))
    except (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError) as error:
        builder.damage("damaged_tar" if builder.samples else "unreadable_tar", str(error))
    return builder.finish(has_end=True)  # its absence is no news


class _IndexBuilder:
    """Sorts members into samples."""

    def __init__(self, size: int):
        self.samples: dict[str, Sample] = {}
        self._size = size
        self._rejected: list[Rejected] = []  # repeats
        self._repeats: dict[str, dict[str, int]] = {}
        self._refused: dict[str, Rejected] = {}  # by key: one report for all members of a sample
        self._last_key = ""

    def add(self, member: tarfile.TarInfo) -> None:
        name = _readable(member.name)
        key, part = split_name(name)
        problem = _problem(member, name)
        if problem:
            self._refused.setdefault(key or name, Rejected(name, *problem))
            return
        if member.isdir():
            return
        if not key:
            self._refused.setdefault(name, Rejected(name, "not_a_sample", "its name has no key and extension"))
            return
        self._last_key = key
        sample = self.samples.setdefault(key, Sample(key, {}))
        if member.offset_data + member.size > self._size:
            self._refused[key] = Rejected(key, "truncated_tar", f"{name} is cut short")
        elif part not in sample.parts:
            sample.parts[part] = (member.offset_data, member.size)
        else:
            self._repeat(key, part, name)

    def _repeat(self, key: str, part: str, name: str) -> None:
        """One report for the jpg, txt and json of the same repeat."""
        counts = self._repeats.setdefault(key, {})
        reported = max(counts.values(), default=0)
        counts[part] = counts.get(part, 0) + 1
        if counts[part] > reported:
            self._rejected.append(Rejected(key, "duplicate_key", f"{name} comes again; the first one is used"))

    def damage(self, reason: str, detail: str) -> None:
        """The tar cannot be read on; the sample in hand may lack what the damage hides."""
        self._refused.setdefault(self._last_key, Rejected(self._last_key, reason, detail))

    def finish(self, has_end: bool) -> TarIndex:
        whole = []
        for key, sample in self.samples.items():
            if key in self._refused:
                continue
            if sample.picture:
                whole.append(sample)
            else:
                self._refused[key] = Rejected(key, "no_picture", f"its parts are {', '.join(sample.parts)}")
        return TarIndex(whole, [*self._rejected, *self._refused.values()], has_end)


def split_name(name: str) -> tuple[str, str]:
    """("a/b", "jpg") for "a/b.JPG"; ("", "") for a name without a key or an extension, such as ".DS_Store"."""
    folder, base = posixpath.split(name)
    stem, dot, part = base.partition(".")
    if not stem or not dot or not part:
        return "", ""
    return posixpath.join(folder, stem).removeprefix("./"), part.lower()


def _readable(name: str) -> str:
    """Bytes that are not UTF-8, which tarfile hides in surrogates, become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _problem(member: tarfile.TarInfo, name: str) -> tuple[str, str] | None:
    if member.issym() or member.islnk():
        return "link", f"to {_readable(member.linkname)}"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "not_a_file", f"tar member of type {member.type!r}"
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":":
        return "unsafe_path", "absolute, or leads out of its folder"
    return None


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object; `ValueError` says what it is instead."""
    try:
        found = json.loads(data.decode("utf-8", "surrogateescape"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__}, not an object")
    return found
