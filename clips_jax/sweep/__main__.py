"""Runs a sweep: many configs, one after another or a few side by side here, or as jobs for a cluster.

  python -m clips_jax.sweep --sweep configs/sweeps/ladder.py --workdir runs/ladder
  python -m clips_jax.sweep --sweep configs/sweeps/ladder.py --workdir runs/ladder --smoke
  python -m clips_jax.sweep --sweep configs/sweeps/ladder.py --workdir runs/ladder --scale 0.25 --parallel 2
  python -m clips_jax.sweep --sweep configs/sweeps/ladder.py --workdir /shared/ladder --print slurm | bash
  python -m clips_jax.sweep --sweep configs/sweeps/ladder.py --workdir gs://BUCKET/ladder --print gke \\
      --job_options="--type tpu-v5-lite-podslice --topology 16x16 --image IMAGE"
  python -m clips_jax.report runs/ladder/*

A sweep is a Python file whose function `runs(smoke)` yields named runs: a config and overrides. All of them are checked
before the first one starts. Runs that are finished are skipped, those that were stopped go on, so the same command
again continues the sweep. Further arguments --config.KEY=VALUE hold for every run. Exit code: 0 if all runs are
finished, 1 if one failed.
"""

import argparse
import hashlib
import re
import shlex
import sys
from collections.abc import Sequence

from etils import epath

from clips_jax.config import ConfigError
from clips_jax.sweep.definition import load_sweep, state_of
from clips_jax.sweep.execute import execute

LAUNCHERS = {"slurm": "launch/slurm.sh", "gke": "launch/gke.sh"}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweep", required=True, metavar="FILE", help="a sweep: configs/sweeps/NAME.py")
    parser.add_argument("--workdir", required=True, help="folder that receives a folder per run")
    parser.add_argument("--smoke", action="store_true", help="the sweep's tiny version, to see it work")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="SHARE", help="this share of each run's images and warm-up (0.25)"
    )
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="so many runs side by side (default 1)")
    parser.add_argument("--only", default="", metavar="REGEX", help="runs whose name holds this regular expression")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and how far they are, run nothing")
    parser.add_argument("--print", choices=sorted(LAUNCHERS), help="print a job per unfinished run, run nothing")
    parser.add_argument("--job_options", default="", help="for --print: options of launch/slurm.sh or gke.sh, quoted")
    arguments, rest = parser.parse_known_args(argv)
    wrong = [argument for argument in rest if not re.fullmatch(r"--config\.[\w.]+=.*", argument)]
    if wrong:
        parser.error(f"unknown argument {wrong[0]}; overrides are --config.KEY=VALUE")
    if arguments.scale <= 0 or arguments.parallel < 1:
        parser.error("--scale is more than 0, --parallel 1 or more")
    extra = dict(argument.removeprefix("--config.").split("=", 1) for argument in rest)
    try:
        runs = load_sweep(arguments.sweep, arguments.smoke, extra, arguments.scale)
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    runs = [(run, config) for run, config in runs if re.search(arguments.only, run.name)]
    if not runs:
        sys.exit(f"--only {arguments.only}: no run of {arguments.sweep} has such a name.")
    try:
        states = [state_of(epath.Path(arguments.workdir) / run.name, config) for run, config in runs]
    except Exception as error:  # a bucket that cannot be reached from here; each store has its own errors
        if not arguments.print:
            raise
        print(f"printing every job, finished or not: {arguments.workdir} cannot be read: {error}", file=sys.stderr)
        states = ["to do"] * len(runs)
    if arguments.print:
        for (run, _), state in zip(runs, states, strict=True):
            if state != "finished":
                options = ["--name", job_name(run.name), *shlex.split(arguments.job_options)]
                print(shlex.join([LAUNCHERS[arguments.print], *options, *run.arguments(arguments.workdir)]))
        return
    if arguments.dry_run:
        for (run, config), state in zip(runs, states, strict=True):
            changes = " ".join(f"{key}={value}" for key, value in run.overrides.items())
            print(f"{run.name}  {state}  {config.total_steps:,} steps  {run.config}  {changes}".rstrip())
        print(f"{len(runs)} runs, {states.count('finished')} finished")
        return
    try:
        outcomes = execute(runs, arguments.workdir, arguments.parallel)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")
    failed = [outcome for outcome in outcomes if outcome.failure]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} runs are finished in {arguments.workdir}")
    for outcome in failed:
        print(f"failed: {outcome.name}: {outcome.failure}")
    sys.exit(1 if failed else 0)


def job_name(run: str) -> str:
    """What Kubernetes takes for a name: lower-case letters, digits and dashes, a letter first, at most 40."""
    plain = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"run-{plain}"
    if len(plain) > 40:  # the end tells runs of a sweep apart, and so does a digest of the whole
        plain = f"{plain[:33].rstrip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:6]}"
    return plain


if __name__ == "__main__":
    main()
