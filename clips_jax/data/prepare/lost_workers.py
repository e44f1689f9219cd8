"""Beam's DirectRunner can lose its worker processes and wait for them for ever."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

SECONDS_FOR_BEAM = 60.0  # to notice by itself that its workers are gone


@contextlib.contextmanager
def no_endless_wait() -> Iterator[None]:
    """Ends the block with an error if Beam loses its worker processes and does not notice.

    Seen when all processes had no processor for minutes, as on a laptop that slept: the data streams broke, and the
    DirectRunner waited for ever. A worker that dies is noticed, so it has some time.
    """
    if threading.current_thread() is not threading.main_thread():  # which signals go to
        yield
        return
    timers: list[threading.Timer] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            timers.append(threading.Timer(SECONDS_FOR_BEAM, os.kill, (os.getpid(), signal.SIGUSR1)))
            timers[-1].daemon = True
            timers[-1].start()

    def end(*_: Any) -> None:
        raise RuntimeError("Beam lost its worker processes: had the machine been asleep, or overloaded?")

    log, watch = logging.getLogger("apache_beam.runners.worker.data_plane"), Watch(logging.ERROR)
    log.addHandler(watch)
    before = signal.signal(signal.SIGUSR1, end)
    try:
        yield
    finally:
        log.removeHandler(watch)
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGUSR1, before)
