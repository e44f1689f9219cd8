"""SIGTERM and Ctrl-C: all processes stop after the same step, with everything saved."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from clips_jax.run.stops import INTERRUPTED, RESTART


class Preemption:
    """Listens for the notice that this process will be taken away.

    Several processes agree through JAX's coordination service: a notice to any of them becomes true on all of them at
    the same call of `reached`. A process alone goes by its own signals. A second SIGTERM changes nothing (the notice is
    being acted on); a second Ctrl-C ends the process at once, like kill -9.
    """

    def __init__(self) -> None:
        self._notice: int | None = None
        self._calls = 0

    def __enter__(self) -> "Preemption":
        """Takes over SIGTERM and SIGINT; main thread only."""
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set from outside Python

    def joined(self) -> None:
        """To be called after `jax.distributed.initialize`, which has taken SIGTERM over: hands on an earlier notice."""
        if self._notice is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self) -> bool:
        """Whether to stop here. All processes call it equally often; it does not wait for the device or for others."""
        self._calls += 1
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self._notice is not None

    @property
    def exit_code(self) -> int:
        """Restart after a preemption; not where a person pressed Ctrl-C."""
        return INTERRUPTED if self._notice == signal.SIGINT else RESTART

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._notice == signal.SIGINT:
            os.write(2, b"\nsecond Ctrl-C: stopping at once\n")
            os._exit(INTERRUPTED)
        first, self._notice = self._notice is None, number
        if first:
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving, then stopping; Ctrl-C twice stops at once\n".encode())
        if number == signal.SIGINT and jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # the coordination service listens to this one
