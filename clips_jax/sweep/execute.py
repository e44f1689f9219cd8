"""Runs of a sweep, each in a process of its own: one after another, or a few side by side."""

import concurrent.futures
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

from etils import epath

from clips_jax.config import Config
from clips_jax.metrics import duration
from clips_jax.run.stops import RESTART
from clips_jax.sweep.definition import Run, State, difference, state_of

STARTS = 5  # of a run that asks to be started again: preempted, or taken for hung on a machine that was busy
COMMAND = (sys.executable, "-m", "clips_jax.main")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run. Attributes: failure: why it did not finish, "" if it did."""

    name: str
    failure: str


def execute(runs: list[tuple[Run, Config]], workdir: str, parallel: int = 1) -> list[Outcome]:
    """Runs what is not finished, in order; a failed run does not stop the others.

    Each run's output goes to the terminal and to `output.log` in its folder. SIGTERM and Ctrl-C end the runs in
    progress as they would end alone, then the sweep: the same command goes on from there.

    Args:
      runs: with their checked configs.
      workdir: receives a folder per run.
      parallel: how many run side by side; each then computes with its share of this machine's cores.
    """
    sweep = _Sweep(runs, workdir, parallel)
    signal.signal(signal.SIGTERM, _interrupt)
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(sweep.run, number) for number in range(len(runs))]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            sweep.stop()
            raise


class _Sweep:
    """The runs in progress, and how much is left; its methods are called from several threads."""

    def __init__(self, runs: list[tuple[Run, Config]], workdir: str, parallel: int):
        self.runs, self.workdir, self.parallel = runs, workdir, parallel
        self.states: list[State] = [state_of(epath.Path(workdir) / run.name, config) for run, config in runs]
        wanted = (config for (_, config), state in zip(runs, self.states, strict=True) if state in ("to do", "started"))
        self.steps_left = sum(config.total_steps for config in wanted)
        self.steps_done, self.start = 0, time.monotonic()
        self.lock = threading.Lock()
        self.processes: set[subprocess.Popen[str]] = set()
        self.stopping = False

    def run(self, number: int) -> Outcome:
        """What became of the run with this index."""
        (run, config), state = self.runs[number], self.states[number]
        folder = epath.Path(self.workdir) / run.name
        with self.lock:
            seconds = time.monotonic() - self.start
            left = f", about {duration(seconds / self.steps_done * self.steps_left)} left" if self.steps_done else ""
        print(f"[{number + 1}/{len(self.runs)}] {run.name}: {_verb(state)}{left}", flush=True)
        if state == "changed":
            return Outcome(run.name, f"the folder holds a run of another config ({difference(folder, config)})")
        if state == "finished":
            return Outcome(run.name, "")
        failure = self._train(run, folder)
        if not failure and state_of(folder, config) != "finished":
            failure = "it ended without results of its last step"
        with self.lock:
            self.steps_left -= config.total_steps
            self.steps_done += 0 if failure else config.total_steps
        return Outcome(run.name, failure)

    def stop(self) -> None:
        """Ends the runs in progress as a signal ends one alone; no other starts."""
        with self.lock:
            self.stopping = True
            for process in self.processes:
                process.terminate()

    def _train(self, run: Run, folder: epath.Path) -> str:
        """Trains one, again if it asks for that; returns "" or why it failed."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [*COMMAND, *run.arguments(self.workdir)]
        last, prefix = "", f"{run.name}  " if self.parallel > 1 else ""
        code = RESTART
        for _ in range(STARTS):
            code, last = self._start(command, folder, prefix)
            if code != RESTART or self.stopping:
                break
        return f"exit {code}: {last}" if code else ""

    def _start(self, command: list[str], folder: epath.Path, prefix: str) -> tuple[int, str]:
        """One process from start to end; its exit code and last line."""
        last = ""
        with (folder / "output.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            with self.lock:
                if self.stopping:
                    return 1, "not started"
                process = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env={**os.environ, **_share_of_cores(self.parallel)},
                )
                self.processes.add(process)
            assert process.stdout
            for line in process.stdout:
                log.write(line)
                log.flush()
                print(f"    {prefix}{line}", end="", flush=True)
                last = line.strip() or last
            code = process.wait()
            with self.lock:
                self.processes.remove(process)
        return code, last


def _share_of_cores(parallel: int) -> dict[str, str]:
    """Environment of one of so many runs: as many threads as its share; not pinned, so that an idle core is used."""
    if parallel == 1:
        return {}
    threads = str(max(1, len(os.sched_getaffinity(0)) // parallel))
    return {"NPROC": threads, "OMP_NUM_THREADS": threads}  # XLA's and NumPy's


def _verb(state: State) -> str:
    return {"to do": "starts", "started": "goes on", "finished": "finished before", "changed": "left alone"}[state]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
