"""Matrix FLOPs of a function before compilation, from its jaxpr: loops count as often as they turn.

Shapes in a jaxpr are those of the whole mesh, except inside `shard_map`, where they are one chip's along the axes that
it maps; there every chip does what is written.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def matrix_flops(function: Any, *arguments: Any) -> float:
    """FLOPs of the matrix products of one call, over all chips, 2 per multiply-add.

    Args:
      function: jitted or not; it is traced, not run.
      arguments: arrays or ShapeDtypeStructs.

    Branches of a conditional count as the most expensive one; a `while` of unknown length counts as one turn; a Pallas
    kernel counts its whole grid, blocks that it skips included.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def jaxpr_flops(jaxpr: Any) -> float:
    """`matrix_flops` of a traced function, without what nobody reads: a compiler leaves it out.

    A gradient rule of our own computes gradients of all its inputs, those of the pictures too.
    """
    return _live_flops(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _live_flops(jaxpr: Any) -> float:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    inner = [_live_flops(jaxpr) for jaxpr in inner_jaxprs(parameters)]
    if name == "cond":
        return max(inner)
    total = sum(inner)
    if name == "scan":
        return total * parameters["length"]
    if name == "shard_map":
        mesh = parameters["mesh"]
        return total * math.prod(mesh.shape[axis] for axis in parameters.get("manual_axes", mesh.axis_names))
    if name == "pallas_call":
        return total * math.prod(parameters["grid_mapping"].grid)
    return total


def inner_jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters; rules for derivatives are functions and so left out."""
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _convolution_flops(equation: Any) -> float:
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    out_axis, in_axis, *spatial = numbers.rhs_spec
    taps = kernel[in_axis] * math.prod(kernel[axis] for axis in spatial)
    return 2.0 * taps * math.prod(equation.outvars[0].aval.shape) / equation.params["batch_group_count"]
