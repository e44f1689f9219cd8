"""Stages: what may change between them, and that everything else must fit."""

import dataclasses
import shutil
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from clips_jax.checkpoint import CheckpointMismatch
from clips_jax.config import ConfigError, InitConfig
from clips_jax.handover import (
    Source,
    fit,
    image_positions,
    prepare,
    read_source,
    resize_patches,
    stretch_positions,
)
from clips_jax.models.clips import Clips
from clips_jax.models.image_tower import sincos_positions
from clips_jax.train_step import init_params
from tests import small
from tests.interop.test_import import FIXTURES


def params_of(config, seed=0):
    model = Clips(config.model, config.objective, small.SPECIAL.bos)
    key = jax.random.key(seed)
    return jax.jit(lambda k: init_params(config, model, k))(key)


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


@pytest.fixture(scope="module")
def stage1():
    config = small.config(depth=1)
    return Source("stage 1", {k: np.asarray(v) for k, v in flat(params_of(config)).items()}, config.model, {})


def handed(source, config, **settings):
    shapes = flat(jax.eval_shape(lambda: params_of(config)))
    return fit(source, config.model, shapes, InitConfig(**settings))


def with_model(**changes):
    config = small.config(depth=1)
    image = dataclasses.replace(config.model.image, **changes.pop("image", {}))
    text = dataclasses.replace(config.model.text, **changes.pop("text", {}))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, image=image, text=text, **changes))


def test_the_same_model_takes_every_parameter_as_it_is(stage1):
    handover = handed(stage1, small.config(depth=1))
    fresh = params_of(small.config(depth=1), seed=1)
    small.assert_trees_close(handover.onto(fresh), traverse_util.unflatten_dict(stage1.params, sep="/"), rtol=0, atol=0)


def test_what_does_not_fit_is_listed_by_path(stage1):
    captioner = dataclasses.replace(small.config().model.captioner, target_length=10)
    config = with_model(text={"length": 20}, joint_dim=48, captioner=captioner)
    with pytest.raises(CheckpointMismatch) as error:
        handed(stage1, config)
    for path in ("text/positions", "image/head/kernel", "text/head/kernel", "captioner/queries"):
        assert f"\n  {path}: " in str(error.value)
    assert "resblocks" not in str(error.value) and "image/transformer" not in str(error.value)


def test_what_may_be_fresh_or_dropped_is_named_by_path(stage1):
    without = with_model(captioner=None)
    assert not [k for k in handed(stage1, without, allow_unused=("captioner/.*",)).arrays if k.startswith("captioner")]
    imported = dataclasses.replace(
        stage1, params={k: v for k, v in stage1.params.items() if not k.startswith("captioner")}
    )
    fresh = params_of(small.config(depth=1), seed=1)
    onto = flat(handed(imported, small.config(depth=1), allow_missing=("captioner/.*",)).onto(fresh))
    assert np.array_equal(onto["captioner/head"], flat(fresh)["captioner/head"])
    assert np.array_equal(onto["image/head/kernel"], stage1.params["image/head/kernel"])
    with pytest.raises(ConfigError, match="captoiner"):
        handed(imported, small.config(depth=1), allow_missing=("captioner/.*", "captoiner/.*"))


def test_fixed_positions_follow_the_resolution_without_a_word(stage1):
    assert handed(stage1, with_model(image={"image_size": 48})).notes == []


def test_text_positions_are_cut_or_extended_with_cls_last(stage1):
    table = stage1.params["text/positions"]
    short = with_model(text={"length": 16})
    short = dataclasses.replace(short.model, text=dataclasses.replace(short.model.text, length=8))
    shapes = {"text/positions": jax.ShapeDtypeStruct((8, 32), jnp.float32)}
    source = dataclasses.replace(stage1, params={"text/positions": table})
    cut = fit(source, short, shapes, InitConfig(text_positions="keep")).arrays["text/positions"]
    assert np.array_equal(cut, np.concatenate([table[:7], table[-1:]]))
    longer = with_model(text={"length": 24})
    fresh = params_of(longer, seed=1)
    onto = handed(stage1, longer, text_positions="keep").onto(fresh)["text"]["positions"]
    assert np.array_equal(onto, np.concatenate([table[:15], fresh["text"]["positions"][15:23], table[-1:]]))


def test_an_imported_models_own_positions_need_a_config_that_learns_them(tmp_path):
    folder = str(tmp_path / "model")
    shutil.copytree(FIXTURES, folder)
    weights = load_file(f"{folder}/open_clip_model.safetensors")
    weights["visual.positional_embedding"] = weights["visual.positional_embedding"] * 1.1
    save_file(weights, f"{folder}/open_clip_model.safetensors")
    program: Any = SimpleNamespace(config=dataclasses.replace(with_model(), init_from=folder), mesh=None)
    with pytest.raises(CheckpointMismatch, match=r"not sin-cos.*model\.image\.positions='learned'"):
        prepare(program)
    learning = dataclasses.replace(with_model(image={"positions": "learned"}), init_from=folder)
    source: Any = read_source(learning, program.mesh)
    np.testing.assert_array_equal(source.params["image/positions"], weights["visual.positional_embedding"])
    assert source.tokenizer["kind"] == "wordpiece"


def test_stretching_is_that_of_long_clip():
    # Long-CLIP takes 77 rows to 248: 20 kept, 57 times 4. Here CLS's row is one more, at the end.
    table = np.random.default_rng(0).normal(size=(78, 5)).astype(np.float32)
    stretched = stretch_positions(table, 249)
    assert np.array_equal(stretched[:20], table[:20]) and np.array_equal(stretched[-1], table[-1])
    middle = table[20:77]
    for i in range(56):
        for part in range(4):
            expected = (1 - part / 4) * middle[i] + part / 4 * middle[i + 1]
            np.testing.assert_allclose(stretched[20 + 4 * i + part], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stretched[20 + 4 * 56 + 1], middle[56] + (middle[56] - middle[55]) / 4, atol=1e-6)
    with pytest.raises(ConfigError, match="cannot become"):
        stretch_positions(table[:20], 40)


def test_learned_positions_are_interpolated_and_the_class_token_keeps_its_row():
    # A table that is linear in x stays so, away from the borders.
    config = with_model(image={"positions": "learned", "class_token": True}).model.image
    grid = np.repeat(np.tile(np.arange(8, dtype=np.float32), 8)[:, None], 32, axis=1)
    table = np.concatenate([np.full((1, 32), 7, np.float32), grid])
    source = dataclasses.replace(config, image_size=64)
    larger = image_positions(table, source, dataclasses.replace(config, image_size=128))
    assert larger.shape == (257, 32) and (larger[0] == 7).all()
    np.testing.assert_allclose(larger[1:].reshape(16, 16, 32)[5, 4:12, 0], np.arange(4, 12) / 2 - 0.25, atol=1e-5)
    assert np.array_equal(image_positions(None, source, source)[1:], sincos_positions(8, 32))


def test_a_resized_patch_kernel_sees_an_enlarged_picture_as_before():
    rng = np.random.default_rng(0)
    kernel, patches = rng.normal(size=(4 * 4 * 3, 5)).astype(np.float32), rng.normal(size=(7, 4, 4, 3))
    enlarged = jax.image.resize(jnp.asarray(patches, jnp.float32), (7, 6, 6, 3), "bilinear")
    before = patches.reshape(7, -1) @ kernel
    np.testing.assert_allclose(np.asarray(enlarged).reshape(7, -1) @ resize_patches(kernel, 4, 6), before, atol=1e-4)


def test_patches_are_resized_only_if_asked(stage1):
    config = with_model(image={"patch_size": 4})
    with pytest.raises(CheckpointMismatch, match="image/patches/kernel"):
        handed(stage1, config)
    assert handed(stage1, config, patches="resize").arrays["image/patches/kernel"].shape == (4 * 4 * 3, 32)
