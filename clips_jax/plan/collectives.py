"""What the chips say to each other in one call of a compiled program, by kind and size."""

import dataclasses
import re

from clips_jax.plan.hlo import Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of `KINDS`.
      group: chips that take part in one instance.
      bytes: of the whole array per chip: an all-gather's result, the input of the others.
      times: runs in one call of the program.
      overlapped: whether the compiler split it into a start and an end with other work between.
      name: where in the model it comes from, as the compiler says.
    """

    kind: str
    group: int
    bytes: int
    times: int
    overlapped: bool
    name: str

    @property
    def wire_bytes(self) -> float:
        """Bytes that one chip sends per run, by the ring algorithm; a permute sends its array once."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.bytes * (self.group - 1) / self.group


def find_collectives(module: Module, chips: int) -> list[Collective]:
    """Every collective once.

    Two forms of the TPU compiler need care. An asynchronous collective that is fused with other work appears in three
    or more computations (start, the fusion that hides it, done): all carry one channel, so there a channel counts once.
    Elsewhere it does not identify: all that the compiler has combined carry channel 1. A fusion called
    all-reduce-scatter holds an all-reduce whose result is cut: that is a reduce-scatter.
    """
    found: dict[str, Collective] = {}
    for name, times in module.runs.items():
        computation = module.computations[name]
        fused = "async_collective" in name or any(
            i.opcode == "custom-call" and "AsyncCollective" in i.attributes for i in computation.instructions.values()
        )
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = channel[1] if channel and fused else f"{name}/{instruction.name}"
            if "all-reduce-scatter" in name:
                kind = "reduce-scatter"
            collective = Collective(
                kind=kind,
                group=group_size(instruction.attributes, chips),
                bytes=_bytes(instruction, kind, chips),
                times=times,
                overlapped=fused or instruction.opcode.endswith("-start"),
                name=_origin(instruction),
            )
            if key not in found or times < found[key].times:  # the fewest: a loop may run between start and end
                found[key] = collective
    return list(found.values())


def group_size(attributes: str, chips: int) -> int:
    """Chips in one group, of the three ways in which replica groups are written; permutes have pairs."""
    if "source_target_pairs=" in attributes:
        return 2
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        size = 1
        for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2]):
            size *= int(part or sizes[axis])
        return size
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(iota[2])
    if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(explicit[1].split(","))
    return chips  # replica_groups={}: everyone


def _bytes(instruction: Instruction, kind: str, chips: int) -> int:
    shapes = [shape.bytes for shape in instruction.shapes]
    if instruction.opcode == "all-gather-start":  # (operands, results)
        return sum(shapes[len(shapes) // 2 :])
    if instruction.opcode == "collective-permute-start":  # (operand, result, contexts)
        return shapes[0]
    if instruction.opcode == "reduce-scatter":
        return sum(shapes) * group_size(instruction.attributes, chips)
    return sum(shapes)


def _origin(instruction: Instruction) -> str:
    name = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return name[1] if name else instruction.name


def summarize(collectives: list[Collective]) -> dict[str, dict[str, float]]:
    """By kind: count (runs per step), bytes and wire_bytes per chip and step; the largest kind first."""
    summary: dict[str, dict[str, float]] = {}
    for one in collectives:
        row = summary.setdefault(one.kind, {"count": 0, "bytes": 0, "wire_bytes": 0})
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
        row["wire_bytes"] += one.times * one.wire_bytes
    return dict(sorted(summary.items(), key=lambda item: -item[1]["wire_bytes"]))
