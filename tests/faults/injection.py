"""The faults: each does something to one process and says whether the run must have ended by it."""

import dataclasses
import os
import pathlib
import random
import resource
import signal
import time

from tests.faults.processes import Processes

# Kinds, and how often each is drawn.
WEIGHTS = {
    "kill": 4,
    "kill during a save": 5,
    "SIGTERM": 4,
    "SIGTERM during a save": 2,
    "SIGTERM twice": 1,
    "Ctrl-C": 1,
    "pause, short": 3,
    "pause, long": 2,
    "starve": 2,
    "disk full": 3,
}
# Seconds of a long pause: more than `limits.step` of the config.
LONG = 70.0


@dataclasses.dataclass(frozen=True)
class Fault:
    """One point.

    Attributes: after: steps from where the run is (0 and just started: while it compiles); delay: seconds more; victim:
    0 … 1, which process.
    """

    kind: str
    after: int
    delay: float
    victim: float


def draw(dice: random.Random, kinds: list[str] | None = None) -> Fault:
    """A fault at random."""
    names = kinds or list(WEIGHTS)
    kind = dice.choices(names, [WEIGHTS[name] for name in names])[0]
    return Fault(kind, dice.randint(0, 5), dice.random() * 0.3, dice.random())


def inject(fault: Fault, processes: Processes, workdir: pathlib.Path) -> bool | None:
    """Does it; returns whether the run must end by it (True) or live through it (False), None for either."""
    members = processes.members
    victim = members[int(fault.victim * len(members))]
    if fault.kind.endswith("during a save"):
        wait_for_save(processes, workdir)
        time.sleep(fault.delay / 6)
    else:
        time.sleep(fault.delay)
    if fault.kind.startswith("kill"):
        victim.send_signal(signal.SIGKILL)
        return True
    if fault.kind.startswith("SIGTERM"):
        victim.send_signal(signal.SIGTERM)
        if fault.kind.endswith("twice"):
            time.sleep(fault.delay)
            victim.send_signal(signal.SIGTERM)
        return True
    if fault.kind == "Ctrl-C":
        victim.send_signal(signal.SIGINT)
        return True
    if fault.kind == "disk full":
        fill_disk(members)
        return True
    if fault.kind == "pause, short":
        pause(victim.pid, 1 + 2 * fault.delay)
        return False
    if fault.kind == "starve":
        for _ in range(30):
            pause(victim.pid, 0.08)
            time.sleep(0.01)
        return False
    # Long: the others give up meanwhile. A process alone finds out when it goes on, or has taken its next step by then.
    victim.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline and (len(members) == 1 or sum(m.poll() is None for m in members) > 1):
        time.sleep(0.05)
    victim.send_signal(signal.SIGCONT)
    return True if len(members) > 1 else None


def pause(pid: int, seconds: float) -> None:
    """Stops a process for so long."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def fill_disk(members: list) -> None:
    """No file can grow beyond 200 kB from now on, which is less than a checkpoint's: for these processes alone."""
    for member in members:
        _, hard = resource.prlimit(member.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (200_000, hard))


def wait_for_save(processes: Processes, workdir: pathlib.Path, timeout: float = 60.0) -> None:
    """Returns as soon as a checkpoint is being written, or the run is over."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and processes.running():
        if any("orbax-checkpoint-tmp" in path.name for path in (workdir / "checkpoints").iterdir()):
            return
        time.sleep(0.001)
