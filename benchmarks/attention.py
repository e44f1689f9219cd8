"""One self-attention layer for a TPU that is not here: left to the compiler, by JAX's kernel, by ours.

    pip install libtpu==0.0.52 && python -m benchmarks.attention [--topology v5e:2x2] [--rows 128] [--json]

The layers are those of `configs/clips_l14.py`: image tower and captioner at 84, 224 and 336 px, packed texts. With
query, key, value and output projections, forward and backward, bfloat16, one chip, compiled ahead of time (no TPU
needed). "jax, tiles of 128" is splash attention as it comes, "jax, one tile" with a row as one tile and one backward
kernel: the best of the tile sizes tried (docs/experiments.md). Cycles are the compiler's own estimates, of kernels the
instruction words of their schedule times the steps of the grid (`plan.schedules`): a lower bound, as the roofline is.
"""

import argparse
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as kernel_masks
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clips_jax.config import TransformerConfig
from clips_jax.config.parse import from_config_dict
from clips_jax.masks import SegmentMask
from clips_jax.models import layers
from clips_jax.models.fused_attention import fused_attention
from clips_jax.plan import hlo
from clips_jax.plan.chips import Topology, parse_topology
from clips_jax.plan.executed import executed
from clips_jax.plan.kernels import find_kernels
from clips_jax.plan.schedules import scheduled_words
from configs import clips_l14

TILE = 128  # the least of JAX's kernel


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer: its shape, tokens of a row, keys that all queries see (all of them: no causal part), masked or not."""

    name: str
    shape: TransformerConfig
    length: int
    prefix: int
    masked: bool


def layers_of_the_config() -> list[Layer]:
    """Of all stages; the text tower's is the same in each."""
    found = []
    for stage in range(1, len(clips_l14.STAGES) + 1):
        model = from_config_dict(clips_l14.get_config(f"stage={stage}")).model
        image, text, captioner = model.image, model.text, model.captioner
        assert text.packing and captioner
        patches = (image.image_size // image.patch_size) ** 2
        prefix = patches + captioner.condition_length
        if stage == 1:
            row = text.packing.row_length
            found.append(Layer("text, packed rows", text.transformer, row, row, True))
        found.append(Layer(f"image, {image.image_size} px", image.transformer, patches, patches, False))
        name, length = f"captioner, {image.image_size} px", prefix + captioner.target_length
        found.append(Layer(name, captioner.transformer, length, prefix, True))
    return found


def jax_attention(
    one_tile: bool, query: jax.Array, key: jax.Array, value: jax.Array, mask: SegmentMask | None
) -> jax.Array:
    """`fused_attention` by JAX's kernel: heads first, lengths padded to tiles, the padding a segment of its own."""
    batch, length = query.shape[:2]
    padding = -length % TILE
    segments_BxL = mask.segments_BxL if mask else jnp.ones((batch, length), jnp.int32)
    segments_BxP = jnp.pad(segments_BxL, ((0, 0), (0, padding)))
    inputs = (query * query.shape[-1] ** -0.5, key, value)
    padded = [jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))).swapaxes(1, 2) for x in inputs]
    place_P = np.arange(length + padding)
    pattern_PxP = (place_P[None] < (mask.prefix if mask else length)) | (place_P[None] <= place_P[:, None])
    pattern = kernel_masks.MultiHeadMask([kernel_masks.NumpyMask(pattern_PxP)] * query.shape[2])
    tiles = None
    if one_tile:
        row = length + padding
        forward, backward = {"block_q": row, "block_kv": row}, {"block_q_dkv": row, "block_kv_dkv": row}
        tiles = kernels.BlockSizes(**forward, **backward, use_fused_bwd_kernel=True)
    with jax.ensure_compile_time_eval():
        kernel: Any = kernels.make_splash_mha(pattern, head_shards=1, q_seq_shards=1, block_sizes=tiles)

    def one_example(query: jax.Array, key: jax.Array, value: jax.Array, segments_P: jax.Array) -> jax.Array:
        return kernel(query, key, value, segment_ids=kernels.SegmentIds(segments_P, segments_P))

    return jax.vmap(one_example)(*padded, segments_BxP).swapaxes(1, 2)[:, :length]


FORMS: dict[str, Callable[..., jax.Array] | None] = {
    "plain": None,
    "jax, tiles of 128": functools.partial(jax_attention, False),
    "jax, one tile": functools.partial(jax_attention, True),
    "ours": fused_attention,
}


LINE = (
    "{temporaries_mb:8,.0f} MB {traffic_gb:6.2f} GB {gflop:7,.0f} GFLOP  ~ {roofline_ms:5.2f} ms roofline  "
    "~ {cycles_ms:6.2f} ms by cycles (kernels {of_it_kernels_ms:5.2f}), {:4.2f} of plain"
)


def measure(layer: Layer, form: str, rows: int, mesh: Mesh, topology: Topology) -> dict[str, Any]:
    """Memory, work and time per layer of value and gradient by weights and input."""
    width, attention, chip = layer.shape.width, FORMS[form], topology.chip
    module = layers.Attention(layer.shape.heads, jnp.dtype("bfloat16"), kernel=attention is not None)

    def loss(params: Any, x_BxLxD: jax.Array, segments_BxL: jax.Array, by_out_BxLxD: jax.Array) -> jax.Array:
        mask: Any = SegmentMask(segments_BxL, layer.prefix) if layer.masked else None
        mask = mask.dense() if layer.masked and not attention else mask
        return (module.apply(params, x_BxLxD, mask)[0] * by_out_BxLxD).sum()

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    x_BxLxD, segments_BxL = array((rows, layer.length, width), jnp.bfloat16), array((rows, layer.length), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), x_BxLxD, None)
    params = jax.tree.map(lambda x: array(x.shape, jnp.bfloat16 if x.ndim > 2 else x.dtype), params)
    layers.fused_attention = attention or layers.fused_attention
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        start = time.perf_counter()
        traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(params, x_BxLxD, segments_BxL, x_BxLxD)
        compiled = traced.lower().compile()
        seconds = time.perf_counter() - start
    program = hlo.parse(compiled.as_text())
    found = find_kernels(program, traced.jaxpr.jaxpr, functools.partial(scheduled_words, topology=topology.name))
    work = executed(program, chip.peak_flops, chip.hbm_bandwidth, found)
    memory: Any = compiled.memory_analysis()
    return {
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
        "traffic_gb": work.bytes / 1e9,
        "gflop": work.flops / 1e9,
        "roofline_ms": 1e3 * work.roofline_seconds,
        "cycles_ms": 1e3 * (work.cycles or 0) / chip.clock_hz,
        "of_it_kernels_ms": 1e3 * sum(kernel.cycles or 0 for kernel in found.values()) / chip.clock_hz,
        "compile_seconds": seconds,
    }


def main() -> None:
    """Compiles each layer in each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="one chip of it is used")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    topology, results = parse_topology(arguments.topology), {}
    mesh = Mesh(np.array(topology.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    for layer in layers_of_the_config():
        print(f"{layer.name}: {layer.length} tokens, {layer.shape.heads} heads, {arguments.rows} rows", flush=True)
        forms = {}
        for form in FORMS:
            one = measure(layer, form, arguments.rows, mesh, topology)
            forms[form] = one
            ratio = one["cycles_ms"] / forms["plain"]["cycles_ms"]
            print(f"  {form:18}" + LINE.format(ratio, **one), flush=True)
        results[layer.name] = forms
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
