"""What sources deliver: rows to make records of, cut into tasks, a task for each output shard."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

from clips_jax.data.tars import Rejected


@dataclasses.dataclass(frozen=True)
class Row:
    """A candidate for a record.

    Attributes:
      key: names it in lists of rejected rows and becomes the record's `id`.
      picture: the bytes of a picture file.
      fields: everything else that is known, by name.
      extension: of the picture's file, lower-case, "" if it has none.
      joined: how many rows a recaption table has for it; None without a table.
    """

    key: str
    picture: bytes
    fields: dict[str, Any]
    extension: str = ""
    joined: int | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """The input of one output shard.

    Attributes:
      number: of the shard, from 0.
      path: input file.
      start, stop: rows of that file; (0, 0) is all of them.
      size, modified: bytes and time of change of the file, so that a changed input is noticed.
    """

    number: int
    path: str
    start: int = 0
    stop: int = 0
    size: int = 0
    modified: float = 0.0


class Source(Protocol):
    """Where rows come from. A frozen dataclass: its fields are options, and it travels to workers."""

    def tasks(self, work: str) -> tuple[list[Task], list[Rejected]]:
        """All tasks, always the same ones for the same input, and what is rejected before any task starts.

        Args:
          work: folder for what is worked out once, such as an unpacked index.
        """
        ...

    def rows(self, task: Task, work: str) -> Iterator[Row | Rejected]:
        """The rows of a task in a fixed order. Nothing that is wrong with a row raises."""
        ...
