"""The table of docs/scale.md: every full-size config and stage, planned for chips it would run on.

    python -m benchmarks.scale --results scale.jsonl            # hours on two cores; goes on where it stopped
    python -m benchmarks.scale --results scale.jsonl --only clips_l14
    python -m benchmarks.scale --results scale.jsonl --without_code    # an eighth of the time; see without_code.py
    python -m benchmarks.scale --results scale.jsonl --table    # prints what is there, plans nothing

Each row is one run of `python -m clips_jax.plan … --json`, or of `benchmarks.without_code`; its last line is kept, with
the commit it was made with. Rows come in the order of their worth.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

GIB = 2**30
# (config and its stage, topology, further flags). Every stage on the chips of the one before it, where it fits.
ROWS = (
    # Memory per chip at a fixed batch per chip: 256, 1,024 and 4,096 chips.
    ("clips_l14:stage=1", "v5p:8x8x4", "--batch_per_chip=128"),
    ("clips_l14:stage=1", "v5p:8x8x16", "--batch_per_chip=128"),
    ("clips_l14:stage=1", "v5p:16x16x16", "--batch_per_chip=128"),
    ("clips_s16:stage=1", "v5e:8x8"),
    ("clips_b16:stage=1", "v5e:16x16"),
    ("clips_l14:stage=1", "v5e:16x16"),
    ("clips_so400m14:stage=1", "v6e:16x16"),
    ("clips_h14:stage=1", "v5p:8x8x4"),
    ("clips_l14:stage=2", "v5e:16x16"),
    ("clips_l14:stage=3", "v5e:16x16"),
    ("clips_s16:stage=2", "v5e:8x8"),
    ("clips_b16:stage=2", "v5e:16x16"),
    ("clips_so400m14:stage=2", "v6e:16x16"),
    ("clips_so400m14:stage=3", "v6e:16x16"),
    ("clips_h14:stage=2", "v5p:8x8x4"),
    ("clips_h14:stage=3", "v5p:8x8x4"),
)


def main() -> None:
    """Plans the rows that are missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, required=True, help="JSON lines, one per row; appended to.")
    parser.add_argument("--only", default="", help="Rows whose config, topology or flags contain this.")
    parser.add_argument("--without_code", action="store_true", help="Compile without generating code.")
    parser.add_argument("--table", action="store_true", help="Print what is there.")
    arguments = parser.parse_args()
    wanted = [row for row in ROWS if arguments.only in " ".join(row)]
    for number, row in enumerate(wanted, 1):
        if not arguments.table and row not in _read(arguments.results):
            print(f"{number} of {len(wanted)}: {' '.join(row)}", file=sys.stderr, flush=True)
            result = _plan(row, arguments.without_code)
            if result is None:
                continue
            with arguments.results.open("a") as file:
                file.write(json.dumps({"row": row, "commit": _commit(), **result}) + "\n")
    results = _read(arguments.results)
    print(table([results[row] for row in wanted if row in results]))


def _plan(row: tuple[str, ...], without_code: bool) -> dict[str, Any] | None:
    config, topology, *flags = row
    name, _, settings = config.partition(":")
    command = [sys.executable, "-m", "clips_jax.plan", f"--config=configs/{name}.py:{settings}", "--json"]
    if without_code:
        command = [sys.executable, "-m", "benchmarks.without_code", f"--config={config}"]
    done = subprocess.run([*command, f"--topology={topology}", *flags], capture_output=True, text=True)
    if done.returncode not in (0, 3):
        print(f"{' '.join(row)}: {done.stderr}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def _read(path: pathlib.Path) -> dict[tuple[str, ...], dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {tuple(result["row"]): result for result in map(json.loads, lines)}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, one row per plan."""
    lines = [
        "| config, stage | chips | batch | peak GiB (of HBM) | arguments GiB | TFLOP per chip (x minimum) | GB sent "
        "| compile s | ~ step s, roofline – cycles | ~ MFU | ~ chip-hours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        peak, hbm = one["peak_bytes_per_chip"] / GIB, one["hbm_bytes_per_chip"] / GIB
        fits = "" if one["fits"] else " **does not fit**"
        sent = sum(kind["wire_bytes"] for kind in (one["collectives"] or {}).values()) / 1e9
        times, compile_seconds = one.get("estimated"), one["compile_seconds"]
        by_cycles = f" – {times['step_seconds_by_cycles']:.3f}" if times and times["step_seconds_by_cycles"] else ""
        cells = [
            one["config"],
            one["topology"],
            f"{one['batch_size']:,}",
            f"{peak:.2f} of {hbm:.2f}{fits}",
            f"{one['argument_bytes_per_chip'] / GIB:.2f}",
            f"{one['flops_per_chip'] / 1e12:.2f} ({one['flops_over_minimum']:.3f})",
            f"{sent:.2f}" if one["collectives"] else "",
            "" if compile_seconds is None else f"{compile_seconds:.0f}",
            f"{times['step_seconds']:.3f}{by_cycles}" if times else "",
            f"{100 * times['mfu']:.0f} %" if times else "",
            f"{times['chip_hours']:,.0f}" if times else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
