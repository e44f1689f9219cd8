"""Pallas kernels of a step: the text of a compiled program shows them as calls and says nothing of what they do.

Their matrix FLOPs are counted before compilation, as all others are; their cycles are those of one step of their grid
(`schedules`) times the steps. What a kernel reads and writes counts once; ours read nothing twice.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from clips_jax.plan.flops import inner_jaxprs, jaxpr_flops
from clips_jax.plan.hlo import Instruction, Module


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One call.

    Attributes:
      flops: of matrix products, blocks that it skips included.
      cycles: None if nobody asked for them.
    """

    flops: float
    cycles: int | None


def find_kernels(
    module: Module, jaxpr: Any, words: Callable[[Sequence[Any]], list[int]] | None = None
) -> dict[str, Kernel]:
    """The kernels of a compiled program by the name of the instruction that calls them.

    Args:
      jaxpr: of the traced step.
      words: `schedules.scheduled_words` on the chips of the program; without it no cycles.
    """
    calls = [
        instruction
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if 'custom_call_target="tpu_custom_call"' in instruction.attributes
    ]
    traced = _traced(jaxpr)
    used = {_key(call): traced[_key(call)] for call in calls}
    scheduled = dict(zip(used, words(list(used.values())), strict=True)) if words and used else {}
    found = {}
    for call in calls:
        kernel, key = used[_key(call)], _key(call)
        steps = math.prod(kernel.params["grid_mapping"].grid)
        flops = steps * sum(jaxpr_flops(one) for one in inner_jaxprs(kernel.params))
        found[call.name] = Kernel(flops, scheduled[key] * steps if scheduled else None)
    return found


# A kernel's name and the shape of its first result; two of the same name differ in it.
_Key = tuple[str, tuple[int, ...]]


def _key(instruction: Instruction) -> _Key:
    return instruction.name.split(".")[0], instruction.shapes[0].dims


def _traced(jaxpr: Any) -> dict[_Key, Any]:
    """The equation of every kernel in a jaxpr."""
    found: dict[_Key, Any] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found[str(equation.params["name"]), equation.outvars[0].aval.shape] = equation
        for inner in inner_jaxprs(equation.params):
            found |= _traced(inner)
    return found
