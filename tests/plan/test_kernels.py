"""Pallas kernels in a program compiled for a TPU: found, counted, their schedules read."""

import functools

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
from clips_jax.plan.schedules import scheduled_words

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
    kernels = find_kernels(module, jaxpr)
    by_name = {name.split(".")[0]: kernel for name, kernel in kernels.items()}
    assert by_name["attention_forward"].flops == 2 * PRODUCT / 4
    assert by_name["attention_backward"].flops == 5 * PRODUCT / 4
    work = executed(module, **RATES, kernels=kernels)
    assert work.flops == 7 * PRODUCT / 4
    assert work.cycles is None  # nobody asked for them


def test_cycles_are_scheduled_words_times_steps(step):
    jaxpr, module = step
    kernels = find_kernels(module, jaxpr, functools.partial(scheduled_words, topology="v5e:2x2"))
    for name, products in (("attention_forward", 2), ("attention_backward", 5)):
        cycles = next(kernel.cycles for key, kernel in kernels.items() if key.startswith(name))
        assert cycles % (ROWS // 4) == 0  # steps of the grid: two rows, a block of two heads each
        assert cycles > products * PRODUCT / 4 / (197e12 / 1.5e9)  # what the matrix units need at least
    assert executed(module, **RATES, kernels=kernels).cycles > sum(kernel.cycles for kernel in kernels.values())
