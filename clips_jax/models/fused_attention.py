"""Attention as one TPU kernel for rows short enough to lie in the chip's memory whole; written in Pallas.

An example's queries, keys and values come as the projections write them, heads side by side, and no logits leave the
chip's memory: nothing is transposed, padded or cut into tiles on the way. JAX's own kernels are made for long
sequences: they want heads first and lengths of whole tiles, and what that moves costs more than they save
(docs/step.md has both measured). The backward pass computes the weights again, so all that is kept are the inputs.

Legend: B batch, L sequence (C where it counts keys), D width, W lanes of a block, H heads, K head width.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from clips_jax.masks import HIDDEN_LOGIT, SegmentMask

LANES = 128  # numbers side by side in a TPU's registers
KERNEL_BYTES = 32 * 2**20  # of the chip's own memory, at least
# A step of a kernel's grid costs something by itself, so short examples go several at a time: up to so many tokens, and
# so many heads, which are written out one after another.
STEP_TOKENS, STEP_HEADS = 512, 16


def fused_attention(
    query_BxLxHxK: jax.Array,
    key_BxLxHxK: jax.Array,
    value_BxLxHxK: jax.Array,
    mask: SegmentMask | None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k / sqrt(K)) v under a mask, (B, L, H, K); softmax in float32.

    Under a mesh (`train_step`) every device takes its rows and heads. On TPU only, unless `interpret` runs it step by
    step.
    """
    length, heads, width = query_BxLxHxK.shape[1:]
    inputs = [x.reshape(-1, length, heads * width) for x in (query_BxLxHxK, key_BxLxHxK, value_BxLxHxK)]
    settings = _Settings(width, mask.prefix if mask else length, interpret)
    attend: Any = functools.partial(_attend, settings)
    if mask:
        inputs.append(mask.segments_BxL)
    if not jax.sharding.get_abstract_mesh().empty:
        columns, rows = PartitionSpec(("data", "fsdp"), None, "tensor"), PartitionSpec(("data", "fsdp"))
        specs = (columns, columns, columns, rows)[: len(inputs)]
        attend = jax.shard_map(attend, in_specs=specs, out_specs=columns, check_vma=False)
    return attend(*inputs).reshape(query_BxLxHxK.shape)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Head width; keys before `prefix` are seen by all queries of their segment; whether to run without a TPU."""

    width: int
    prefix: int
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: _Settings, *inputs: jax.Array) -> jax.Array:
    """(B, L, D) of one device from query, key and value (B, L, D), perhaps segments int (B, L)."""
    return _call(_forward_kernel, "attention_forward", 1, settings, *inputs)[0]


def _attend_forward(settings: _Settings, *inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _attend(settings, *inputs), inputs


def _attend_backward(settings: _Settings, inputs: tuple[jax.Array, ...], by_out_BxLxD: jax.Array) -> tuple[Any, ...]:
    gradients = _call(_backward_kernel, "attention_backward", 3, settings, *inputs, by_out_BxLxD=by_out_BxLxD)
    return (*gradients, *(None for _ in inputs[3:]))


_attend.defvjp(_attend_forward, _attend_backward)


def _call(
    kernel: Callable[..., None],
    name: str,
    results: int,
    settings: _Settings,
    query_BxLxD: jax.Array,
    key_BxLxD: jax.Array,
    value_BxLxD: jax.Array,
    segments_BxL: jax.Array | None = None,
    **more: jax.Array,
) -> list[jax.Array]:
    """Runs a kernel for some examples and a block of whole heads at a time; all arrays but segments are (B, L, D)."""
    batch, length, width = query_BxLxD.shape
    block = math.lcm(settings.width, LANES)
    if width % block:
        block = width
    most = min(STEP_TOKENS // length, STEP_HEADS * settings.width // block)
    examples = next(count for count in (8, 4, 2, 1) if batch % count == 0 and count <= max(1, most))
    rows = pl.BlockSpec((examples, length, block), lambda first, column: (first, 0, column))
    segments: list[jax.Array] = []
    if segments_BxL is not None:  # once for the keys, down, and once for the queries, across
        segments = [segments_BxL[:, :, None], segments_BxL[:, None, :]]
    whole = [pl.BlockSpec((examples, *x.shape[1:]), lambda first, column: (first, 0, 0)) for x in segments]
    return pl.pallas_call(
        functools.partial(kernel, settings),
        grid=(batch // examples, width // block),
        in_specs=[rows] * (3 + len(more)) + whole,
        out_specs=[rows] * results,
        out_shape=[jax.ShapeDtypeStruct(query_BxLxD.shape, query_BxLxD.dtype)] * results,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"),
            vmem_limit_bytes=_kernel_bytes(examples, length, block, query_BxLxD.dtype.itemsize),
        ),
        interpret=settings.interpret,
        name=name,
    )(query_BxLxD, key_BxLxD, value_BxLxD, *more.values(), *segments)


def _kernel_bytes(examples: int, length: int, block: int, itemsize: int) -> int:
    """Seven arrays, twice, as one block is computed while others come and go, and nine of logits: the compiler wanted
    39.35 MiB for 736 x 1,152, where this is 41.2."""
    return max(KERNEL_BYTES, 2 * 7 * examples * length * block * itemsize + 9 * length**2 * 4)


def _forward_kernel(settings: _Settings, query: Any, key: Any, value: Any, *rest: Any) -> None:
    """One block of E examples: references (E, L, W); segments (E, C, 1) and (E, 1, L) if there are any; the result."""
    *segments, out = rest
    for example in range(query.shape[0]):
        visible_CxL = _visible(settings.prefix, segments, example)
        for head in _heads(settings, query, example):
            weights_CxL = _weights(query[head], key[head], visible_CxL)
            out[head] = _dot(weights_CxL.astype(out.dtype), value[head], 0, 0).astype(out.dtype)


def _backward_kernel(settings: _Settings, query: Any, key: Any, value: Any, by_out: Any, *rest: Any) -> None:
    """The same with the result's gradient, to the gradients of query, key and value."""
    *segments, by_query, by_key, by_value = rest
    dtype = query.dtype
    for example in range(query.shape[0]):
        visible_CxL = _visible(settings.prefix, segments, example)
        for head in _heads(settings, query, example):
            weights_CxL = _weights(query[head], key[head], visible_CxL)
            by_value[head] = _dot(weights_CxL.astype(dtype), by_out[head], 1, 0).astype(dtype)
            by_weights_CxL = _dot(value[head], by_out[head], 1, 1)
            by_logits_CxL = weights_CxL * (by_weights_CxL - (weights_CxL * by_weights_CxL).sum(axis=0, keepdims=True))
            by_logits_CxL = (by_logits_CxL * settings.width**-0.5).astype(dtype)
            by_query[head] = _dot(by_logits_CxL, key[head], 0, 0).astype(dtype)
            by_key[head] = _dot(by_logits_CxL, query[head], 1, 0).astype(dtype)


def _heads(settings: _Settings, block: Any, example: int) -> list[tuple[Any, ...]]:
    """Where each head of an example lies in a block."""
    return [(example, slice(None), slice(at, at + settings.width)) for at in range(0, block.shape[2], settings.width)]


def _visible(prefix: int, segments: list[Any], example: int) -> jax.Array | None:
    """bool (C, L), keys down: sums over keys are then sums of registers. None where all see all."""
    if not segments:
        return None
    keys_Cx1, queries_1xL = segments[0][example], segments[1][example]
    same_CxL = keys_Cx1 == queries_1xL
    if prefix >= len(keys_Cx1):
        return same_CxL
    key_CxL, query_CxL = (jax.lax.broadcasted_iota(jnp.int32, same_CxL.shape, axis) for axis in (0, 1))
    return same_CxL & ((key_CxL < prefix) | (key_CxL <= query_CxL))


def _weights(query_LxK: jax.Array, key_CxK: jax.Array, visible_CxL: jax.Array | None) -> jax.Array:
    """Of one head, float32 (C, L): each column adds up to 1."""
    logits_CxL = _dot(key_CxK, query_LxK, 1, 1) * query_LxK.shape[1] ** -0.5
    if visible_CxL is not None:
        logits_CxL = jnp.where(visible_CxL, logits_CxL, HIDDEN_LOGIT)
    exponentials_CxL = jnp.exp(logits_CxL - logits_CxL.max(axis=0, keepdims=True))
    return exponentials_CxL / exponentials_CxL.sum(axis=0, keepdims=True)


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Their product over these axes, summed in float32."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
