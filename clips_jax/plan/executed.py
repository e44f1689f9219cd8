"""What one call of a compiled program does on one chip: matrix FLOPs, HBM traffic, and a lower bound of its time.

All from the text of the program after partitioning and fusion, so work that is repeated on every chip, or that the
compiler recomputes, is in.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from clips_jax.plan.collectives import KINDS as COLLECTIVES
from clips_jax.plan.hlo import Computation, Instruction, Module, Shape
from clips_jax.plan.kernels import Kernel

# These move nothing, or what they move is counted at their start.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "copy-done",
    "all-gather-done",
    "all-reduce-done",
    "collective-permute-done",
    "async-done",
    "partition-id",
    "iota",
}
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one chip in one call.

    Attributes:
      flops: of matrix products and convolutions, 2 per multiply-add; positions that only see padding do not count.
      bytes: read from and written to HBM, without the padding of tiled layouts.
      cycles: the compiler's own estimate, of the instructions for which it states one, and of kernels (`kernels`);
        None if those of a kernel are not known.
      roofline_seconds: sum over instructions of max(flops / peak, bytes / bandwidth): they run one after another.
    """

    flops: float
    bytes: float
    cycles: float | None
    roofline_seconds: float


def executed(module: Module, peak_flops: float, hbm_bandwidth: float, kernels: Mapping[str, Kernel]) -> Work:
    """The work of `module` on a chip with these rates, in FLOP/s and bytes/s; `kernels` by instruction."""
    flops = total_bytes = cycles = seconds = 0.0
    known = all(kernel.cycles is not None for kernel in kernels.values())
    for name in module.scheduled:
        computation, runs = module.computations[name], module.runs[name]
        for instruction in computation.instructions.values():
            one_flops = matrix_flops(module, computation, instruction)
            one_bytes = hbm_bytes(module, computation, instruction)
            total_bytes += runs * one_bytes
            stated = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            cycles += runs * int(stated[1]) if stated else 0
            if kernel := kernels.get(instruction.name):
                one_flops += kernel.flops
                cycles += runs * (kernel.cycles or 0)
            flops += runs * one_flops
            seconds += runs * max(one_flops / peak_flops, one_bytes / hbm_bandwidth)
    return Work(flops, total_bytes, cycles if known else None, seconds)


def matrix_flops(module: Module, computation: Computation, instruction: Instruction) -> float:
    """FLOPs of the matrix products of an instruction, those inside a fusion included."""
    if instruction.opcode == "fusion":
        inner = module.computations[str(instruction.called("calls"))]
        return sum(matrix_flops(module, inner, i) for i in inner.instructions.values())
    shapes = [s for name in instruction.operands for s in computation.instructions[name].shapes]
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        depth = math.prod(shapes[0].dims[int(d)] for d in contracted[1].split(",") if d) if contracted else 1
        return 2.0 * depth * math.prod(instruction.shapes[0].dims)
    if instruction.opcode == "convolution":
        return _convolution_flops(shapes[0], shapes[1], instruction)
    return 0.0


def _convolution_flops(lhs: Shape, rhs: Shape, instruction: Instruction) -> float:
    """The TPU compiler writes every matrix product as a convolution, batch axes as dilated windows."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, instruction.attributes
    lhs_labels, rhs_labels, out_labels = labels.groups()
    window = _window(instruction.attributes)
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    pairs = 1  # of an output position and a kernel position that meet in real input, over all spatial axes
    for axis in sorted(label for label in lhs_labels if label.isdigit()):
        sizes = (lhs.dims[lhs_labels.index(axis)], rhs.dims[rhs_labels.index(axis)])
        pairs *= _meeting_positions(*sizes, instruction.shapes[0].dims[out_labels.index(axis)], window, int(axis))
    batch = lhs.dims[lhs_labels.index("b")] // int(groups[1] if groups else 1)
    channels_in, channels_out = rhs.dims[rhs_labels.index("i")], rhs.dims[rhs_labels.index("o")]
    return 2.0 * batch * channels_in * channels_out * pairs


def _window(attributes: str) -> dict[str, list[str]]:
    window = re.search(r"window=\{([^}]*)\}", attributes)
    parts = dict(part.split("=") for part in window[1].split()) if window else {}
    return {key: value.split("x") for key, value in parts.items()}


def _meeting_positions(size: int, kernel: int, out: int, window: dict[str, list[str]], axis: int) -> int:
    def setting(key: str, default: str) -> str:
        return window[key][axis] if key in window else default

    stride, low = int(setting("stride", "1")), int(setting("pad", "0_0").split("_")[0])
    lhs_dilate, rhs_dilate = int(setting("lhs_dilate", "1")), int(setting("rhs_dilate", "1"))
    count = 0
    for position in range(out):
        for tap in range(kernel):
            place = position * stride - low + tap * rhs_dilate
            count += place % lhs_dilate == 0 and 0 <= place // lhs_dilate < size
    return count


def hbm_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads and writes in HBM.

    An operand of which only a slice is read counts as the slice; an array updated in place counts as the update.
    """
    if instruction.opcode in _FREE:
        return 0.0
    operands = [computation.instructions[name] for name in instruction.operands]
    if instruction.opcode == "fusion":
        return _fusion_bytes(module, module.computations[str(instruction.called("calls"))], operands, instruction)
    if instruction.opcode in _SLICES:
        return 2.0 * _in_hbm(instruction.shapes)
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * _in_hbm(operands[1].shapes)
    if instruction.opcode.endswith("-start"):  # (operand, result, context): the result and the operand
        return float(_in_hbm(instruction.shapes))
    return float(sum(_in_hbm(o.shapes) for o in operands) + _in_hbm(instruction.shapes))


def _fusion_bytes(module: Module, inner: Computation, operands: list[Instruction], fusion: Instruction) -> float:
    total = 0.0
    for operand, parameter in zip(operands, inner.parameters(), strict=True):
        total += min(_in_hbm(operand.shapes), _bytes_read(module, inner, parameter))
    root = inner.root
    written = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for result, shape in zip(written, fusion.shapes, strict=False):
        if result.opcode == "dynamic-update-slice" and not shape.on_chip:
            total += sum(s.bytes for s in inner.instructions[result.operands[1]].shapes)
        elif not _is_under_way(result) and result.opcode != "parameter":
            total += _in_hbm((shape,))
    return total


def _bytes_read(module: Module, computation: Computation, parameter: Instruction) -> float:
    """What a fusion reads of one of its parameters, wherever that lives."""
    whole, total = float(sum(shape.bytes for shape in parameter.shapes)), 0.0
    for user in computation.users[parameter.name]:
        if user.opcode in _SLICES:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.opcode == "fusion":
            inner = module.computations[str(user.called("calls"))]
            for operand, inside in zip(user.operands, inner.parameters(), strict=True):
                if operand == parameter.name:
                    total += _bytes_read(module, inner, inside)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            pass  # updated in place
        elif user.opcode != "tuple" and not _is_under_way(user):
            return whole
    return min(whole, total)


def _is_under_way(instruction: Instruction) -> bool:
    """Part of an asynchronous collective whose traffic was counted where it starts."""
    return instruction.opcode in COLLECTIVES or "AsyncCollectiveDone" in instruction.attributes


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if not shape.on_chip)
