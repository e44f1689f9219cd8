"""The watchdog fires in the phase that hangs, says where, and leaves others alone."""

import dataclasses
import threading
import time

import pytest

from clips_jax.config import LimitsConfig
from clips_jax.run import watchdog as module
from clips_jax.run.stops import RESTART
from clips_jax.run.watchdog import Watchdog

LIMITS = LimitsConfig(join=60, compile=60, step=0.3, save=60, evaluation=60, silence=60)


@pytest.fixture
def exits(monkeypatch):
    """Exit codes instead of exits."""
    codes, left = [], threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        left.set()
        threading.Event().wait()  # the watchdog's thread goes no further

    monkeypatch.setattr(module.os, "_exit", leave)
    return codes, left


def test_a_step_that_hangs_ends_the_process_with_stacks(tmp_path, exits, capfd):
    codes, left = exits
    watchdog = Watchdog(LIMITS, str(tmp_path), process=3, describe=lambda: "process 1 is behind.")
    watchdog.beat("step", "7")

    def hang_in_a_loader() -> None:
        left.wait(60)

    hang_in_a_loader()
    assert codes == [RESTART] == [75]
    assert "hang_in_a_loader" in (tmp_path / "stacks-process-3.txt").read_text()
    said = capfd.readouterr().err
    for part in ("process 3 gives up", "in step 7 (limits.step = 0.3)", "process 1 is behind.", "stacks-process-3.txt"):
        assert part in said


def test_beats_and_longer_phases_keep_it_quiet(tmp_path, exits):
    codes, left = exits
    limits = dataclasses.replace(LIMITS, step=20, save=0.4)  # it looks every 0.1 s
    watchdog = Watchdog(limits, str(tmp_path), process=0)

    def after(seconds: float, phase: str) -> None:
        watchdog._beat = (time.monotonic() - seconds, phase, "")
        left.wait(0.5)

    after(15, "step")
    after(50, "evaluation")
    assert watchdog.progress == "evaluation" and not codes
    watchdog.close()
    after(1000, "step")
    assert not codes


def test_a_closed_one_was_awake(tmp_path, exits):
    codes, left = exits
    watchdog = Watchdog(dataclasses.replace(LIMITS, step=20, save=0.4), str(tmp_path), process=0)
    watchdog._beat = (time.monotonic() - 21, "step", "")
    assert left.wait(60) and codes == [RESTART]


def test_stacks_that_cannot_be_written_do_not_keep_it_from_ending(tmp_path, exits, monkeypatch, capfd):
    codes, left = exits
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    monkeypatch.setattr(module.epath, "Path", lambda path: HangingPath())
    Watchdog(LIMITS, str(tmp_path), process=0).beat("step")
    assert left.wait(60) and codes == [RESTART]
    assert "test_stacks_that_cannot_be_written" in capfd.readouterr().err


class HangingPath:
    def __truediv__(self, name: str) -> "HangingPath":
        return self

    def write_text(self, text: str) -> None:
        time.sleep(3)
