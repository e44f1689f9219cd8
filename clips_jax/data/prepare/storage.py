"""Files that appear whole or not at all, locally or on any file system that Apache Beam knows."""

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

INCOMPLETE = ".incomplete-"


def is_local(path: str) -> bool:
    """Whether `path` is of this machine's file system."""
    return "://" not in path


def _file_systems() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
    """Gives a local name to write to; the file gets its own name when the block ends without an error.

    Names are unique, so two workers that do the same task cannot mix their bytes.
    """
    if is_local(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        incomplete = f"{path}{INCOMPLETE}{uuid.uuid4().hex[:8]}"
        try:
            yield incomplete
            os.replace(incomplete, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(incomplete)
        return
    from apache_beam.io.filesystem import CompressionTypes

    files = _file_systems()
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "file")
        yield local
        incomplete = f"{path}{INCOMPLETE}{uuid.uuid4().hex[:8]}"
        with (
            open(local, "rb") as source,
            files.create(incomplete, compression_type=CompressionTypes.UNCOMPRESSED) as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)
        if files.exists(path):
            files.delete([path])
        files.rename([incomplete], [path])


def write_text(path: str, text: str) -> None:
    """Writes a whole file."""
    with whole_file(path) as incomplete, open(incomplete, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)  # keys of damaged tables may hold what UTF-8 cannot


def write_json(path: str, value: Any) -> None:
    """Writes a whole file."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str) -> Any:
    """The JSON in a file; None if the file is missing or no JSON."""
    try:
        with open_bytes(path) as file:
            return json.loads(file.read())
    except (FileNotFoundError, ValueError):
        return None


def open_bytes(path: str) -> Any:
    """A binary file to read; `FileNotFoundError` if it is missing."""
    if is_local(path):
        return open(path, "rb")
    from apache_beam.io.filesystem import CompressionTypes

    files = _file_systems()
    if not files.exists(path):
        raise FileNotFoundError(path)
    return files.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def exists(path: str) -> bool:
    """Whether there is a file or folder of this name."""
    return os.path.exists(path) if is_local(path) else _file_systems().exists(path)


def state(path: str) -> tuple[int, float]:
    """Size in bytes and time of the last change."""
    if is_local(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime
    metadata = _file_systems().match([path])[0].metadata_list[0]
    return metadata.size_in_bytes, metadata.last_updated_in_seconds


def names(folder: str) -> list[str]:
    """Sorted names of the files in a folder; none if there is no such folder."""
    if is_local(folder):
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = _file_systems().match([f"{folder}/*"])[0].metadata_list
    return sorted(os.path.basename(file.path) for file in found)


def remove(path: str) -> None:
    """Removes a file if it is there."""
    if is_local(path):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    elif exists(path):
        _file_systems().delete([path])


def scratch(work: str) -> str:
    """A local folder for copies: inside `work`, or, where that is remote, the one for temporary files."""
    return os.path.join(work, "scratch") if is_local(work) else tempfile.gettempdir()


@contextlib.contextmanager
def scratch_inside(work: str) -> Iterator[None]:
    """Has all temporary files, those of Beam and of worker processes, made in `work`; removes them at the end.

    Before it starts it removes what a killed run left. Where `work` is remote, temporary files lie where they do else.
    """
    if not is_local(work):
        yield
        return
    folder, before = os.path.abspath(scratch(work)), (tempfile.tempdir, os.environ.get("TMPDIR"))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    try:
        yield
    finally:
        tempfile.tempdir = before[0]
        del os.environ["TMPDIR"]
        if before[1] is not None:
            os.environ["TMPDIR"] = before[1]
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def local_copy(path: str, scratch: str) -> Iterator[str]:
    """A local file with the bytes of `path`: itself, or a copy that goes when the block ends.

    Args:
      path: any file.
      scratch: local folder for copies.
    """
    if is_local(path):
        yield path
        return
    os.makedirs(scratch, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=scratch) as copy, open_bytes(path) as source:
        shutil.copyfileobj(source, copy, 1 << 20)
        copy.flush()
        yield copy.name


def json_line(value: Any) -> bytes:
    """A line of a JSON-lines file, ASCII, so that no surrogate of a damaged name can fail to be written."""
    return json.dumps(value).encode() + b"\n"
