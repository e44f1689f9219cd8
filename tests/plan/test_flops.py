"""FLOPs counted before compilation, against counts by hand, XLA's own, and the analytic minimum of whole models."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh, PartitionSpec

from clips_jax.config import MeshConfig, PackingConfig, TransformerConfig
from clips_jax.config.parse import from_config_dict
from clips_jax.plan import gpu
from clips_jax.plan.flops import jaxpr_flops, matrix_flops
from clips_jax.plan.minimum import expected_tokens, minimum, stack_flops
from configs import clips_l14
from tests import small


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


ONE = 2 * 4 * 8 * 8  # x (4, 8) @ w (8, 8)
X, W = shape(4, 8), shape(8, 8)


def scanned(x, w, length=5):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=length)[0]


@jax.custom_vjp
def custom(x, w):
    return x @ w


custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, w: x @ w, ONE),
        (lambda x, w: jnp.einsum("bi,ij->bj", x + 1, w), ONE),
        (scanned, 5 * ONE),
        (jax.grad(lambda x, w: scanned(x, w).sum(), argnums=(0, 1)), 3 * 5 * ONE),
        (jax.value_and_grad(lambda x, w: jax.checkpoint(scanned)(x, w).sum(), argnums=(0, 1)), 4 * 5 * ONE),
        (custom, ONE),
        (jax.value_and_grad(lambda x, w: custom(x, w).sum(), argnums=(0, 1)), 3 * ONE),
        (jax.grad(lambda x, w: custom(x, w).sum()), ONE),
        (jax.vmap(lambda x, w: x @ w, in_axes=(0, None)), ONE),
        (jax.jit(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: scanned(x, w), lambda: x @ w)), 5 * ONE),
        (lambda x, w: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x), ONE),
        (lambda x, w: jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x), 3 * ONE),
    ],
)
def test_counts_by_hand(function, expected):
    assert matrix_flops(function, X, W) == expected


def test_convolution_by_hand():
    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert matrix_flops(convolve, shape(2, 8, 8, 3), shape(3, 3, 3, 5)) == 2 * (2 * 6 * 6 * 5) * (3 * 3 * 3)


def test_every_chip_does_what_a_mapped_function_says():
    mesh = AbstractMesh((2, 4), ("a", "b"))
    rows = PartitionSpec(("a", "b"))

    def gathered(x, w):  # each of 8 chips multiplies all 16 rows
        return jax.shard_map(
            lambda x: jax.lax.all_gather(x, ("a", "b"), tiled=True) @ w, mesh=mesh, in_specs=rows, out_specs=rows
        )(x)

    assert matrix_flops(gathered, shape(16, 8), W) == 8 * (2 * 16 * 8 * 8)
    own = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    assert matrix_flops(own, shape(16, 8), W) == 2 * 16 * 8 * 8


def test_a_kernel_counts_its_grid():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    def call(x, w):
        return pl.pallas_call(
            kernel,
            grid=(4,),
            in_specs=[pl.BlockSpec((2, 8), lambda i: (i, 0)), pl.BlockSpec((8, 8), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((2, 8), lambda i: (i, 0)),
            out_shape=shape(8, 8),
            interpret=True,
        )(x, w)

    assert matrix_flops(call, shape(8, 8), W) == 2 * 8 * 8 * 8


def test_an_unrolled_model_agrees_with_xla():
    def model(x, w):
        for _ in range(4):
            x = x @ w
        return x

    analysis = jax.jit(model).lower(X, W).compile().cost_analysis()
    assert analysis["flops"] == matrix_flops(model, X, W)


def with_remat(config, remat):
    for tower in ("image", "text", "captioner"):
        config.model[tower].transformer.remat = remat
    return config


def test_a_full_size_step_does_the_minimum():
    """Without recomputing, the step's FLOPs are the formula's: two counts that know nothing of each other."""
    config = with_remat(clips_l14.get_config(), "none")
    config.batch_size, config.mesh.fsdp = 512, 4
    config = from_config_dict(config)
    counted = jaxpr_flops(gpu.trace(gpu.abstract_program(config, 16)))
    assert counted == pytest.approx(minimum(config).layout, rel=1e-3)


MODEL = small.config(depth=1).model


# Patches are embedded before any is dropped, and chosen by a product with a one-hot matrix, which has one in the
# backward pass: 8 pictures of 64 patches of 8 x 8 x 3, 32 of which stay, 32 wide.
DROPPING = 8 * (2 * 2 * 32 * 192 * 32) + 8 * 2 * (2 * 32 * 64 * 32)


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"captioner": dataclasses.replace(MODEL.captioner, kind="cross_attention", every=2, condition_length=6)}, 0),
        ({"text": dataclasses.replace(MODEL.text, packing=PackingConfig(24, group=2, row_length=16))}, 0),
        (
            {
                "captioner": None,
                "image": dataclasses.replace(MODEL.image, image_size=64, keep_tokens=0.5, class_token=True),
            },
            DROPPING,
        ),
    ],
)
def test_every_member_of_the_family_does_its_minimum(changes, more):
    config = small.config(depth=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes), mesh=MeshConfig(2, 2))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, jitter=0.0, grayscale_probability=0.0))
    counted = jaxpr_flops(gpu.trace(gpu.abstract_program(config, 4)))
    logits_again = 2 * (2 * 8 * 8 * 24)  # the softmax loss computes its logits twice, for both views
    assert counted == minimum(config).layout + logits_again + more


def test_formula_by_hand():
    stack = TransformerConfig(width=8, depth=3, heads=2, mlp_dim=16)
    per_token = 4 * 2 * 8 * 8 + 2 * 2 * 8 * 16  # query, key, value, out; up, down
    attention = 2 * 2 * 5 * 5 * 8  # scores and values over a row of 5
    assert stack_flops(stack, tokens=5, row=5) == 3 * (5 * per_token + attention)
    assert stack_flops(stack, tokens=10, row=5) == 3 * (10 * per_token + 2 * attention)


def test_expected_tokens():
    views = from_config_dict(clips_l14.get_config()).objective.views
    assert expected_tokens(views["alt"]) == 17 + 3
    assert expected_tokens(views["recap"]) == 20 + 3
    assert expected_tokens(dataclasses.replace(views["recap"], mask="truncation", budget=30)) == 30 + 3
