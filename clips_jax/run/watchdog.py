"""Notices that this process is stuck: writes down where, says what is missing, and ends it."""

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from absl import logging
from etils import epath

from clips_jax.config import LimitsConfig
from clips_jax.run.stops import RESTART

# What a stuck file system may cost on the way out, in seconds (assumption).
_PATIENCE = 10.0


class Watchdog:
    """A thread that expects a sign of life from the main thread within the limit of what it is doing.

    A process that hangs in a collective, in a data loader or in a file system cannot say so itself, and the others
    would wait for it for ever.
    """

    def __init__(self, limits: LimitsConfig, workdir: str, process: int, describe: Callable[[], str] = lambda: ""):
        """`describe` tells what else is known when time is up, such as which process is behind; it and `process`, the
        number of this one, may be set later."""
        self._limits = {
            "join": limits.join,
            "compile": limits.compile,
            "step": limits.step,
            "save": limits.save,
            "evaluation": limits.evaluation,
        }
        self.process, self.describe, self._workdir = process, describe, workdir
        self._beat: tuple[float, str, str] = (time.monotonic(), "join", "")
        self._closed = threading.Event()
        self._tick = min(1.0, min(self._limits.values()) / 4)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, phase: str, detail: str = "") -> None:
        """A sign of life: `phase` is a field of `LimitsConfig`, which says until when the next one is due."""
        self._beat = (time.monotonic(), phase, detail)

    @property
    def progress(self) -> str:
        """What this process does, for the other ones: "step 12"."""
        _, phase, detail = self._beat
        return f"{phase} {detail}".strip()

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._tick):
            since, phase, detail = self._beat
            waited = time.monotonic() - since
            if waited > self._limits[phase]:
                doing = f"nothing happened for {waited:.0f} s in {phase} {detail}".rstrip()
                limit = f"limits.{phase} = {self._limits[phase]:g}"
                self.stop(f"{doing} ({limit}). {self._what_else()}".rstrip())

    def _what_else(self) -> str:
        try:
            return self.describe()
        except Exception as error:  # a help for people: what goes wrong here must not keep the process alive
            return f"({error})"

    def stop(self, reason: str, exit_code: int = RESTART, stacks: bool = True) -> NoReturn:
        """Ends the process at once, from any thread, after writing `stacks-process-N.txt` into the workdir."""
        where = self._write_stacks() if stacks else ""
        text = f"process {self.process} gives up: {reason}{where}"
        logging.error("%s", text)
        os.write(2, f"{text}\n".encode())
        logging.flush()
        os._exit(exit_code)  # a blocked main thread would never come back from sys.exit

    def _write_stacks(self) -> str:
        path = epath.Path(self._workdir) / f"stacks-process-{self.process}.txt"
        with tempfile.TemporaryFile("w+") as file:  # faulthandler needs a descriptor, the workdir may be gs://
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            content = file.read()
        writer = threading.Thread(target=lambda: path.write_text(content), daemon=True)
        writer.start()
        writer.join(_PATIENCE)  # what hangs may be this very file system
        return f" Stacks of all threads: {path}" if not writer.is_alive() else f"\n{content}"
