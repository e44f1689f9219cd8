"""Values and gradients of the losses against NumPy in float64."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax import losses
from clips_jax.losses import caption, contrastive
from tests import references, small

RNG = np.random.default_rng(0)


def unit_rows(*shape: int) -> np.ndarray:
    x = RNG.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnames=("kind", "weights"))
def contrastive_loss(image, texts, scale, bias, kind, weights):
    loss = functools.partial(losses.contrastive_loss, kind=kind, weights=weights, mesh=small.one_device())
    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(image, texts, scale, bias)


@pytest.fixture
def chunk_bytes(monkeypatch, request):
    """Chunks of a few columns and rows instead of one."""
    monkeypatch.setattr(contrastive, "CHUNK_BYTES", request.param)
    monkeypatch.setattr(caption, "CHUNK_BYTES", request.param)
    contrastive_loss.clear_cache()
    yield
    contrastive_loss.clear_cache()


@pytest.mark.parametrize("chunk_bytes", [2**25, 33 * 4 * 2 * 11], indirect=True)
@pytest.mark.parametrize(("kind", "scale"), [("softmax", 1.0), ("softmax", 100.0), ("sigmoid", 10.0)])
@pytest.mark.parametrize("weights", [(1.0,), (0.25, 0.75)])
def test_contrastive_loss(chunk_bytes, weights, kind, scale):
    image, texts, bias = unit_rows(33, 16), unit_rows(33, len(weights), 16), -10.0
    (value, parts), gradients = contrastive_loss(image, texts, jnp.float32(scale), jnp.float32(bias), kind, weights)
    expected, expected_gradients = references.contrastive_loss(image, texts, scale, bias, kind, weights)
    np.testing.assert_allclose(parts, expected, rtol=1e-5)
    np.testing.assert_allclose(value, np.dot(weights, expected), rtol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6 * scale)


def test_a_batch_of_one_has_no_softmax_loss():
    image, texts = unit_rows(1, 16), unit_rows(1, 1, 16)
    (value, _), gradients = contrastive_loss(image, texts, jnp.float32(9.0), jnp.zeros(()), "softmax", (1.0,))
    np.testing.assert_allclose([value, *(abs(g).max() for g in gradients)], 0, atol=1e-6)


def test_extreme_logits_stay_finite():
    image = unit_rows(4, 8)
    for kind in ("softmax", "sigmoid"):
        result = contrastive_loss(image, -image[:, None], jnp.float32(1e4), jnp.float32(0), kind, (1.0,))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))


def caption_inputs():
    hidden, head = RNG.normal(size=(3, 8, 8)).astype(np.float32), RNG.normal(size=(8, 50)).astype(np.float32)
    targets = RNG.integers(0, 50, (3, 8))
    weights = (np.arange(8)[None] < np.array([7, 3, 1])[:, None]).astype(np.float32)
    return hidden, head, targets, weights


@pytest.mark.parametrize("chunk_bytes", [2**25, 4 * 4 * 50], indirect=True)
def test_caption_loss_counts_target_tokens_only(chunk_bytes):
    hidden, head, targets, weights = caption_inputs()
    loss = functools.partial(losses.caption_loss, mesh=small.one_device())
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, head, targets, weights, weights.sum())
    np.testing.assert_allclose(value, references.caption_loss(hidden, head, targets, weights), rtol=1e-5)
    for ours, theirs in zip(gradients, references.caption_loss_gradients(hidden, head, targets, weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert (gradients[0][weights == 0] == 0).all()


def test_caption_cross_entropy_of_each_token():
    hidden, head, targets, weights = caption_inputs()
    each = losses.caption_cross_entropy(hidden, head, targets)
    expected = references.caption_loss(hidden, head, targets, weights) * weights.sum()
    np.testing.assert_allclose((each * weights).sum(), expected, rtol=1e-5)


def test_losses_on_eight_devices_are_the_dense_float64_ones():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_ENABLE_X64": "1",
    }
    command = [sys.executable, "-m", "tests.sharded_losses"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 3 * 2 * 2 + 3, done.stdout
