"""What is in a tar shard: samples by key, as img2dataset and webdataset write them. Nothing is ever extracted to disk.

A sample is all members whose names agree up to the ending: `a/000017.jpg`, `a/000017.txt` and `a/000017.json` are the
parts `jpg`, `txt` and `json` of sample `a/000017`. They may lie anywhere in the tar. Where only that gives a whole
sample, names agree up to the first dot, as in webdataset: `5.image.jpg` and `5.caption.txt` are sample `5`.
"""

import dataclasses
import json
import posixpath
import tarfile
from collections import defaultdict
from typing import Any, BinaryIO

PICTURE_PARTS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif", "jpe", "img", "image")
# Parts that hold a text, beside `txt`; each becomes a field of its name.
TEXT_PARTS = ("caption", "alt_text", "text", "title", "re_caption", "recaption")
TAR_ENDINGS = (".tar",)
COMPRESSED_TAR_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_MAGIC, _MAGIC_AT = b"ustar", 257  # in every header but those of the 1970s
_DAMAGE = ("truncated_tar", "damaged_tar", "unreadable_tar")
_SCANNED = 1 << 20  # bytes looked through at once


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

    After damage it goes on at the next header, and so it does after an end marker: `cat a.tar b.tar` is read as both.

    Args:
      file: seekable.
      size: its bytes.
    """
    builder = _IndexBuilder(size)
    position, has_end = 0, False
    while True:
        stop, problem = _read_headers(file, position, builder)
        file.seek(min(stop, size))
        block = file.read(tarfile.BLOCKSIZE)
        following, junk = _next_header(file, stop, size)
        if any(block) or (not block and problem):
            builder.damage(stop, following, problem)
        elif junk:
            builder.damage(stop, following, "bytes behind the end marker that are no tar")
        has_end = bool(block)
        if following is None:
            return builder.finish(has_end)
        position = following


def _read_headers(file: BinaryIO, position: int, builder: "_IndexBuilder") -> tuple[int, str]:
    """Adds all members from `position` on; returns where no header could be read, and why if that is no end."""
    stop = position
    try:
        file.seek(position)  # tarfile starts where the file stands
        with tarfile.open(fileobj=file, mode="r:") as tar:
            try:
                while (member := tar.next()) is not None:
                    tar.members = []  # it would remember every header  # pyright: ignore[reportAttributeAccessIssue]
                    if member.size < 0:
                        raise ValueError(f"a member of {member.size} bytes")
                    builder.add(member)
            finally:
                stop = max(position, tar.offset)
        return stop, ""  # tarfile takes a header that it cannot read for the end
    except (tarfile.TarError, EOFError, ValueError, OverflowError, IndexError) as error:
        return stop, str(error)


def _next_header(file: BinaryIO, position: int, size: int) -> tuple[int | None, bool]:
    """The first readable header behind the block at `position`, None without one; whether other bytes lie between."""
    file.seek(position + tarfile.BLOCKSIZE)
    start, junk = position + tarfile.BLOCKSIZE, False
    while start < size:
        data = file.read(_SCANNED)  # whole blocks, as it is a multiple of theirs
        if not data:
            break
        found = data.find(_MAGIC)
        while found >= 0:
            block = found - _MAGIC_AT
            if block % tarfile.BLOCKSIZE == 0 and _is_header(data[block : block + tarfile.BLOCKSIZE]):
                return start + block, junk or any(data[:block])
            found = data.find(_MAGIC, found + 1)
        junk = junk or data.count(0) < len(data)
        start += len(data)
    return None, junk


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")  # compares its checksum
    except (tarfile.HeaderError, ValueError):
        return False
    return True


class _IndexBuilder:
    """Sorts members into samples."""

    def __init__(self, size: int):
        self.samples: dict[str, Sample] = {}
        self._size = size
        self._rejected: list[Rejected] = []  # repeats
        self._repeats: dict[str, dict[str, int]] = {}
        self._refused: dict[str, Rejected] = {}  # by key: one report for all members of a sample
        self._damages: list[tuple[list[str], Rejected]] = []  # with the samples beside each
        self._after_damage = False
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
        if self._after_damage:
            self._damages[-1][0].append(key)
            self._after_damage = False
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

    def damage(self, start: int, following: int | None, problem: str) -> None:
        """The tar cannot be read at `start`; the samples on both sides may lack what lies there."""
        if start > self._size:
            return  # the last member is cut short, which is reported there
        reason = "damaged_tar" if self.samples or following is not None else "unreadable_tar"
        detail = problem or f"no readable header at byte {start}"
        if following is not None:
            detail += f"; read on at byte {following}"
        self._damages.append(([self._last_key], Rejected("", reason, detail)))
        self._after_damage = True

    def finish(self, has_end: bool) -> TarIndex:
        self._merge()
        last = [] if has_end or self._damages else [self._last_key]  # may be half written
        usual = self._usual_parts(last)
        if usual is not None:
            detail = "the tar ends here, and a part is missing that all others have"
            self._refuse_incomplete(last, Rejected("", "truncated_tar", detail), usual)
        for keys, damage in self._damages:
            if not self._refuse_incomplete(keys, damage, usual):
                self._rejected.append(damage)
        whole = []
        for key, sample in self.samples.items():
            if key in self._refused:
                continue
            if sample.picture:
                whole.append(sample)
            else:
                self._refused[key] = Rejected(key, "no_picture", f"its parts are {', '.join(sample.parts)}")
        rejected = [*self._rejected, *self._refused.values()]
        # That the end marker is missing is no news where the end is damaged.
        return TarIndex(whole, rejected, has_end or any(entry.reason in _DAMAGE for entry in rejected))

    def _usual_parts(self, besides: list[str]) -> set[str] | None:
        """The parts that all samples have but `besides` and those beside damage; None if there are no others."""
        touched = {*besides, *self._refused, *(key for keys, _ in self._damages for key in keys)}
        others = [set(sample.parts) for key, sample in self.samples.items() if key not in touched]
        return set.intersection(*others) if others else None

    def _refuse_incomplete(self, keys: list[str], why: Rejected, usual: set[str] | None) -> bool:
        """Refuses those of `keys` that lack a usual part, all if none is known; returns whether there are any."""
        lost = [key for key in keys if key in self.samples and (usual is None or usual - set(self.samples[key].parts))]
        for key in lost:
            self._refused.setdefault(key, Rejected(key, why.reason, why.detail))
        return bool(lost)

    def _merge(self) -> None:
        """Puts what is no sample by itself together by webdataset's rule, where that leaves one picture."""
        by_start: dict[str, list[str]] = defaultdict(list)
        for key in self.samples:
            folder, stem = posixpath.split(key)
            by_start[posixpath.join(folder, stem.partition(".")[0])].append(key)
        merged: dict[str, str] = {}
        for start, keys in by_start.items():
            partial = [key for key in keys if key != start and not _is_whole(self.samples[key])]
            pictures = [key for key in {*partial, start} & set(keys) if self.samples[key].picture]
            if len({*partial, start} & set(keys)) > 1 and (
                len(pictures) == 1 or (start in keys and _is_whole(self.samples[start]))
            ):
                merged |= {key: start for key in partial}
        if not merged:
            return
        samples: dict[str, Sample] = {}
        for key, sample in self.samples.items():
            start = merged.get(key, key)
            target = samples.setdefault(start, Sample(start, {}))
            own = self.samples.get(start, target)
            for part, place in sample.parts.items():
                named = part in {**own.parts, **target.parts} or (part in PICTURE_PARTS and bool(own.picture))
                target.parts[f"{key.removeprefix(start)[1:]}.{part}" if start != key and named else part] = place
        self.samples = samples
        self._refused = {merged.get(key, key): rejected for key, rejected in self._refused.items()}
        self._damages = [([merged.get(key, key) for key in keys], damage) for keys, damage in self._damages]
        self._last_key = merged.get(self._last_key, self._last_key)


def _is_whole(sample: Sample) -> bool:
    """Whether it has a picture and something beside it."""
    return bool(sample.picture) and len(sample.parts) > 1


def split_name(name: str) -> tuple[str, str]:
    """("a/b.c", "jpg") for "a/b.c.JPG"; ("", "") for a name without a key or an extension, such as ".DS_Store"."""
    folder, base = posixpath.split(name)
    stem, _, part = base.rpartition(".")
    if not stem or not part or base.startswith("."):
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
        found = json.loads(data.decode(json.detect_encoding(data), "surrogateescape"))  # UTF-8, also with a BOM, or -16
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__}, not an object")
    return found
