"""Memory, bytes sent and compile time of the losses for a TPU that is not here, beside their textbook forms.

    pip install libtpu==0.0.52 && python -m benchmarks.losses [--topology v5e:16x16] [--batch_size 32768] [--json]
    python -m benchmarks.losses --topology v5p:8x8x16 --batch_size 131072 --only softmax

Compiles loss and gradient ahead of time (no TPU needed) and prints figures per chip.
"""

import argparse
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
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clips_jax import losses
from clips_jax.losses import contrastive
from clips_jax.plan import hlo
from clips_jax.plan.collectives import find_collectives
from clips_jax.plan.flops import matrix_flops

P = PartitionSpec
WIDTH, VIEWS = 768, 2
DECODER, TARGETS, VOCABULARY, CAPTIONED = 768, 128, 32_000, 128  # a chip's examples


def textbook_softmax(image: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Logits of the whole batch at once, left to the compiler."""
    logits = scale * jnp.einsum("be,cve->vbc", image, texts, precision="highest") + 0 * bias
    positive = jnp.einsum("vbb->vb", logits)
    lse = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=2)
    return (lse / 2 - positive).mean()


def textbook_caption(hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """All logits at once."""
    logits = jnp.einsum("btd,dv->btv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return ((jax.nn.logsumexp(logits, axis=-1) - picked) * weights).sum() / weights.sum()


def measure(function: Callable[..., Any], count: int, chips: int, *inputs: jax.ShapeDtypeStruct) -> dict[str, float]:
    """Per chip, of value and gradient by the first `count` inputs: temporaries, bytes sent, matrix FLOPs."""
    step = jax.jit(jax.value_and_grad(function, argnums=tuple(range(count))))
    start = time.perf_counter()
    compiled = step.lower(*inputs).compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    sent = sum(one.times * one.wire_bytes for one in find_collectives(hlo.parse(compiled.as_text()), chips))
    return {
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
        "sent_mb": sent / 1e6,
        "gflop": matrix_flops(step, *inputs) / chips / 1e9,
        "compile_seconds": seconds,
    }


LINE = "{temporaries_mb:10,.1f} MB temporaries {sent_mb:10,.1f} MB sent {gflop:8,.1f} GFLOP {compile_seconds:6.1f} s"


def main() -> None:
    """Compiles each form in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--batch_size", type=int, default=32_768)
    parser.add_argument("--only", default="", help="losses whose names contain this")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices)
    fsdp = 16 if len(devices) % 16 == 0 else 1
    mesh = Mesh(devices.reshape(-1, fsdp, 1), ("data", "fsdp", "tensor"))

    def array(spec: PartitionSpec, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    rows = P(("data", "fsdp"))
    batch, captioned = arguments.batch_size, CAPTIONED * len(devices)
    embeddings = (
        array(rows, jnp.float32, batch, WIDTH),
        array(rows, jnp.float32, batch, VIEWS, WIDTH),
        array(P(), jnp.float32),
        array(P(), jnp.float32),
    )
    caption = (
        array(rows, jnp.bfloat16, captioned, TARGETS, DECODER),
        array(P("fsdp", "tensor"), jnp.float32, DECODER, VOCABULARY),
        array(rows, jnp.int32, captioned, TARGETS),
        array(rows, jnp.float32, captioned, TARGETS),
    )

    def ours(kind: contrastive.Kind, *inputs: jax.Array) -> jax.Array:
        return losses.contrastive_loss(*inputs, kind=kind, weights=(0.5, 0.5), mesh=mesh)[0]

    def fused(hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        return losses.caption_loss(hidden, head, targets, weights, weights.sum(), mesh)

    cases: list[tuple[str, Callable[..., Any], int, tuple[Any, ...], int]] = [
        ("softmax, textbook", textbook_softmax, 4, embeddings, 0),
        ("softmax, gathered", functools.partial(ours, "softmax"), 4, embeddings, 2**62),
        ("softmax, ring over data", functools.partial(ours, "softmax"), 4, embeddings, 0),
        ("sigmoid, gathered", functools.partial(ours, "sigmoid"), 4, embeddings, 2**62),
        ("sigmoid, ring over data", functools.partial(ours, "sigmoid"), 4, embeddings, 0),
        ("caption, textbook", textbook_caption, 2, caption, 0),
        ("caption, fused head in chunks", fused, 2, caption, 0),
    ]
    results, default = {}, contrastive.GATHERED_BYTES
    chosen = "gathered" if batch * VIEWS * WIDTH * 4 <= default else "ring over data"
    print(f"{arguments.topology}, batch {batch:,}; the contrastive loss would choose: {chosen}")
    for name, function, count, inputs, contrastive.GATHERED_BYTES in cases:
        if arguments.only not in name:
            continue
        try:
            results[name] = measure(function, count, len(devices), *inputs)
            print(f"{name:32}" + LINE.format(**results[name]), flush=True)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            results[name] = None
            print(f"{name:32} does not fit the chip")
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
