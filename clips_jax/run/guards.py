"""What watches over a run from its first second to its last: signals, watchdog, the other processes."""

import contextlib
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Iterator

import jax
from etils import epath

from clips_jax.config import Config, LimitsConfig
from clips_jax.run.peers import Peers
from clips_jax.run.preemption import Preemption
from clips_jax.run.stops import FAILED, RESTART, Preempted, RunStopped
from clips_jax.run.watchdog import Watchdog
from clips_jax.sharding import join_processes

# Errors of the runtime that are this process' own and would come back: not a sign of a lost process.
_OWN_ERRORS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


class LostProcess(RunStopped):
    """A collective failed: another process is gone."""

    exit_code = RESTART


@dataclasses.dataclass
class Guards:
    """The watchers. Attributes: peers: None for a process alone."""

    preemption: Preemption
    watchdog: Watchdog
    peers: Peers | None = None


@contextlib.contextmanager
def guard_run(config: Config, workdir: str, join: bool) -> Iterator[Guards]:
    """Listens to signals, joins the other processes if asked to, and watches until the end.

    Raises:
      LostProcess: for an error that another process must have caused.
    """
    preemption = Preemption()
    watchdog = Watchdog(config.limits, workdir, int(os.environ.get("JAX_PROCESS_ID", 0)))
    guards = Guards(preemption, watchdog)
    with contextlib.ExitStack() as stack:
        stack.callback(watchdog.close)
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(preemption)
        if join:
            with _arrival(workdir, watchdog, config.limits):
                join_processes(config.limits)
            preemption.joined()
        watchdog.beat("compile")
        watchdog.process = jax.process_index()
        if jax.process_count() > 1:
            guards.peers = Peers(
                config.limits.silence,
                lambda: watchdog.progress,
                lambda reason, code: watchdog.stop(reason, code, stacks=code == RESTART),
            )
            watchdog.describe = guards.peers.describe
        if not guards.peers:
            yield guards
            return
        try:
            yield guards
            guards.peers.close()
        except Preempted:
            guards.peers.close()
            raise
        except RunStopped as error:
            guards.peers.tell(_first_line(error), error.exit_code)
            raise
        except Exception as error:
            watchdog.beat("save", "looking for a lost process")
            doing, silent = guards.peers.listen()
            # An error of a collective, or of a save that waits for all, comes from a process that is gone.
            collective = isinstance(error, jax.errors.JaxRuntimeError) and not any(e in str(error) for e in _OWN_ERRORS)
            if silent or collective:
                raise LostProcess(f"{_first_line(error)} {doing}") from error
            guards.peers.tell(f"{type(error).__name__}: {_first_line(error)}", FAILED)
            raise


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _arrival(workdir: str, watchdog: Watchdog, limits: LimitsConfig) -> Iterator[None]:
    """Until all have joined, each process leaves its name in the workdir, so that who is missing can be named.

    The coordination service says only that time is up.
    """
    folder = epath.Path(workdir) / "joining"
    number, count = os.environ.get("JAX_PROCESS_ID"), os.environ.get("JAX_NUM_PROCESSES")
    mine = folder / (f"process-{number}" if number else socket.gethostname())

    def describe() -> str:
        since = time.time() - limits.join - 60  # clocks of hosts agree to a minute (assumption)
        fresh = sorted(path.name for path in folder.iterdir() if float(path.read_text() or 0) > since)
        missing = [f"process-{i}" for i in range(int(count or 0)) if f"process-{i}" not in fresh]
        address = os.environ.get("JAX_COORDINATOR_ADDRESS", "found by JAX")
        absent = ", ".join(missing) if count else "unknown"
        return (
            f"Arrived: {', '.join(fresh)}; missing: {absent}. Coordinator: {address}. Are all of them started, with "
            "the same coordinator address, and can they reach it?"
        )

    with contextlib.suppress(OSError):  # the names are a help, not a need
        folder.mkdir(parents=True, exist_ok=True)
        mine.write_text(str(time.time()))
    watchdog.describe = describe
    yield
    watchdog.describe = lambda: ""
    with contextlib.suppress(OSError):
        mine.unlink(missing_ok=True)
