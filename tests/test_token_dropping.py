"""Image tokens left out in training: which, where they sit, and that evaluation sees them all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax import masks
from clips_jax.masks import example_keys
from clips_jax.models.clips import Clips
from clips_jax.models.image_tower import ImageTower
from clips_jax.models.token_dropping import count_kept, draw_kept, select
from clips_jax.train_step import Step, init_params
from tests import small


def with_shares(tower: float, captioner: float = 1.0):
    config = small.config(depth=1)
    image = dataclasses.replace(config.model.image, keep_tokens=tower, image_size=32)
    decoder = dataclasses.replace(config.model.captioner, keep_image_tokens=captioner)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, image=image, captioner=decoder))


@pytest.mark.parametrize(("count", "share", "kept"), [(16, 0.5, 8), (36, 0.3, 11), (4, 0.01, 1), (196, 0.25, 49)])
def test_the_share_is_the_share_kept(count, share, kept):
    assert count_kept(count, share) == kept


def test_kept_tokens_are_a_function_of_the_examples_key():
    model = with_shares(0.5, 0.5).model
    keys = masks.example_keys(jax.random.key(0), jnp.array(3), 64)
    kept = draw_kept(model, keys)
    assert kept.tower.shape == (64, 8) and kept.captioner.shape == (64, 4)
    assert (np.diff(kept.tower) > 0).all() and (np.diff(kept.captioner) > 0).all()
    again = draw_kept(model, keys[32:])
    np.testing.assert_array_equal(again.tower, kept.tower[32:])
    assert len(np.unique(kept.tower, axis=0)) > 60  # of 12,870 subsets
    # Every patch is as likely: 64 draws of 8 in 16 are 32 ± 4 each, so 12 to 52 is five standard deviations.
    counts = np.bincount(np.ravel(kept.tower), minlength=16)
    assert (counts > 12).all() and (counts < 52).all()
    assert draw_kept(with_shares(1.0).model, keys).tower is None


def test_select_is_exact():
    tokens = jax.random.normal(jax.random.key(0), (3, 7, 5))
    kept = jnp.array([[0, 6], [2, 3], [1, 5]])
    np.testing.assert_array_equal(select(tokens, kept), jnp.take_along_axis(tokens, kept[..., None], axis=1))


def test_the_tower_sees_kept_patches_in_their_places_and_no_others():
    tower = ImageTower(with_shares(0.5).model.image, 24, jnp.dtype("float32"))
    images = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3))
    params = jax.jit(tower.init)(jax.random.key(0), images)
    features = jax.jit(lambda images, kept: tower.apply(params, images, kept)[0])
    kept = jnp.array([[0, 3, 5, 6, 9, 10, 12, 15]])
    by_pixel = jax.jit(jax.grad(lambda images: (tower.apply(params, images, kept)[0] ** 2).sum()))(images)
    seen = np.abs(by_pixel).reshape(4, 8, 4, 8, 3).sum(axis=(1, 3, 4)).reshape(-1) > 0
    np.testing.assert_array_equal(np.flatnonzero(seen), kept[0])
    # All of them, named one by one, are the picture as it is.
    everything = features(images, jnp.arange(16)[None])
    np.testing.assert_allclose(everything, features(images, None), rtol=1e-5, atol=1e-6)
    # The same patches elsewhere are another picture: positions belong to places, not to ranks among the kept.
    above = jnp.array([[0, 1, 3, 5, 6, 8, 10, 11]])
    moved = features(jnp.roll(images, 8, axis=1), above + 4)  # a row down: the same patches in the same order
    assert abs(moved - features(images, above)).max() > 1e-4


def test_the_step_drops_and_evaluation_does_not():
    plain = with_shares(1.0)
    batch, model = small.batch(plain), Clips(plain.model, plain.objective, small.SPECIAL.bos)
    params = jax.jit(lambda key: init_params(plain, model, key))(jax.random.key(0))

    keys = example_keys(jax.random.key(0), jnp.array(0), plain.batch_size)

    def parts(config):
        model = Clips(config.model, config.objective, small.SPECIAL.bos)
        run = jax.jit(Step(config, model, small.SPECIAL, small.one_device()).loss)
        features = jax.jit(lambda images: model.apply({"params": params}, images, method="encode_image"))
        return run(params, batch, keys)[1], features(batch.images / np.float32(255))

    whole, features = parts(plain)
    without_patches, features_of_tower = parts(with_shares(0.5))
    without_tokens, _ = parts(with_shares(1.0, captioner=0.3))
    np.testing.assert_array_equal(features, features_of_tower)
    assert without_patches["loss/contrastive"] != whole["loss/contrastive"]
    assert without_tokens["loss/contrastive"] == whole["loss/contrastive"]
    assert without_tokens["loss/caption"] != whole["loss/caption"]
