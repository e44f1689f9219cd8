"""Pallas kernels of a step: the text of a compiled program shows them as calls and says nothing of what they do.

Their matrix FLOPs are counted before compilation, as all others are. How long they take follows from the compiler's
schedule: the instruction words of one step of the grid, one per cycle, times the steps. Libtpu writes schedules down if
asked to before it is loaded. What a kernel reads and writes counts once; ours read nothing twice.
"""

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

from clips_jax.plan.flops import inner_jaxprs, jaxpr_flops
from clips_jax.plan.hlo import Instruction, Module


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One call.

    Attributes:
      flops: of matrix products, blocks that it skips included.
      cycles: None without a schedule.
    """

    flops: float
    cycles: int | None


def keep_schedules(folder: Path) -> None:
    """Has libtpu write the schedules of what it compiles to this folder; call it before libtpu is loaded."""
    arguments = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {arguments}"


def find_kernels(module: Module, jaxpr: Any, schedules: Path | None) -> dict[str, Kernel]:
    """The kernels of a compiled program by the name of the instruction that calls them.

    Args:
      jaxpr: of the traced step.
      schedules: the folder of `keep_schedules`, if there is one.
    """
    calls = [
        instruction
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if 'custom_call_target="tpu_custom_call"' in instruction.attributes
    ]
    traced, found = _traced(jaxpr), {}
    words: dict[_Key, int] = {}  # by kernel: one that is called twice is scheduled once
    for call in calls:
        if schedules and (scheduled := _scheduled_words(schedules, call.name)):
            words[_key(call)] = scheduled
    for call in calls:
        flops, steps = traced[_key(call)]
        found[call.name] = Kernel(flops, words[_key(call)] * steps if _key(call) in words else None)
    return found


# A kernel's name and the shape of its first result; two of the same name differ in it.
_Key = tuple[str, tuple[int, ...]]


def _key(instruction: Instruction) -> _Key:
    return instruction.name.split(".")[0], instruction.shapes[0].dims


def _traced(jaxpr: Any) -> dict[_Key, tuple[float, int]]:
    """FLOPs and steps of the grid of every kernel in a jaxpr."""
    found: dict[_Key, tuple[float, int]] = {}
    for equation in jaxpr.eqns:
        inner = list(inner_jaxprs(equation.params))
        if equation.primitive.name == "pallas_call":
            steps = math.prod(equation.params["grid_mapping"].grid)
            key = str(equation.params["name"]), equation.outvars[0].aval.shape
            found[key] = steps * sum(jaxpr_flops(one) for one in inner), steps
        for one in inner:
            found |= _traced(one)
    return found


def _scheduled_words(schedules: Path, name: str) -> int:
    """Of the last program in which an instruction had this name; 0 if there was none."""
    files = sorted(schedules.glob(f"*-{name}-*schedule-analysis_final_bundles.txt"))
    words = re.search(r"total scheduled bundles:\s*(\d+)", files[-1].read_text()) if files else None
    return int(words[1]) if words else 0
