"""A progress line for commands that work through a list: how many, how fast, how long it still takes."""

import sys
import time

from clips_jax.metrics import duration

# Seconds between lines where they cannot overwrite each other, as in a log file.
_LOG_INTERVAL = 10.0


class Progress:
    """Writes to standard error; a terminal sees one line that changes."""

    def __init__(self, what: str, total: int, done: int = 0):
        """`what` is counted, such as "pictures"; `done` were done before."""
        self._what, self._total, self._first = what, total, done
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def show(self, done: int, note: str = "") -> None:
        """`done` of the total are done by now."""
        now = time.monotonic()
        last = done >= self._total
        if not last and not self._terminal and now - self._shown < _LOG_INTERVAL:
            return
        self._shown = now
        seconds = max(now - self._start, 1e-9)
        speed = (done - self._first) / seconds
        left = "" if last or not speed else f", {duration((self._total - done) / speed)} left"
        line = f"{done:,} of {self._total:,} {self._what}, {speed:,.0f}/s{left}{note}"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if last else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()
