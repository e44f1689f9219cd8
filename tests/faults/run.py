"""Does things to training runs at random points, restarts them, and compares the end with an undisturbed run.

  python -m tests.faults.run --points 50 --seed 0
  python -m tests.faults.run --points 5 --processes 3 --kinds "kill during a save" SIGTERM
  python -m tests.faults.run --points 6 --processes 1 2 4 --elastic

Each run has a few dozen steps, a save every third and an evaluation every tenth. At seeded random steps one of its
processes is killed, terminated, paused, starved or finds the disk full; what must end has to end by itself within the
limits, the same command starts it again, and at the end parameters, optimizer state, metrics and results must be those
of the undisturbed run, bit for bit (to rounding with --elastic). Prints a table; exits with 1 if anything differed or
hung. Each run is recorded as it ends: the same command with the same --folder goes on after the last one, so that a
long series can be done in pieces (--runs).
"""

import argparse
import collections
import dataclasses
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import tests  # noqa: F401  the environment of tests: CPU, compilation cache
from tests.faults.config import BATCH, STEPS
from tests.faults.injection import WEIGHTS, Fault, draw, inject
from tests.faults.processes import Processes, differences, largest_difference, started

# A run that must end has this long to do so, in seconds: it may have to compile before it can save.
PATIENCE = 300.0
# What launchers restart on, and how often a run of a long series may end so by itself.
RESTARTED = {75, -signal.SIGABRT, -signal.SIGKILL}
STRAYS = 10


@dataclasses.dataclass
class Outcome:
    """What came of a fault. Attributes: run: name of its workdir; cut: whether it left a half-written checkpoint; lost:
    steps done again; ended: seconds until all processes had ended (0: they lived on); stall: seconds until training was
    past the step it had reached; error: "" if it was survived."""

    fault: Fault
    processes: int
    run: str = ""
    cut: bool = False
    lost: int = 0
    ended: float = 0.0
    stall: float = 0.0
    error: str = ""


def torture(
    workdir: pathlib.Path,
    data_dir: str,
    counts: Sequence[int],
    faults: Iterator[Fault],
    steps: int = STEPS,
    strays: int = 0,
) -> list[Outcome]:
    """Runs to the end with `faults` on the way; the n-th start has `counts[n]` processes, and so on in a circle.

    With several sizes each start has another mesh as well. `strays`: how often the run may end in a way that launchers
    restart on though nobody did anything to it: on a machine that is too busy for the limits that is no failure.
    """
    outcomes: list[Outcome] = []
    unsettled: tuple[Outcome, float, int] | None = None  # a fault whose step has not been reached again
    for start_number in itertools.count():
        count = counts[start_number % len(counts)]
        flags = [f"--config.total_samples={BATCH * steps}"]
        if len(counts) > 1 and count % 2 == 0:
            flags.append("--config.mesh.fsdp=2")
        with started(workdir, data_dir, count, flags) as processes:
            if unsettled:
                outcome, start, reached = unsettled
                if not outcome.error and came_back(processes, min(reached + 1, steps)):
                    outcome.lost, outcome.stall = max(reached - processes.resumed_from, 0), time.monotonic() - start
                elif not outcome.error and strays and restarts(processes):
                    strays -= 1
                    continue
                else:
                    outcome.error = outcome.error or f"did not come back: {processes.outputs()}"
                    return outcomes
            unsettled = one_start(workdir, processes, faults, outcomes, steps, bool(strays))
            if unsettled is None:
                if strays and not any(outcome.error for outcome in outcomes) and restarts(processes):
                    strays -= 1
                    continue
                break
    return outcomes


def restarts(processes: Processes) -> bool:
    """Whether all processes have ended or end now, in a way that launchers restart on."""
    try:
        codes = set(processes.wait(PATIENCE))
    except TimeoutError:
        return False
    stray = bool(codes & RESTARTED) and codes <= RESTARTED | {0}
    if stray:
        print(f"{time.strftime('%H:%M:%S')} ended by itself, started again: {processes.outputs()[-300:]!r}", flush=True)
    return stray


def came_back(processes: Processes, step: int) -> bool:
    """Whether training reaches a step."""
    try:
        return processes.wait_for_step(step)
    except TimeoutError:
        return False


def one_start(
    workdir: pathlib.Path,
    processes: Processes,
    faults: Iterator[Fault],
    outcomes: list[Outcome],
    steps: int,
    busy: bool,
) -> tuple[Outcome, float, int] | None:
    """Faults until one ends the processes: that one, when it was injected and how far they were; None at the end.

    `busy`: the machine may be too busy for a run to live through what it should live through.
    """
    count = len(processes.members)
    for fault in faults:
        target = processes.step + fault.after
        if target >= steps or not (processes.wait_for_step(target) if target else processes.wait_for_compiling()):
            break
        outcome, step, start = Outcome(fault, count, workdir.name), processes.step, time.monotonic()
        outcomes.append(outcome)
        say(outcome, step)
        must_end = inject(fault, processes, workdir)
        if not must_end and came_back(processes, min(step + 1, steps)):
            outcome.stall = time.monotonic() - start
            if must_end is None:
                time.sleep(2)  # the watchdog may have read the clock just before the step was through
            if must_end is False or processes.running():
                continue
        try:
            codes = processes.wait(PATIENCE)
        except TimeoutError as error:
            outcome.error = str(error)
            return None
        if must_end is False and not busy:
            outcome.error = f"ended with {codes}: {processes.outputs()}"
            return None
        outcome.ended = time.monotonic() - start
        outcome.cut = any("orbax-checkpoint-tmp" in path.name for path in (workdir / "checkpoints").iterdir())
        if codes == [0] * count:  # it came too late: the run was done
            return None
        outcome.error = wrong_codes(fault, codes, processes)
        return (outcome, start, processes.step)
    codes = processes.wait()
    if codes != [0] * count and outcomes and not (busy and set(codes) <= RESTARTED | {0}):
        outcomes[-1].error = f"exit codes {codes} without a fault: {processes.outputs()}"
    return None


def wrong_codes(fault: Fault, codes: list[int], processes: Processes) -> str:
    """ "" if the exit codes are what launchers need: 75, or a signal; 1 for a full disk, 130 for Ctrl-C."""
    allowed = {
        "SIGTERM": {75},
        "SIGTERM during a save": {75},
        "SIGTERM twice": {75},
        "Ctrl-C": {75, 130},
        "disk full": {1, 75, -6},
    }.get(fault.kind, RESTARTED)
    return "" if set(codes) <= allowed else f"exit codes {codes}: {processes.outputs()}"


def say(outcome: Outcome, step: int) -> None:
    """A line per fault."""
    fault = outcome.fault
    print(f"{time.strftime('%H:%M:%S')} {outcome.processes} processes, step {step}: {fault.kind}", flush=True)


def table(outcomes: list[Outcome]) -> str:
    """Markdown: by number of processes and kind."""
    groups = collections.defaultdict(list)
    for outcome in outcomes:
        groups[outcome.processes, outcome.fault.kind].append(outcome)
    lines = [
        "| processes | fault | injected | survived | steps lost, mean (most) | longest until all had ended, s "
        "| longest stall, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (count, kind), members in sorted(groups.items()):
        lines.append(_row(str(count), kind, members))
    return "\n".join([*lines, _row("", "all", outcomes)])


def _row(count: str, kind: str, members: list[Outcome]) -> str:
    lost = [outcome.lost for outcome in members]
    ended = max(outcome.ended for outcome in members)
    return (
        f"| {count} | {kind} | {len(members)} | {sum(not outcome.error for outcome in members)} "
        f"| {sum(lost) / len(lost):.1f} ({max(lost)}) | {f'{ended:.1f}' if ended else '–'} "
        f"| {max(outcome.stall for outcome in members):.1f} |"
    )


def read_outcomes(folder: pathlib.Path) -> list[Outcome]:
    """All that were ever recorded in this folder."""
    path = folder / "outcomes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [Outcome(Fault(**row.pop("fault")), **row) for row in rows]


def one_run(
    workdir: pathlib.Path, expected: pathlib.Path, data_dir: str, counts: Sequence[int], faults: Iterator[Fault]
) -> list[Outcome]:
    """`torture`, and the comparison with the undisturbed run; what is wrong is in the outcomes' errors."""
    outcomes = torture(workdir, data_dir, counts, faults, strays=STRAYS)
    if not any(outcome.error for outcome in outcomes):
        wrong = (differences if len(counts) == 1 else largest_difference)(workdir, expected)
        outcomes[-1].error = "; ".join(wrong)
    return outcomes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=50, help="faults to inject in all (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default 0)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 3], help="sizes of the runs (default 1 3)")
    parser.add_argument(
        "--elastic", action="store_true", help="one run whose starts have these sizes in turn, on other meshes"
    )
    parser.add_argument("--kinds", nargs="+", choices=list(WEIGHTS), help="faults to draw from (default: all)")
    parser.add_argument("--folder", type=pathlib.Path, help="receives the runs; used again, its table grows")
    parser.add_argument("--runs", type=int, help="stop after so many runs; the same command goes on (default: all)")
    arguments = parser.parse_args()
    from clips_jax.data import emoji

    data_dir = os.environ["CLIPS_JAX_TEST_DATA_DIR"]
    emoji.build(data_dir)
    folder = arguments.folder or pathlib.Path(tempfile.mkdtemp(prefix="faults_"))
    folder.mkdir(parents=True, exist_ok=True)
    sizes: list[Sequence[int]] = [arguments.processes] if arguments.elastic else [[n] for n in arguments.processes]
    left = arguments.runs or sys.maxsize
    for number, counts in enumerate(sizes):
        points = arguments.points // len(sizes) + (number < arguments.points % len(sizes))
        series = f"run-{'-'.join(map(str, counts))}-seed{arguments.seed}-"
        expected = folder / f"undisturbed-{counts[0]}"
        for run in itertools.count():
            before = [outcome for outcome in read_outcomes(folder) if outcome.run.startswith(series)]
            workdir = folder / f"{series}{run}"
            if len(before) >= points or not left or any(outcome.error for outcome in before):
                break
            if any(outcome.run == workdir.name for outcome in before):
                continue
            shutil.rmtree(workdir, ignore_errors=True)  # cut off in the middle
            if not (expected / "results.json").exists():
                with started(expected, data_dir, counts[0]) as processes:
                    if processes.wait(600) != [0] * counts[0]:
                        sys.exit(f"the undisturbed run failed: {processes.output()}")
            dice = random.Random(workdir.name)
            faults = (draw(dice, arguments.kinds) for _ in range(points - len(before)))
            found = one_run(workdir, expected, data_dir, counts, faults)
            left -= 1
            wrong = [outcome.error for outcome in found if outcome.error]
            print(f"{workdir.name}: {len(found)} faults, {wrong or 'the end is the undisturbed one'}", flush=True)
            with (folder / "outcomes.jsonl").open("a") as file:
                file.writelines(json.dumps(dataclasses.asdict(outcome)) + "\n" for outcome in found)
    outcomes = read_outcomes(folder)
    cuts = sum(outcome.cut for outcome in outcomes)
    print(f"\n{table(outcomes)}\n\n{cuts} left a half-written checkpoint; seed {arguments.seed}; runs in {folder}")
    if wrong := [outcome.error for outcome in outcomes if outcome.error]:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
