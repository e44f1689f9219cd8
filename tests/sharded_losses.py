"""The losses in float64 on meshes of 8 devices against the dense references; `test_losses.py` starts it as a process.

python -m tests.sharded_losses
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clips_jax import losses
from clips_jax.losses import caption, contrastive
from tests import references

RNG = np.random.default_rng(0)
WEIGHTS = (0.25, 0.75)


def unit_rows(*shape: int) -> np.ndarray:
    x = RNG.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def check_contrastive(mesh: Mesh, kind: contrastive.Kind) -> None:
    image, texts = unit_rows(48, 6), unit_rows(48, 2, 6)
    scale, bias = 12.0, -3.0
    loss = functools.partial(losses.contrastive_loss, kind=kind, weights=WEIGHTS, mesh=mesh)
    inputs = image, texts, jnp.float64(scale), jnp.float64(bias)
    (value, parts), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*inputs)
    expected, expected_gradients = references.contrastive_loss(image, texts, scale, bias, kind, WEIGHTS)
    np.testing.assert_allclose(parts, expected, rtol=1e-12)
    np.testing.assert_allclose(value, np.dot(WEIGHTS, expected), rtol=1e-12)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def check_caption(mesh: Mesh) -> None:
    hidden, head = RNG.normal(size=(16, 4, 8)), RNG.normal(size=(8, 32))
    targets, weights = RNG.integers(0, 32, (16, 4)), (RNG.random((16, 4)) < 0.6).astype(np.float64)
    loss = functools.partial(losses.caption_loss, mesh=mesh)
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, head, targets, weights, weights.sum())
    np.testing.assert_allclose(value, references.caption_loss(hidden, head, targets, weights), rtol=1e-12)
    expected = references.caption_loss_gradients(hidden, head, targets, weights)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def main() -> None:
    contrastive.CHUNK_BYTES = 2 * 6 * 8 * 12  # several chunks in a block
    caption.CHUNK_BYTES = 4 * 32 * 2
    for sizes in ((8, 1, 1), (4, 2, 1), (2, 2, 2)):
        mesh = Mesh(np.array(jax.devices()).reshape(sizes), ("data", "fsdp", "tensor"))
        for kind in ("softmax", "sigmoid"):
            for contrastive.GATHERED_BYTES in (0, 2**28):  # in a ring, gathered
                check_contrastive(mesh, kind)
                print(f"{sizes} {kind} {contrastive.GATHERED_BYTES}: equal")
        check_caption(mesh)
        print(f"{sizes} caption: equal")


if __name__ == "__main__":
    main()
