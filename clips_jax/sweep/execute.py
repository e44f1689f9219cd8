"""Runs of a sweep one after another, each in a process of its own."""

import dataclasses
import shlex
import signal
import subprocess
import sys
import time

from etils import epath

from clips_jax.config import Config
from clips_jax.metrics import duration
from clips_jax.sweep.definition import Run, State, difference, state_of

COMMAND = (sys.executable, "-m", "clips_jax.main")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run. Attributes: failure: why it did not finish, "" if it did."""

    name: str
    failure: str


def execute(runs: list[tuple[Run, Config]], workdir: str) -> list[Outcome]:
    """Runs what is not finished, in order; a failed run does not stop the others.

    Each run's output goes to the terminal and to `output.log` in its folder. SIGTERM and Ctrl-C end the run in progress
    as they would end it alone, then the sweep: the same command goes on from there.
    """
    states: dict[str, State] = {run.name: state_of(epath.Path(workdir) / run.name, config) for run, config in runs}
    steps_left = sum(config.total_steps for run, config in runs if states[run.name] in ("to do", "started"))
    steps_done, seconds = 0, 0.0
    outcomes = []
    signal.signal(signal.SIGTERM, _interrupt)
    for number, (run, config) in enumerate(runs, start=1):
        folder, state = epath.Path(workdir) / run.name, states[run.name]
        left = f", about {duration(seconds / steps_done * steps_left)} left" if steps_done else ""
        print(f"[{number}/{len(runs)}] {run.name}: {_verb(state)}{left}", flush=True)
        if state == "changed":
            outcomes.append(
                Outcome(run.name, f"the folder holds a run of another config ({difference(folder, config)})")
            )
        elif state == "finished":
            outcomes.append(Outcome(run.name, ""))
        else:
            start = time.monotonic()
            failure = _run(run, folder, workdir)
            if not failure and state_of(folder, config) != "finished":
                failure = "it ended without results of its last step"
            outcomes.append(Outcome(run.name, failure))
            steps_left -= config.total_steps
            if not failure:
                steps_done, seconds = steps_done + config.total_steps, seconds + time.monotonic() - start
    return outcomes


def _verb(state: State) -> str:
    return {"to do": "starts", "started": "goes on", "finished": "finished before", "changed": "left alone"}[state]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _run(run: Run, folder: epath.Path, workdir: str) -> str:
    """Runs one; returns "" or why it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [*COMMAND, *run.arguments(workdir)]
    last = ""
    with (folder / "output.log").open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                print(f"    {line}", end="", flush=True)
                last = line.strip() or last
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    return f"exit {code}: {last}" if code else ""
