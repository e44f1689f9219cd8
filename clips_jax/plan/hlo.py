"""Reads the text of a compiled XLA program: its computations, and how often each runs in one call.

XLA's own cost analysis counts the body of a loop once; here a body counts as often as the loop turns.
"""

import dataclasses
import functools
import math
import re

# Bytes per element; sub-byte types are not used in training.
DTYPE_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAMES = re.compile(r"%([\w.\-]+)")
# A Pallas kernel's metadata are written over several lines.
_CONTINUED = re.compile(r"\n(?=\"|}})")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array; `on_chip` is True where the compiler placed it in the chip's fast memory instead of HBM."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> int:
        """Without the padding of tiled layouts."""
        return DTYPE_BYTES.get(self.dtype, 0) * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = shapes opcode(operands), attributes`; a tuple has several shapes."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    argument: str  # what stands between the parentheses: a constant's value, a parameter's number
    is_root: bool

    def called(self, key: str) -> str | None:
        """The computation that an attribute names: calls, body, condition, to_apply."""
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the schedule."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in self.instructions.values() if i.is_root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions that read each value."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in set(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    def parameters(self) -> list[Instruction]:
        """Its parameters by number."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.argument))


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: by name.
      entry: name of the one that a call runs.
    """

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs in one call, fusions and reducers included.

        Every branch of a conditional counts once: an upper bound.
        """
        runs: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            runs[name] = runs.get(name, 0) + times
            for instruction in self.computations[name].instructions.values():
                if instruction.opcode == "while":
                    turns = self.loop_turns(instruction)
                    for key, more in (("body", turns), ("condition", turns + 1)):
                        visit(str(instruction.called(key)), times * more)
                    continue
                for called in _called_computations(instruction):
                    visit(called, times)

        visit(self.entry, 1)
        return runs

    @functools.cached_property
    def scheduled(self) -> set[str]:
        """Computations whose instructions run one by one: the entry, loop bodies and branches, not fusions."""
        names = {self.entry}
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                if instruction.opcode == "while":
                    names |= {str(instruction.called("body")), str(instruction.called("condition"))}
                elif instruction.opcode in ("conditional", "call"):
                    names.update(_called_computations(instruction))
        return names & set(self.runs)

    def loop_turns(self, loop: Instruction) -> int:
        """Turns of a loop that counts from 0 to a constant, as scans do; 1 for any other loop."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[str(loop.called("condition"))]
        return self._bound(condition, condition.root) or 1

    def _bound(self, computation: Computation, compare: Instruction) -> int | None:
        if compare.opcode == "fusion":  # the comparison wrapped up, its constant inside or handed in
            inner = self.computations[str(compare.called("calls"))]
            bound = self._bound(inner, inner.root)
            return bound if bound is not None else _constant(computation, compare.operands)
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return None
        return _constant(computation, compare.operands)


def _constant(computation: Computation, names: tuple[str, ...]) -> int | None:
    for name in names:
        instruction = computation.instructions.get(name)
        if instruction and instruction.opcode == "constant" and instruction.argument.lstrip("-").isdigit():
            return int(instruction.argument)
    return None


def _called_computations(instruction: Instruction) -> list[str]:
    names = [instruction.called(key) for key in ("calls", "to_apply", "true_computation", "false_computation")]
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    return [name for name in names if name] + (_NAMES.findall(branches[1]) if branches else [])


def parse(text: str) -> Module:
    """The program of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, instructions = "", None
    for line in _CONTINUED.sub(" ", text).splitlines():
        if instructions is None:
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                instructions = {}
                computations[header[2]] = Computation(header[2], instructions)
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            instructions = None
        elif match := _INSTRUCTION.match(line):
            instruction = _instruction(match, line[match.end() :])
            instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("No ENTRY computation: this is not the text of a compiled program.")
    return Module(computations, entry)


def _instruction(match: re.Match[str], rest: str) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    argument = rest[opening + 1 : closing - 1]
    return Instruction(
        name=match[2],
        opcode=rest[:opening],
        shapes=parse_shapes(shapes),
        operands=tuple(_NAMES.findall(argument)),
        attributes=rest[closing:],
        argument=argument.strip(),
        is_root=bool(match[1]),
    )


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """All arrays in the text of a shape or of a tuple of shapes."""
    return tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), "S(1)" in layout)
        for dtype, dims, layout in _SHAPE.findall(text)
    )


def _closing(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.end()
    raise ValueError(f"Unbalanced parentheses: {text[:200]}")
