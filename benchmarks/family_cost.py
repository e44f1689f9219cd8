"""What every member of the family costs at B/16 and L/14, by the planner: the table of docs/family.md.

    python -m benchmarks.family_cost --topology v5e:16x16          compiled for TPUs: minutes per member
    python -m benchmarks.family_cost --topology gpu:h100:8x32      counted and estimated: seconds per member

Stage 1 of a size's schedule. Plans are kept in --plans, one line of JSON each, and not made again; what fails to plan
is named and the table is printed without it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from configs.family import FULL_SIZES, MEMBERS

VARIANTS = {"clips": ("captioner=learnable", "captioner=teacher_forced")}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:16x16", help="as in clips_jax.plan (default v5e:16x16)")
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), choices=MEMBERS)
    parser.add_argument("--sizes", nargs="+", default=list(FULL_SIZES), choices=list(FULL_SIZES))
    parser.add_argument("--plans", default="family_cost.jsonl", help="file that keeps the plans")
    arguments = parser.parse_args()
    kept = Path(arguments.plans)
    plans = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    failed = []
    for size in arguments.sizes:
        rows = []
        for member in arguments.members:
            for variant in VARIANTS.get(member, ("",)):
                name = f"{member}:size={size}" + (f",{variant}" if variant else "")
                plan = next((p for p in plans if (p["config"], p["topology"]) == (name, arguments.topology)), None)
                if plan is None:
                    plan = make_plan(f"configs/{member}.py{name.removeprefix(member)}", arguments.topology)
                    if plan is None:
                        failed.append(name)
                        continue
                    with kept.open("a") as file:
                        file.write(json.dumps(plan) + "\n")
                rows.append(row(member + (f" ({variant.removeprefix('captioner=')})" if variant else ""), plan))
        print(f"\n{size} on {arguments.topology}, stage 1:\n\n{HEAD}\n" + "\n".join(rows), flush=True)
    if failed:
        sys.exit(f"no plan for {', '.join(failed)}")


def make_plan(config: str, topology: str) -> dict[str, Any] | None:
    """The planner's JSON; None if it fails (it says why on stderr)."""
    command = [sys.executable, "-m", "clips_jax.plan", "--config", config, "--topology", topology, "--json"]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return json.loads(last) if last.startswith("{") else None


HEAD = "| member | parameters | GFLOP per image | memory per chip | chip-hours |\n|---|---|---|---|---|"


def row(name: str, plan: dict[str, Any]) -> str:
    """One line of the table."""
    per_image = plan["flops_per_chip"] * plan["chips"] / plan["batch_size"] / 1e9
    hours = plan.get("estimated", {}).get("chip_hours")
    memory = f"{plan['peak_bytes_per_chip'] / 2**30:.1f} GiB" + ("" if plan["fits"] else ", does not fit")
    shown = f"~{hours:,.0f}" if hours else "–"
    return f"| {name} | {plan['parameters'] / 1e6:,.0f} M | {per_image:,.1f} | {memory} | {shown} |"


if __name__ == "__main__":
    main()
