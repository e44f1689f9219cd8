"""Pallas kernels in a program compiled for a TPU: found, counted, their schedules read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clips_jax.masks import SegmentMask
from clips_jax.models.fused_attention import fused_attention
from clips_jax.plan import hlo
from clips_jax.plan.executed import executed
from clips_jax.plan.kernels import find_kernels

ROWS, LENGTH, HEADS, WIDTH = 8, 209, 4, 64
PRODUCT = ROWS * HEADS * 2 * LENGTH**2 * WIDTH
RATES = {"peak_flops": 197e12, "hbm_bandwidth": 8.1e11}


@pytest.fixture(scope="module")
def step():
    """Attention and its gradients over two rows of chips and two halves of the heads, traced and compiled."""
    pytest.importorskip("libtpu")
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = Mesh(np.array(chips).reshape(2, 1, 2), ("data", "fsdp", "tensor"))

    def loss(query, key, value, segments):
        return (fused_attention(query, key, value, SegmentMask(segments, prefix=81)) ** 2).sum()

    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    x = jax.ShapeDtypeStruct((ROWS, LENGTH, HEADS, WIDTH), jnp.bfloat16, sharding=rows)
    segments = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).trace(x, x, x, segments)
        return traced.jaxpr.jaxpr, hlo.parse(traced.lower().compile().as_text())


def test_kernels_of_a_chip(step):
    jaxpr, module = step
    kernels = find_kernels(module, jaxpr, None)
    by_name = {name.split(".")[0]: kernel for name, kernel in kernels.items()}
    assert by_name["attention_forward"].flops == 2 * PRODUCT / 4
    assert by_name["attention_backward"].flops == 5 * PRODUCT / 4
    work = executed(module, **RATES, kernels=kernels)
    assert work.flops == 7 * PRODUCT / 4
    assert work.cycles is None  # nobody kept their schedules


def renamed(module):
    """The program's entry under other names: libtpu schedules equal kernels once."""
    instructions = module.computations[module.entry].instructions.values()
    again = [dataclasses.replace(one, name=f"{one.name}0") for one in instructions]
    return hlo.Computation("again", {one.name: one for one in again})


def test_cycles_are_words_times_steps(step, tmp_path):
    jaxpr, module = step
    for name in find_kernels(module, jaxpr, None):
        for time, words in ((1, 7), (2, 1000)):  # the later one counts
            file = tmp_path / f"{time}-{name}-00-schedule-analysis_final_bundles.txt"
            file.write_text(f"Schedule analysis:\n\ttotal scheduled bundles:    {words}\n")
    kernels = find_kernels(module, jaxpr, tmp_path)
    assert [kernel.cycles for kernel in kernels.values()] == [1000 * ROWS // 2] * 2  # a block of two heads is a row
    twice = dataclasses.replace(module, computations=module.computations | {"again": renamed(module)})
    assert {kernel.cycles for kernel in find_kernels(twice, jaxpr, tmp_path).values()} == {4000}
    assert executed(module, **RATES, kernels=kernels).cycles >= 2 * 4000
