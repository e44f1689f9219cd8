"""Lists of files from patterns: `/data/{00000..00012}.tar`, `gs://bucket/*.parquet`, a folder."""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILDCARDS = re.compile(r"[*?\[]")


def expand_braces(pattern: str) -> Iterator[str]:
    """Bash's braces: `{000..012}` counts with leading zeros, `{a,b}` lists; others stay as they are."""
    for braces in _BRACES.finditer(pattern):
        counted = _RANGE.fullmatch(braces[1])
        if counted:
            first, last, width = int(counted[1]), int(counted[2]), len(counted[1])
            choices: Iterable[str] = (f"{number:0{width}d}" for number in range(first, last + 1))
        elif "," in braces[1]:
            choices = braces[1].split(",")
        else:
            continue
        for choice in choices:
            yield from expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])
        return
    yield pattern


def list_files(patterns: str | Sequence[str], endings: tuple[str, ...]) -> list[str]:
    """The files that patterns name, each once, sorted within each alternative of their braces.

    Args:
      patterns: one or several; each a path with braces and the wildcards `*`, `?` and `[…]`, or a folder, which
        stands for all files in it with one of the `endings`. Any file system that Apache Beam knows (gs://, s3://,
        hdfs:// with its extras).
      endings: of a folder's files that count, such as (".tar",).

    Raises:
      FileNotFoundError: nothing is there; names the part of the pattern.
    """
    files: dict[str, None] = {}
    alternatives = map(expand_braces, [patterns] if isinstance(patterns, str) else patterns)
    for path in itertools.chain.from_iterable(alternatives):
        for found in _matches(path, endings):
            files[found] = None
    return list(files)


def _matches(path: str, endings: tuple[str, ...]) -> list[str]:
    if os.path.isdir(path):
        found = sorted(os.path.join(path, name) for name in os.listdir(path) if name.lower().endswith(endings))
        if not found:
            raise FileNotFoundError(f"{path}: a folder without any {' or '.join(endings)} file.")
        return found
    if "://" not in path and not _WILDCARDS.search(path):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file.")
        return [path]
    if "://" in path:
        from apache_beam.io.filesystems import FileSystems

        found = sorted(file.path for file in FileSystems.match([path])[0].metadata_list)
    else:  # training on tars does without Beam
        found = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if not found:
        raise FileNotFoundError(f"{path}: no file matches.")
    return found
