"""Puts the next batch on the devices while the current step runs, and measures how long the devices wait for data."""

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from clips_jax.batch import Batch
from clips_jax.data.bad_records import Replaced


class BatchesAhead:
    """The batches of a run, one of them always on its way to the devices. Iterate with `next`; `close` at the end.

    Costs the memory of one more batch on the devices.
    """

    def __init__(self, batches: Generator[tuple[Batch, Replaced], None, None], put: Callable[[Batch], Batch]):
        """`batches`: on the host, of `data.pipeline.train_batches`; `put`: starts their way to the devices."""
        self._batches, self._put = batches, put
        # One thread: batches keep their order, and a generator may be advanced by one thread at a time only.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="to_devices")
        self._coming = self._thread.submit(self._load)
        self.restart()

    def _load(self) -> tuple[Batch, Replaced] | None:
        try:
            batch, replaced = next(self._batches)
        except StopIteration:
            return None
        return self._put(batch), replaced

    def next(self, running: Any = None) -> tuple[Batch, Replaced]:
        """The next batch, on the devices.

        Args:
          running: results of the step that runs now (arrays). If the batch is not there yet, the time until these are
            ready does not count as waiting: the devices are busy.

        Raises:
          StopIteration: there is none left. Whatever else loading raises.
        """
        if not self._coming.done():
            jax.block_until_ready(running)
            start = time.perf_counter()
            self._coming.exception()  # waits; raised below
            self._waited += time.perf_counter() - start
        loaded = self._coming.result()
        if loaded is None:
            raise StopIteration
        self._coming = self._thread.submit(self._load)
        return loaded

    def wait_share(self) -> float:
        """The share of the time since the last call, or `restart`, in which the devices waited for data, 0 to 1."""
        share = self._waited / max(time.perf_counter() - self._start, 1e-9)
        self.restart()
        return min(share, 1.0)

    def restart(self) -> None:
        """Counts anew, after a pause that is not training."""
        self._waited, self._start = 0.0, time.perf_counter()

    def close(self) -> None:
        """Ends the thread, and loading."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._batches.close()
