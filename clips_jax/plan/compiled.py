"""Compiles a config's step for chips that are not here, and reads what the compiler says."""

import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from clips_jax.config import Config
from clips_jax.data.tokenizer import SpecialTokens
from clips_jax.plan import flops, hlo
from clips_jax.plan.chips import Topology
from clips_jax.plan.collectives import Collective, find_collectives
from clips_jax.plan.executed import Work, executed
from clips_jax.plan.kernels import find_kernels
from clips_jax.plan.schedules import scheduled_words
from clips_jax.program import StepProgram, make_step_program
from clips_jax.sharding import make_mesh

LIBTPU = "pip install libtpu==0.0.52"  # as in tests/requirements.txt

# The step looks at special tokens by value only: any four do.
SPECIAL = SpecialTokens(pad=0, bos=1, eos=2, cls=3)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per chip while the step runs.

    Attributes:
      parameters, optimizer_state, batch: as sharded, without the padding of tiled layouts.
      arguments: the three above as the compiler lays them out; the state is updated in place.
      temporaries: activations, gradients, buffers of collectives.
      peak: the most that is in use at one time, arguments included.
    """

    parameters: int
    optimizer_state: int
    batch: int
    arguments: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step compiled for a topology.

    Attributes:
      parameter_count: over all chips.
      traced_flops: matrix FLOPs of one step over all chips, before compilation.
      work, collectives: of the compiled program on one chip; None if it did not fit.
      lowered_operations: lines of the program handed to the compiler.
      compile_seconds: tracing and lowering included.
    """

    topology: Topology
    mesh: dict[str, int]
    parameter_count: int
    memory: Memory
    traced_flops: float
    work: Work | None
    collectives: list[Collective] | None
    lowered_operations: int
    compile_seconds: float


def compile_step(config: Config, topology: Topology) -> Compiled:
    """Compiles; a program that needs more memory than there is comes back without `work` and `collectives`.

    Raises:
      ConfigError: the config does not fit the topology's number of chips, or libtpu does not know the topology.
    """
    mesh = make_mesh(config, topology.devices())
    return compile_program(make_step_program(config, mesh, SPECIAL), topology)


def compile_program(program: StepProgram, topology: Topology) -> Compiled:
    """`compile_step` of a program over the topology's devices."""
    assert isinstance(program.mesh, Mesh)
    start = time.perf_counter()
    traced = program.step().trace(program.state_shapes, program.batch_shapes)
    lowered = traced.lower()
    operations = sum(" = " in line for line in lowered.as_text().splitlines())
    counted, sizes = flops.jaxpr_flops(traced.jaxpr.jaxpr), state_bytes(program)
    work = collectives = None
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = memory_needed(str(error))
        if needed is None:
            raise
        seconds = time.perf_counter() - start
        arguments = sum(sizes.values())
        memory = Memory(**sizes, arguments=arguments, temporaries=needed, peak=arguments + needed)
    else:
        seconds = time.perf_counter() - start
        stats: Any = compiled.memory_analysis()
        memory = Memory(
            **sizes,
            arguments=stats.argument_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            peak=stats.peak_memory_in_bytes,
        )
        module = hlo.parse(compiled.as_text())
        words = functools.partial(scheduled_words, topology=topology.name)
        kernels = find_kernels(module, traced.jaxpr.jaxpr, words)
        work = executed(module, topology.chip.peak_flops, topology.chip.hbm_bandwidth, kernels)
        collectives = find_collectives(module, topology.chips)
    return Compiled(
        topology=topology,
        mesh=dict(program.mesh.shape),
        parameter_count=parameter_count(program),
        memory=memory,
        traced_flops=counted,
        work=work,
        collectives=collectives,
        lowered_operations=operations,
        compile_seconds=seconds,
    )


def parameter_count(program: StepProgram) -> int:
    """Parameters of the model, over all chips."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.state_shapes.params))


def state_bytes(program: StepProgram) -> dict[str, int]:
    """Bytes per chip of parameters, optimizer state and batch, as they are sharded."""

    def per_chip(tree: Any) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
        )

    state = program.state_shapes
    return {
        "parameters": per_chip(state.params),
        "optimizer_state": per_chip(state.opt_state),
        "batch": per_chip(program.batch_shapes),
    }


def memory_needed(message: str) -> int | None:
    """Bytes of temporaries that the compiler wanted when it ran out of memory; None for any other error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"total memory required for HLO temporaries \(([\d.]+)([KMG])\)", message)
    found = found or re.search(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", message)
    return int(float(found[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[found[2]]) if found else None
