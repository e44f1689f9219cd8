"""One table and plots over runs.

  python -m clips_jax.report runs/ladder/*
  python -m clips_jax.report runs/ladder/* --gains
  python -m clips_jax.report runs/inverse_effect/* --x objective.views.mix.budget --series objective.views.mix.mask \\
      --level truncation-128

Runs that differ by nothing but the seed are one row, with mean and standard deviation. Writes compare.html, compare.csv
(a line per row), runs.csv (a line per run) and figures/*.svg. Folders without results, or stopped before their last
step, are left out and named.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX starts: FLOPs are counted without an accelerator

from clips_jax.config import ConfigError
from clips_jax.report.compare import Wishes, terminal_gains, terminal_table, write_comparison
from clips_jax.report.runs import flops_per_image, group, metrics, read_run


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="workdirs of finished runs")
    parser.add_argument("--out", help="folder for the files (default: the folder that the first workdir lies in)")
    parser.add_argument("--x", default="", metavar="KEY", help="numeric setting to draw results against")
    parser.add_argument("--series", default="", metavar="KEY", help="setting that tells the lines of that chart apart")
    parser.add_argument("--level", default="", metavar="ROW", help="row drawn across that chart, to compare with")
    parser.add_argument("--gains", action="store_true", help="each row's difference from the row before, seed by seed")
    arguments = parser.parse_args(argv)
    runs, left_out = [], {}
    folders = arguments.workdirs
    if folders == sorted(folders):  # by the shell, which puts 16 before 4
        folders = sorted(folders, key=_natural)
    for folder in folders:
        try:
            run = read_run(folder)
        except (FileNotFoundError, NotADirectoryError, KeyError, json.JSONDecodeError) as error:
            left_out[folder] = str(error) if not isinstance(error, KeyError) else f"no {error} in its files"
            continue
        if run.finished:
            runs.append(run)
        else:
            left_out[folder] = f"stopped at {run.images_seen:,} of {run.config['total_samples']:,} images"
    if not runs:
        reasons = "; ".join(f"{folder}: {reason}" for folder, reason in left_out.items())
        sys.exit(f"no finished run among {len(arguments.workdirs)} folders. {reasons}")
    for option, key in (("--x", arguments.x), ("--series", arguments.series)):
        if key and not any(key in run.settings for run in runs):
            sys.exit(f"{option} {key}: no run has such a setting; its config.json has them all.")
    rows = group(runs, _count_flops)
    if arguments.level and arguments.level not in [row.name for row in rows]:
        sys.exit(f"--level {arguments.level}: no such row; there are {', '.join(row.name for row in rows)}.")
    out = arguments.out or os.path.dirname(os.path.normpath(arguments.workdirs[0])) or "."
    wishes = Wishes(arguments.x, arguments.series, arguments.level, arguments.gains)
    paths = write_comparison(out, rows, left_out, wishes)
    print(terminal_table(rows, metrics(rows)))
    if arguments.gains:
        print(f"\n{terminal_gains(rows, metrics(rows))}\n")
    for folder, reason in left_out.items():
        print(f"left out: {folder}: {reason}")
    print(f"\nwritten: {', '.join(str(path) for path in paths)}")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts by the numbers within names as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _count_flops(config: dict) -> float:
    try:
        return flops_per_image(config)
    except ConfigError as error:
        print(f"FLOPs not counted: {error}", file=sys.stderr)  # a config of an older version, say
        return float("nan")


if __name__ == "__main__":
    main()
