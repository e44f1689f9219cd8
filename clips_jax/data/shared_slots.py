"""Memory in which data workers leave parts of batches, in slots that are used again and again.

Copying a part of 64 pictures of 84 px to memory that is already there takes 0.03 ms; to fresh shared memory, as Grain
does it, 1.4 ms, nearly all of it the kernel's work for new pages, and the reader pays as much again (measured). Only
Linux has the means; elsewhere `take` finds nothing, and parts travel Grain's way.

A slot belongs to one worker, which takes it when it is free; only the reader frees it. A worker that finds none free,
as after parts that nobody has read, does without, so that nothing here can wait or depends on how many parts are ahead.
"""

import math
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from clips_jax.data import worker

_FREE, _TAKEN = 0, 1
_ALIGNMENT = 64  # bytes; a cache line

Layout = Sequence[tuple[tuple[int, ...], Any]]  # shape and dtype of each array of a part


class SharedSlots:
    """`per_worker` slots for each of `workers` workers, each with room for the arrays of one part.

    Picklable: a copy in a worker maps the same memory. It goes with the last process that has it, also after kill -9.
    """

    def __init__(self, layout: Layout, workers: int, per_worker: int):
        """`layout`: the arrays of a part. Memory is used when it is first written to."""
        self._layout = [(tuple(shape), np.dtype(dtype)) for shape, dtype in layout]
        self._slots, self._per_worker = workers * per_worker, per_worker
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self._layout]
        self._starts = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]).tolist()
        self._path, self._inode = "", (-1, -1)
        self._memory: np.ndarray | None = None
        self._lock = threading.Lock()  # among threads of one worker
        if hasattr(os, "memfd_create"):  # not in /dev/shm, which containers keep small
            try:
                file = os.memfd_create("clips_jax_parts")
                weakref.finalize(self, os.close, file)
                os.ftruncate(file, self._first(self._slots))
                self._memory = _mapped(file)
            except OSError:  # forbidden, or no address space is left
                return
            self._path, self._inode = f"/proc/{os.getpid()}/fd/{file}", _inode(file)

    def _first(self, slot: int) -> int:
        """Where a slot begins, in bytes; a cache line for each slot's state stands before all of them."""
        return self._slots * _ALIGNMENT + slot * self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_memory")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._memory = threading.Lock(), None
        try:
            with open(self._path, "r+b", buffering=0) as file:
                if _inode(file.fileno()) == self._inode:  # not what another file was opened as since
                    self._memory = _mapped(file.fileno())
        except OSError:  # no such memory here, or /proc is hidden: `take` finds nothing
            pass

    def take(self) -> int | None:
        """In a worker: the number of a slot that is now this worker's to fill; None if there is none."""
        number = worker.number
        if self._memory is None or number is None:
            return None
        with self._lock:
            for slot in range(number * self._per_worker, (number + 1) * self._per_worker):
                if self._memory[slot * _ALIGNMENT] == _FREE:
                    self._memory[slot * _ALIGNMENT] = _TAKEN
                    return slot
        return None

    def free(self, slot: int) -> None:
        """In the reader, when it has done with a slot's arrays.

        Processors may put off a read until after a later write. So call this when another part has arrived since the
        last look at these: that takes several locks in two threads.
        """
        assert self._memory is not None
        self._memory[slot * _ALIGNMENT] = _FREE

    def arrays(self, slot: int) -> list[np.ndarray]:
        """The arrays of a slot, as in `layout`; views of the shared memory."""
        assert self._memory is not None
        first, found = self._first(slot), []
        for (shape, dtype), start in zip(self._layout, self._starts[:-1], strict=True):
            size = math.prod(shape) * dtype.itemsize
            found.append(self._memory[first + start : first + start + size].view(dtype).reshape(shape))
        return found


def _mapped(file: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(file, 0), np.uint8)


def _inode(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino
