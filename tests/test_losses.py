"""Values and gradients of the losses against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax import losses
from tests import references

RNG = np.random.default_rng(0)


def unit_rows(batch: int, width: int) -> np.ndarray:
    x = RNG.normal(size=(batch, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("batch", [1, 2, 33])
def test_softmax_loss(batch, scale):
    image, text = unit_rows(batch, 16), unit_rows(batch, 16)
    value, gradients = jax.value_and_grad(losses.softmax_loss, argnums=(0, 1, 2))(image, text, jnp.float32(scale))
    np.testing.assert_allclose(value, references.softmax_loss(image, text, scale), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients, references.softmax_loss_gradients(image, text, scale), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6 * scale)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, 3.0)])
def test_sigmoid_loss(scale, bias):
    image, text = unit_rows(33, 16), unit_rows(33, 16)
    arguments = (image, text, jnp.float32(scale), jnp.float32(bias))
    value, gradients = jax.value_and_grad(losses.sigmoid_loss, argnums=(0, 1, 2, 3))(*arguments)
    np.testing.assert_allclose(value, references.sigmoid_loss(image, text, scale, bias), rtol=1e-5)
    for ours, theirs in zip(gradients, references.sigmoid_loss_gradients(image, text, scale, bias), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6 * scale)


def test_caption_loss_counts_target_tokens_only():
    hidden, head = RNG.normal(size=(3, 7, 8)).astype(np.float32), RNG.normal(size=(8, 50)).astype(np.float32)
    targets = RNG.integers(0, 50, (3, 7))
    weights = (np.arange(7)[None] < np.array([7, 3, 1])[:, None]).astype(np.float32)
    value, gradients = jax.value_and_grad(losses.caption_loss, argnums=(0, 1))(hidden, head, targets, weights)
    np.testing.assert_allclose(value, references.caption_loss(hidden, head, targets, weights), rtol=1e-5)
    for ours, theirs in zip(gradients, references.caption_loss_gradients(hidden, head, targets, weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert (gradients[0][weights == 0] == 0).all()


def test_caption_loss_without_any_target_is_zero():
    value, gradient = jax.value_and_grad(losses.caption_loss)(
        jnp.ones((2, 3, 4)), jnp.ones((4, 5)), jnp.zeros((2, 3), int), jnp.zeros((2, 3))
    )
    assert value == 0 and (gradient == 0).all()


def test_extreme_logits_stay_finite():
    image = unit_rows(4, 8)
    value, gradient = jax.value_and_grad(losses.softmax_loss)(image, -image, jnp.float32(1e4))
    assert np.isfinite(value) and np.isfinite(gradient).all()
