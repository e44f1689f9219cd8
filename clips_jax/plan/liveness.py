"""An estimate of a step's peak memory from its jaxpr, for chips that no compiler here compiles for.

Arrays live from the equation that makes them to the last one that reads them. Element-wise results are taken to be
fused into their readers: they cost nothing, and keep alive what they were computed from.
"""

import math
from collections.abc import Callable
from typing import Any

from clips_jax.plan.flops import inner_jaxprs

# What XLA materialises. All else is element-wise or a change of view.
_MATERIALISED = {
    "dot_general",
    "conv_general_dilated",
    "sort",
    "gather",
    "scatter",
    "scatter-add",
    "cumsum",
    "argsort",
    "concatenate",
    "dynamic_update_slice",
    "pallas_call",
    "all_gather",
    "psum",
    "psum_scatter",
    "reduce_scatter",
    "ppermute",
}


def peak_bytes(jaxpr: Any, size: Callable[[Any], float]) -> float:
    """The most bytes that values made inside `jaxpr` take at one time; its inputs are its caller's.

    Args:
      jaxpr: of the step.
      size: bytes on one chip of an array (a ShapedArray) outside `shard_map`; inside, shapes are the chip's own.
    """
    roots: dict[Any, frozenset[Any]] = {}  # the materialised values that a variable stands for
    last: dict[Any, int] = {}
    for index, equation in enumerate([*jaxpr.eqns, None]):
        read = equation.invars if equation is not None else jaxpr.outvars
        read = [v for v in read if not hasattr(v, "val")]
        behind = frozenset().union(*(roots.get(v, frozenset()) for v in read)) if read else frozenset()
        for root in behind:
            last[root] = index
        if equation is not None:
            for out in equation.outvars:
                roots[out] = frozenset([out]) if _is_materialised(equation) else behind
    dies: dict[int, list[Any]] = {}
    for root, index in last.items():
        dies.setdefault(index, []).append(root)
    live = peak = 0.0
    for index, equation in enumerate(jaxpr.eqns):
        if _is_materialised(equation):
            live += sum(size(out.aval) for out in equation.outvars if out in last)
            local = _own_bytes if equation.primitive.name == "shard_map" else size
            inner = max((peak_bytes(one, local) for one in inner_jaxprs(equation.params)), default=0.0)
            peak = max(peak, live + inner)
        live -= sum(size(root.aval) for root in dies.get(index, ()))
    return max(peak, live)


def _is_materialised(equation: Any) -> bool:
    name = equation.primitive.name
    return name in _MATERIALISED or (name != "custom_jvp_call" and any(True for _ in inner_jaxprs(equation.params)))


def _own_bytes(array: Any) -> float:
    return math.prod(array.shape) * array.dtype.itemsize
