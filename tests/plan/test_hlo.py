"""What is read off a compiled program, against counts by hand: from text, and from a program compiled for a v5e."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clips_jax.plan import hlo
from clips_jax.plan.chips import parse_topology
from clips_jax.plan.collectives import Collective, find_collectives, group_size, summarize
from clips_jax.plan.compiled import memory_needed
from clips_jax.plan.executed import executed

# One all-gather in its start, in a fusion inside a loop that runs meanwhile, and in its end; an all-reduce whose result
# is cut, in a loop of 12 turns.
TEXT = (pathlib.Path(__file__).parent / "async_all_gather.hlo").read_text()


def test_one_asynchronous_all_gather_counts_once():
    module = hlo.parse(TEXT)
    assert module.runs["body"] == 12
    assert module.scheduled == {"main", "body", "condition"}
    found = {one.kind: one for one in find_collectives(module, chips=16)}
    gather, scatter = found.pop("all-gather"), found.pop("reduce-scatter")
    assert not found
    assert (gather.group, gather.bytes, gather.times, gather.overlapped) == (4, 1024 * 8 * 2, 1, True)
    assert (scatter.group, scatter.bytes, scatter.times, scatter.overlapped) == (4, 64 * 32 * 4, 12, False)
    assert gather.wire_bytes == 3 / 4 * 1024 * 8 * 2


def test_collectives_that_share_a_channel_count_one_by_one():
    shared = TEXT.replace("channel_id=8", "channel_id=7")
    assert shared != TEXT
    summary = summarize(find_collectives(hlo.parse(shared), chips=16))
    assert {kind: row["count"] for kind, row in summary.items()} == {"all-gather": 1, "reduce-scatter": 12}


def test_work_of_the_text():
    work = executed(hlo.parse(TEXT), peak_flops=1e6, hbm_bandwidth=1e6, kernels={})
    assert work.flops == 12 * 2 * 16 * 32 * 64
    assert work.cycles == 12 * 100
    # Start: operand and result. Loop: x and y read, the product written; the gather's buffers are not touched; the
    # all-reduce reads g and writes its slice; the counter.
    gathered = 256 * 8 * 2 + 2 * 1024 * 8 * 2  # of the start: operand, result, both in the tuple
    assert work.bytes <= gathered + 12 * (4 * (16 * 32 + 32 * 64 + 16 * 64) + 4 * (64 * 32 + 16 * 32) + 100)
    assert work.roofline_seconds >= max(work.flops, work.bytes) / 1e6


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=[16,16]<=[16,16]T(1,0)", 16),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=8] {'axis_0','axis_1'}", 128),
        ("replica_groups=mesh['axis_0'=16] {'axis_0':(1)4}", 4),
        ("replica_groups={}", 32),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_groups(attributes, size):
    assert group_size(f"channel_id=1, {attributes}, to_apply=%add", chips=32) == size


def test_attributes_over_several_lines():
    lines = 'frontend_attributes={kernel_metadata={\n"tile":"128"\n}}, channel_id=7'
    text = TEXT.replace("channel_id=7", lines)
    assert text != TEXT
    assert find_collectives(hlo.parse(text), chips=16) == find_collectives(hlo.parse(TEXT), chips=16)


def test_bytes_on_the_wire():
    def one(kind, group=4):
        return Collective(kind, group, 1000, 2, False, "")

    assert [one(kind).wire_bytes for kind in ("all-gather", "all-reduce", "collective-permute")] == [750, 1500, 1000]
    assert summarize([one("all-gather"), one("all-gather")])["all-gather"] == {
        "count": 4,
        "bytes": 4000,
        "wire_bytes": 3000,
    }


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="not the text of a compiled program"):
        hlo.parse("nothing")


@pytest.fixture(scope="module")
def layers():
    """12 layers of x @ w as a scan and their update: parameters over `fsdp`, rows over both axes; compiled."""
    mesh = Mesh(np.array(parse_topology("v5e:4x4").devices()).reshape(4, 4), ("data", "fsdp"))

    def loss(w, x):
        return (jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0] ** 2).mean()

    def step(w, x):
        return w - 0.1 * jax.grad(loss)(w, x)

    w = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    x = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    arguments = (
        jax.ShapeDtypeStruct((12, 1024, 1024), jnp.bfloat16, sharding=w),
        jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16, sharding=x),
    )
    return hlo.parse(jax.jit(step, donate_argnums=0, out_shardings=w).lower(*arguments).compile().as_text())


def test_flops_of_a_program_compiled_for_a_tpu(layers):
    work = executed(layers, peak_flops=197e12, hbm_bandwidth=8.1e11, kernels={})
    assert work.flops == 12 * 3 * (2 * 4096 * 1024 * 1024) / 16  # forward, and two products backward; per chip
    assert work.bytes > 12 * 256 * 1024 * 2  # at least: every parameter of the chip


def test_collectives_of_a_program_compiled_for_a_tpu(layers):
    summary = summarize(find_collectives(layers, chips=16))
    layer = 1024 * 1024 * 2
    assert summary["all-gather"]["bytes"] == 24 * layer  # each layer's parameters, forward and backward
    assert summary["reduce-scatter"]["bytes"] == 12 * layer  # each layer's gradient over fsdp,
    assert summary["all-reduce"]["bytes"] == 12 * layer / 4  # and what is left of it over data


def test_a_program_that_does_not_fit_says_what_it_needs():
    topology = parse_topology("v5e:2x2")
    mesh = Mesh(np.array(topology.devices()), ("a",))
    rows = NamedSharding(mesh, PartitionSpec("a"))
    array = jax.ShapeDtypeStruct((4 * 100, 64, 1024, 1024), jnp.float32, sharding=rows)
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: (jnp.sin(x),)).lower(array).compile()
    assert memory_needed(str(error.value)) == 2 * 25 * 2**30  # the argument and the result: 25 GiB each
    assert f"available HBM ({topology.chip.hbm_bytes / 2**30:.2f}G)" in str(error.value)
    assert memory_needed("INVALID_ARGUMENT: no such thing") is None
