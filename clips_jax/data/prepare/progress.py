"""How far a run is, by the notes that workers leave: works with every runner."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from clips_jax.data.prepare import storage
from clips_jax.data.prepare.plan import Plan
from clips_jax.data.prepare.rows import Task

_SECONDS = 2.0
_SECONDS_BETWEEN_LINES = 30.0  # where no terminal shows a line that rewrites itself


@contextlib.contextmanager
def progress(plan: Plan, todo: list[Task], count: int, terminal: TextIO) -> Iterator[None]:
    """Shows shards, rows, rows per second and time left on `terminal` until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=_show, args=(plan, todo, count, terminal, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show(plan: Plan, todo: list[Task], count: int, terminal: TextIO, stop: threading.Event) -> None:
    started, last_line = time.monotonic(), time.monotonic()
    finished: dict[int, int] = {}
    rewrites = terminal.isatty()
    while not stop.wait(_SECONDS):
        there = set(storage.names(plan.work))
        for task in todo:
            name = plan.work_path(task.number, count, "done.json")
            if task.number not in finished and name.rpartition("/")[2] in there:
                finished[task.number] = (storage.read_json(name) or {}).get("rows_in", 0)
        now = time.monotonic()
        if rewrites or now - last_line >= _SECONDS_BETWEEN_LINES:
            last_line = now
            line = _line(len(finished), len(todo), sum(finished.values()), now - started)
            print(f"\r{line}\x1b[K" if rewrites else line, end="" if rewrites else "\n", file=terminal, flush=True)
    if rewrites:
        print(file=terminal)


def _line(shards: int, todo: int, rows: int, seconds: float) -> str:
    left = f"{seconds / shards * (todo - shards):.0f} s left" if shards else "time left unknown"
    return f"{shards} of {todo} shards, {rows} rows, {rows / seconds:.0f} rows/s, {seconds:.0f} s, {left}"
