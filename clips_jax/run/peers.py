"""The processes of a run keep an eye on each other, so that a lost one does not leave the others waiting for ever."""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from clips_jax.run.stops import FAILED, RESTART

# Keys in the coordination service.
_PROGRESS, _ENDED = "clips_jax/progress/", "clips_jax/ended"
_SILENT = " (silent)"


class Peers:
    """Each process says through the coordination service that it lives and what it does; process 0 listens.

    Whoever learns that the run is over (a process is lost or has failed) calls `stop(reason, exit code)`. Nothing here
    touches the devices, and the training loop never waits for it.
    """

    def __init__(self, silence: float, progress: Callable[[], str], stop: Callable[[str, int], None]):
        """`silence`: seconds without a sign of life after which a process is lost; `progress`: what this one does."""
        from jax._src import distributed  # the key-value store has no public name

        self._client: Any = distributed.global_state.client
        self._me, self._count = jax.process_index(), jax.process_count()
        self._silence, self._progress, self._stop = silence, progress, stop
        self._interval = min(10.0, silence / 8)
        self._answered = time.monotonic()  # when the coordination service last answered
        self._closed = threading.Event()
        for target in (self._talk, self._watch_service):
            threading.Thread(target=target, name=f"peers{target.__name__}", daemon=True).start()

    def describe(self) -> str:
        """What the processes are doing, and which of them are silent; listens for two intervals to find out."""
        return self.listen()[0]

    def listen(self) -> tuple[str, bool]:
        """The same, and whether any is silent."""
        found: list[str] = []

        def compare() -> None:
            before = self._heard()
            time.sleep(2 * self._interval)
            after = self._heard()
            for process in range(self._count):
                said = after.get(process, "0 nothing yet")
                silent = process != self._me and said == before.get(process) and said != "ended"
                found.append(f"process {process}: {said.partition(' ')[2] or said}{_SILENT if silent else ''}")

        listener = threading.Thread(target=compare, daemon=True)
        listener.start()
        listener.join(4 * self._interval)
        if not found:
            return "Process 0, which runs the coordination service, does not answer.", True
        return f"What they were doing: {', '.join(found)}.", any(text.endswith(_SILENT) for text in found)

    def tell(self, reason: str, exit_code: int = FAILED) -> None:
        """Ends the run for all: the others stop within a few seconds."""
        self._closed.set()
        # In a thread: the service may be what is gone.
        sender = threading.Thread(target=self._send, args=(f"{exit_code} process {self._me}: {reason}",), daemon=True)
        sender.start()
        sender.join(self._interval)
        if self._me == 0:
            time.sleep(2.5 * self._interval)  # the service ends with this process: let the others read it first

    def close(self) -> None:
        """Says good-bye; the other processes go on without this one."""
        self._closed.set()
        sender = threading.Thread(target=self._say, args=("ended",), daemon=True)
        sender.start()
        sender.join(self._interval)

    def _send(self, text: str) -> None:
        try:
            self._client.key_value_set(_ENDED, text, allow_overwrite=True)
        except jax.errors.JaxRuntimeError:
            pass  # it is down: the others find out by themselves

    def _say(self, text: str) -> None:
        self._client.key_value_set(f"{_PROGRESS}{self._me}", text, allow_overwrite=True)

    def _heard(self) -> dict[int, str]:
        """The last word of each process: "NUMBER PROGRESS", the number counting its words, or "ended"."""
        try:
            return {int(key.rpartition("/")[2]): text for key, text in self._client.key_value_dir_get(_PROGRESS)}
        except jax.errors.JaxRuntimeError:
            return {}

    def _ended(self) -> str:
        try:
            return self._client.key_value_try_get(_ENDED)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return ""
            raise

    def _talk(self) -> None:
        number, heard = 0, {}
        while not self._closed.wait(self._interval):
            number += 1
            try:
                self._say(f"{number} {self._progress()}")
                ended = self._ended()
            except jax.errors.JaxRuntimeError:
                continue  # `_watch_service` counts how long this lasts
            self._answered = time.monotonic()
            lost = self._lost(heard) if self._me == 0 else ""
            if self._closed.is_set():
                return
            if ended:
                code, _, reason = ended.partition(" ")
                self._stop(f"the run has ended. {reason}", int(code))
            if lost:
                self.tell(lost, RESTART)
                self._stop(lost, RESTART)

    def _lost(self, heard: dict[int, tuple[str, float]]) -> str:
        """Names processes that have been silent for too long; `heard`: their last words, and when these were new."""
        now, said = time.monotonic(), self._heard()
        for process in range(self._count):
            text = said.get(process, "0 nothing yet")
            if heard.get(process, ("", 0.0))[0] != text:
                heard[process] = (text, now)
        silent = [
            f"process {process} (last: {text.partition(' ')[2]})"
            for process, (text, at) in sorted(heard.items())
            if now - at > self._silence and text != "ended"
        ]
        if not silent:
            return ""
        return f"no sign of life for {self._silence:g} s (limits.silence) from {', '.join(silent)}: lost or hung."

    def _watch_service(self) -> None:
        while not self._closed.wait(self._interval):
            silent = time.monotonic() - self._answered
            if silent > self._silence:
                self._stop(
                    f"process 0, which runs the coordination service, has not answered for {silent:.0f} s "
                    "(limits.silence): lost or hung.",
                    RESTART,
                )
