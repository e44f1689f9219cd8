"""A plan for GPUs without a compiler for them: FLOPs are counted, everything else is estimated."""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh

from clips_jax.config import Config
from clips_jax.config.check import check_mesh
from clips_jax.plan.chips import Topology
from clips_jax.plan.collectives import Collective
from clips_jax.plan.compiled import SPECIAL, Compiled, Memory, parameter_count, state_bytes
from clips_jax.plan.executed import Work
from clips_jax.plan.flops import jaxpr_flops
from clips_jax.plan.liveness import peak_bytes
from clips_jax.program import StepProgram, make_step_program

# Share of the peak that a step of matrix products, softmax and element-wise work reaches. Assumption; large language
# models report 40 to 50 % on these GPUs, and our rows are shorter.
REACHED = 0.4


def abstract_program(config: Config, chips: int) -> StepProgram:
    """The step over a mesh of `chips` devices that do not exist; it can be traced, not compiled."""
    sizes = check_mesh(config, chips)
    return make_step_program(config, AbstractMesh(tuple(sizes.values()), tuple(sizes)), SPECIAL)


def trace(program: StepProgram) -> Any:
    """The step's jaxpr."""
    return program.step().trace(program.state_shapes, program.batch_shapes).jaxpr.jaxpr


def estimate_step(config: Config, topology: Topology) -> Compiled:
    """A `Compiled` whose every number but `traced_flops`, parameters and optimizer state is an estimate.

    Memory: `liveness.peak_bytes`, with parameters gathered whole where a layer uses them. Collectives: what fully
    sharded data parallelism sends. Time: the counted FLOPs at `REACHED` of the peak.
    """
    program = abstract_program(config, topology.chips)
    jaxpr = trace(program)
    traced = jaxpr_flops(jaxpr)
    sizes = state_bytes(program)
    arguments = sum(sizes.values())
    temporaries = int(peak_bytes(jaxpr, _bytes_on_chip(program)))
    reached = traced / topology.chips / REACHED
    return Compiled(
        topology=topology,
        mesh=dict(program.mesh.shape),
        parameter_count=parameter_count(program),
        memory=Memory(**sizes, arguments=arguments, temporaries=temporaries, peak=arguments + temporaries),
        traced_flops=traced,
        work=Work(traced / topology.chips, 0.0, 0.0, reached / topology.chip.peak_flops),
        collectives=_collectives(program, topology),
        lowered_operations=0,
        compile_seconds=0.0,
    )


def _bytes_on_chip(program: StepProgram) -> Any:
    """Bytes on one chip of an array: parameters as sharded, a layer's slice whole, all else split over all chips."""
    shares: dict[tuple[int, ...], float] = {}
    for leaf in jax.tree.leaves(program.state_shapes.params):
        if leaf.ndim:
            shares[leaf.shape] = math.prod(leaf.sharding.shard_shape(leaf.shape)) / math.prod(leaf.shape)
            shares.setdefault(leaf.shape[1:], 1.0)
    chips = program.mesh.size

    def size(array: Any) -> float:
        share = shares.get(array.shape, 1 / chips)
        return share * math.prod(array.shape) * getattr(array.dtype, "itemsize", 4)

    return size


def _collectives(program: StepProgram, topology: Topology) -> list[Collective]:
    """Parameters gathered for the forward and the backward pass, gradients scattered, then summed over `data`."""
    config, shape = program.config, program.mesh.shape
    item = jax.numpy.dtype(config.model.dtype).itemsize
    count = parameter_count(program) // shape["tensor"]
    found = []
    if shape["fsdp"] > 1:
        found.append(Collective("all-gather", shape["fsdp"], count * item, 2, True, "parameters"))
        found.append(Collective("reduce-scatter", shape["fsdp"], count * 4, 1, True, "gradients"))
    if shape["data"] > 1:
        found.append(
            Collective("all-reduce", shape["data"], count * 4 // shape["fsdp"], 1, True, "gradients over data")
        )
    if config.objective.contrastive != "none" and topology.chips > 1:
        texts = 4 * config.batch_size * config.model.joint_dim * len(config.objective.views)
        found.append(Collective("all-gather", shape["data"] * shape["fsdp"], texts, 1, False, "texts of the batch"))
    return found
