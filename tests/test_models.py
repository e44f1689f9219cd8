"""The towers and the captioner: who sees whom, fixed positions, released format, full sizes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax import masks
from clips_jax.config import TransformerConfig
from clips_jax.config.parse import from_config_dict
from clips_jax.models.captioner import Captioner
from clips_jax.models.clips import Clips
from clips_jax.models.image_tower import ImageTower, sincos_positions
from clips_jax.models.layers import exact_gelu
from clips_jax.models.sizes import SIZES
from clips_jax.models.text_tower import TextTower
from clips_jax.plan.flops import matrix_flops
from clips_jax.train_step import init_params
from configs import clips_b16, clips_l14
from tests import small

CONFIG = small.config()
FLOAT = jnp.dtype("float32")


def captioner_dependence(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """|d output t / d input|: of target inputs (T, T) and of prefix tokens (T, P); the last prefix token is padding."""
    config = dataclasses.replace(CONFIG.model.captioner, kind=kind, target_length=5, condition_on=("image", "alt"))
    model = Captioner(config, small.VOCAB_SIZE, FLOAT)
    image, alt = jax.random.normal(jax.random.key(1), (1, 4, 16)), jax.random.normal(jax.random.key(2), (1, 3, 8))
    real = jnp.array([[True, True, False]])
    targets = jnp.array([[7, 8, 9, 10, 11]])
    prefix = {"image": (image, jnp.ones((1, 4), bool)), "alt": (alt, real)}
    params = model.init(jax.random.key(0), prefix, targets, 2)["params"]

    def outputs(image, alt, queries):
        inputs = {"image": (image, prefix["image"][1]), "alt": (alt, real)}
        hidden, _ = model.apply({"params": params | {"queries": queries}}, inputs, targets, 2)
        return hidden[0].sum(axis=-1)

    by_image, by_alt, by_query = jax.jacobian(outputs, argnums=(0, 1, 2))(image, alt, params["queries"])
    by_prefix = np.concatenate([abs(by_image[:, 0]).sum(-1), abs(by_alt[:, 0]).sum(-1)], axis=1)
    return np.asarray(abs(by_query).sum(-1)), by_prefix


@pytest.mark.parametrize("kind", ["learnable", "teacher_forced"])
def test_captioner_sees_the_real_prefix_and_no_later_target(kind):
    by_target, by_prefix = captioner_dependence(kind)
    np.testing.assert_array_equal(by_target > 0, np.tril(np.ones((5, 5), bool)))
    assert (by_prefix[:, :6] > 0).all()
    assert (by_prefix[:, 6] == 0).all()  # padding of the AltText


def test_prefix_never_sees_targets():
    """Through two blocks: if the prefix saw a target, later targets would carry it back to earlier ones."""
    model = Captioner(dataclasses.replace(CONFIG.model.captioner, target_length=4), small.VOCAB_SIZE, FLOAT)
    prefix = {
        "image": (jnp.ones((1, 2, 8)), jnp.ones((1, 2), bool)),
        "alt": (jnp.ones((1, 2, 8)), jnp.ones((1, 2), bool)),
    }
    targets = jnp.array([[5, 6, 7, 8]])
    params = model.init(jax.random.key(0), prefix, targets, 2)
    first = model.apply(params, prefix, targets, 2)[0]
    changed = model.apply(params, prefix, targets.at[0, 2].set(30), 2)[0]
    np.testing.assert_array_equal(first[:, :3], changed[:, :3])
    assert (first[:, 3] != changed[:, 3]).any()


def test_learnable_captioner_reads_no_target_token():
    model = Captioner(dataclasses.replace(CONFIG.model.captioner, kind="learnable"), small.VOCAB_SIZE, FLOAT)
    prefix = {
        "image": (jnp.ones((2, 3, 8)), jnp.ones((2, 3), bool)),
        "alt": (jnp.ones((2, 3, 8)), jnp.ones((2, 3), bool)),
    }
    params = model.init(jax.random.key(0), prefix, jnp.zeros((2, 12), jnp.int32), 2)
    a = model.apply(params, prefix, jnp.zeros((2, 12), jnp.int32), 2)[0]
    np.testing.assert_array_equal(a, model.apply(params, prefix, jnp.full((2, 12), 9), 2)[0])


def text_features(mask_padding: bool, tokens, length: int):
    tower = TextTower(dataclasses.replace(CONFIG.model.text, mask_padding=mask_padding), 24, FLOAT)
    framed, real = masks.frame(jnp.asarray(tokens), jnp.array(len(tokens)), length, small.SPECIAL)
    params = tower.init(jax.random.key(0), jnp.zeros((1, 16), jnp.int32), jnp.ones((1, 16), bool))
    return tower.apply(params, framed[None], real[None])[0][0]


def test_a_short_view_is_the_long_one_without_its_padding():
    short, long = (text_features(True, [7, 8, 9], length) for length in (6, 16))
    np.testing.assert_allclose(short, long, atol=1e-5)
    short, long = (text_features(False, [7, 8, 9], length) for length in (6, 16))
    assert abs(short - long).max() > 1e-3  # the released towers attend to padding


def test_text_tower_reads_order_and_is_bidirectional():
    assert abs(text_features(True, [7, 8, 9], 16) - text_features(True, [9, 8, 7], 16)).max() > 1e-3


def test_sincos_positions_against_the_formula():
    grid, width = 3, 16
    table = sincos_positions(grid, width)
    for row in range(grid):
        for column in range(grid):
            for i in range(4):
                omega = 1 / 10000 ** (i / 3)
                entry = table[row * grid + column]
                expected = [np.sin(column * omega), np.cos(column * omega), np.sin(row * omega), np.cos(row * omega)]
                np.testing.assert_allclose(entry[[i, 4 + i, 8 + i, 12 + i]], expected, atol=1e-6)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("positions", ["sincos2d", "learned"])
def test_image_tower_settings(class_token, positions):
    config = dataclasses.replace(CONFIG.model.image, class_token=class_token, positions=positions)
    tower = ImageTower(config, 24, FLOAT)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    params = tower.init(jax.random.key(0), images)
    features, tokens = tower.apply(params, images)
    assert features.shape == (2, 24) and tokens.shape == (2, 4 + class_token, 32)
    assert ("class_token" in params["params"]) == class_token
    assert ("positions" in params["params"]) == (positions == "learned")
    if class_token:  # it takes part in attention, though the mean leaves it out
        moved = {"params": params["params"] | {"class_token": jnp.sin(jnp.arange(32.0))[None]}}
        assert abs(tower.apply(moved, images)[0] - features).max() > 1e-4


def test_patches_are_a_strided_convolution():
    tower = ImageTower(dataclasses.replace(CONFIG.model.image, positions="learned"), 24, FLOAT)
    images = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    params = tower.init(jax.random.key(0), images)
    kernel = params["params"]["patches"]["kernel"].reshape(8, 8, 3, 32)
    expected = jax.lax.conv_general_dilated(images, kernel, (8, 8), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    _, state = tower.apply(params, images, capture_intermediates=lambda module, _: module.name == "patches")
    ours = state["intermediates"]["patches"]["__call__"][0]
    np.testing.assert_allclose(ours, expected.reshape(1, 4, 32), rtol=1e-4, atol=1e-5)


def test_wrong_image_size_is_named():
    with pytest.raises(ValueError, match="the tower is for 16 px"):
        ImageTower(CONFIG.model.image, 24, FLOAT).init(jax.random.key(0), jnp.ones((1, 24, 24, 3)))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_gradient(remat):
    def gradient(remat):
        stack = TransformerConfig(width=32, depth=2, heads=4, mlp_dim=64, remat=remat)
        tower = ImageTower(dataclasses.replace(CONFIG.model.image, transformer=stack), 24, FLOAT)
        images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
        params = tower.init(jax.random.key(0), images)
        return jax.grad(lambda p: (tower.apply(p, images)[0] ** 2).sum())(params)

    small.assert_trees_close(gradient("none"), gradient(remat), rtol=1e-4, atol=1e-6)


def test_what_rematerialisation_recomputes():
    """ "dots" recomputes attention's two products and no other, "full" the forward pass."""

    def flops(remat):
        stack = TransformerConfig(width=64, depth=5, heads=4, mlp_dim=256, remat=remat)
        tower = ImageTower(dataclasses.replace(CONFIG.model.image, transformer=stack), 24, FLOAT)
        images = jnp.zeros((8, 16, 16, 3))
        params = jax.eval_shape(tower.init, jax.random.key(0), images)
        return matrix_flops(jax.grad(lambda p: tower.apply(p, images)[0].sum()), params)

    attention = 5 * 8 * 2 * (2 * 4**2 * 64)  # depth, images, products; scores are 4 x 4 tokens
    assert flops("dots") - flops("none") == attention
    forward = 5 * 8 * 4 * 2 * (4 * 64**2 + 64 * 256)  # without a block's last product, which nothing needs again
    assert flops("full") - flops("none") == forward + attention


# Both towers of the released L/14 at 224 px, by its model code; the fixed positions (257 x 1024) are no parameter here.
RELEASED_L14 = 414_247_425 - 257 * 1024


@pytest.mark.parametrize("module", [clips_b16, clips_l14])
def test_full_size_shapes(module):
    config = from_config_dict(module.get_config("stage=2,released_format=True"))
    model = Clips(config.model, config.objective, bos=1)
    shapes = jax.eval_shape(lambda key: init_params(config, model, key), jax.random.key(0))
    count = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    if module is clips_l14:
        assert count["image"] + count["text"] + count["logit_scale"] == RELEASED_L14
    assert shapes["captioner"]["head"].shape[1] == 32_000
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(("dtype", "within"), [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_exact_gelu_and_its_gradient_against_float64(dtype, within):
    x = jnp.linspace(-12, 12, 2001, dtype=dtype)  # the far left is where 1 + erf cancels
    value, gradient = jax.jit(exact_gelu)(x), jax.jit(jax.vmap(jax.grad(exact_gelu)))(x)
    exact = np.asarray(x, np.float64)
    distribution = np.array([0.5 * math.erfc(-y / math.sqrt(2)) for y in exact])
    density = np.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(np.asarray(value, np.float64), exact * distribution, rtol=within, atol=within)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), distribution + exact * density, rtol=0, atol=within)


def test_sizes_match_the_table():
    table = {  # docs/method.md: image width, depth, heads; text width, depth, heads; joint width
        "Ti": (192, 12, 3, 192, 12, 3, 192),
        "S": (384, 12, 6, 384, 12, 6, 384),
        "B": (768, 12, 12, 512, 12, 8, 512),
        "L": (1024, 24, 16, 768, 12, 12, 768),
        "So400m": (1152, 27, 16, 1152, 27, 16, 1152),
        "H": (1280, 32, 16, 1024, 24, 16, 1024),
    }
    for name, row in table.items():
        size = SIZES[name]
        found = [getattr(stack, key) for stack in (size.image, size.text) for key in ("width", "depth", "heads")]
        assert (*found, size.joint_dim) == row, name
