"""A training run as its processes: starting them, reading how far they are, comparing what they leave."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

STEP = re.compile(r"^step +(\d+)/\d+ ", re.MULTILINE)
COMPILES = " parameters\n"  # the last words before the first step
RESUMED = re.compile(r"^resuming from \S*/(\d+)$", re.MULTILINE)


class Processes:
    """The processes of one start of a run. Attributes: members: `Popen`s; logs: what each of them says."""

    def __init__(
        self,
        workdir: pathlib.Path,
        data_dir: str,
        count: int = 1,
        flags: Sequence[str] = (),
        absent: Sequence[int] = (),
    ):
        """`absent`: processes of the run that never start."""
        command = [sys.executable, "-m", "clips_jax.main", "--config=tests/faults/config.py"]
        command += [f"--config.data.data_dir={data_dir}", f"--workdir={workdir}", *flags]
        environment = dict(os.environ)
        if count > 1:
            command.append("--distributed")
            environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
        self.logs = [workdir.parent / f"{workdir.name}-process-{index}.log" for index in range(count)]
        self.members = []
        for index, log in enumerate(self.logs):
            if index in absent:
                continue
            member = environment | ({"JAX_PROCESS_ID": str(index)} if count > 1 else {})
            with log.open("w") as file:
                self.members.append(subprocess.Popen(command, env=member, stdout=file, stderr=subprocess.STDOUT))

    def output(self, index: int = 0) -> str:
        """What a process has said so far."""
        log = self.logs[index]
        return log.read_text(errors="replace") if log.exists() else ""

    def outputs(self) -> str:
        """The last words of all."""
        return "\n".join(f"process {i}: {self.output(i)[-1500:]}" for i in range(len(self.logs)))

    @property
    def step(self) -> int:
        """The last step that the run has reported."""
        found = STEP.findall(self.output())
        return int(found[-1]) if found else 0

    @property
    def resumed_from(self) -> int:
        """The step of the checkpoint that this start found."""
        found = RESUMED.findall(self.output())
        return int(found[0]) if found else 0

    def running(self) -> bool:
        """Whether any process still runs."""
        return any(member.poll() is None for member in self.members)

    def wait_for_compiling(self, timeout: float = 600.0) -> bool:
        """Waits until everything is restored and the step compiles; False if a process ends before."""
        deadline = time.monotonic() + timeout
        while COMPILES not in self.output() and all(member.poll() is None for member in self.members):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing compiles after {timeout:.0f} s: {self.outputs()}")
            time.sleep(0.01)
        return COMPILES in self.output()

    def wait_for_step(self, step: int, timeout: float = 600.0) -> bool:
        """Waits until the run reports `step` or later; False if a process ends before."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.step >= step:
                return True
            if any(member.poll() is not None for member in self.members):
                return self.step >= step
            time.sleep(0.01)
        raise TimeoutError(f"no step {step} in {timeout:.0f} s: {self.outputs()}")

    def wait(self, timeout: float = 600.0) -> list[int]:
        """Exit codes, once all have ended. Raises `TimeoutError` with their output if they do not."""
        deadline = time.monotonic() + timeout
        while self.running():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still running after {timeout:.0f} s: {self.outputs()}")
            time.sleep(0.05)
        return [member.returncode for member in self.members]

    def kill(self) -> None:
        """Ends whatever is left."""
        for member in self.members:
            if member.poll() is None:
                member.send_signal(signal.SIGKILL)
                member.wait()


@contextlib.contextmanager
def started(
    workdir: pathlib.Path, data_dir: str, count: int = 1, flags: Sequence[str] = (), absent: Sequence[int] = ()
) -> Iterator[Processes]:
    """`Processes` that do not outlive the block."""
    processes = Processes(workdir, data_dir, count, flags, absent)
    try:
        yield processes
    finally:
        processes.kill()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def metrics(workdir: pathlib.Path) -> list[dict]:
    """Rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def newest_arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, parameters and optimizer state, by path."""
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    arrays = {}
    for item in ("params", "optimizer"):
        handler, path = ocp.PyTreeCheckpointer(), workdir / "checkpoints" / str(max(steps)) / item
        # As NumPy arrays: the devices that saved them, of several processes, are not here.
        saved = handler.metadata(path).item_metadata.tree
        tree = handler.restore(
            path, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        )
        arrays |= {f"{item}/{key}": value for key, value in _flat(tree)}
    return arrays | {"steps": np.array(sorted(steps))}


def _flat(tree, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    else:
        if tree is not None:
            yield prefix, np.asarray(tree)
        return
    for key, value in items:
        yield from _flat(value, f"{prefix}/{key}" if prefix else str(key))


def differences(workdir: pathlib.Path, expected: pathlib.Path) -> list[str]:
    """What differs, bit for bit, between two finished runs: parameters, optimizer, metrics, results."""
    found = []
    ours, theirs = newest_arrays(workdir), newest_arrays(expected)
    if ours.keys() != theirs.keys():
        found.append(f"arrays {sorted(ours.keys() ^ theirs.keys())}")
    found += [key for key in ours.keys() & theirs.keys() if ours[key].tobytes() != theirs[key].tobytes()]
    rows, expected_rows = metrics(workdir), metrics(expected)
    if rows != expected_rows:
        steps = [row["step"] for row in rows]
        found.append(f"metrics: {steps if steps != [row['step'] for row in expected_rows] else 'values'}")
    if (workdir / "results.json").read_text() != (expected / "results.json").read_text():
        found.append("results.json")
    return found


def largest_difference(workdir: pathlib.Path, expected: pathlib.Path, tolerance: float = 2e-3) -> list[str]:
    """What differs by more than rounding between two finished runs: parameters, losses, steps.

    `tolerance` is relative for losses and relative to a parameter's largest value for parameters (assumption: Adam
    turns rounding errors of tiny gradients into steps of the learning rate, and 60 steps add them up).
    """
    ours, theirs = newest_arrays(workdir), newest_arrays(expected)
    found = [f"{key} is there in one of them" for key in ours.keys() ^ theirs.keys()]
    for key in sorted(key for key in ours.keys() & theirs.keys() if key.startswith("params/")):
        if key.endswith("attention/key/bias"):
            continue  # softmax does not see it: its gradient is rounding error alone, which Adam blows up
        error = np.abs(ours[key] - theirs[key]).max() / max(np.abs(theirs[key]).max(), 1e-2)
        if not error <= 25 * tolerance:
            found.append(f"{key} differs by {error:.2g}")
    rows, expected_rows = metrics(workdir), metrics(expected)
    if [row["step"] for row in rows] != [row["step"] for row in expected_rows]:
        found.append(f"metrics of steps {[row['step'] for row in rows]}")
    for row, wanted in zip(rows, expected_rows, strict=False):
        error = abs(row["loss"] - wanted["loss"]) / wanted["loss"]
        if not error <= tolerance:
            found.append(f"loss of step {row['step']} differs by {error:.2g}")
    return found
