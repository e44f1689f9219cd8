"""The captioner with cross-attention: who sees whom, and that writing token by token is the training pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from clips_jax.models.cross_attention import CrossAttentionCaptioner
from tests import small

CONFIG = dataclasses.replace(
    small.config().model.captioner, kind="cross_attention", target_length=5, condition_on=("image", "alt")
)
MODEL = CrossAttentionCaptioner(CONFIG, small.VOCAB_SIZE, jnp.dtype("float32"))
REAL = jnp.array([[True, True, False]])
TARGETS = jnp.array([[7, 8, 9, 10, 11]])


def prefix(image, alt):
    return {"image": (image, jnp.ones(image.shape[:2], bool)), "alt": (alt, REAL)}


IMAGE, ALT = jax.random.normal(jax.random.key(1), (1, 4, 16)), jax.random.normal(jax.random.key(2), (1, 3, 8))
PARAMS = jax.jit(MODEL.init, static_argnums=3)(jax.random.key(0), prefix(IMAGE, ALT), TARGETS, 2)["params"]


def test_targets_see_the_real_prefix_and_no_later_target():
    def outputs(image, alt, positions):
        params = PARAMS | {"positions": positions}
        return MODEL.apply({"params": params}, prefix(image, alt), TARGETS, 2)[0][0].sum(axis=-1)

    by_image, by_alt, by_target = jax.jit(jax.jacobian(outputs, argnums=(0, 1, 2)))(IMAGE, ALT, PARAMS["positions"])
    np.testing.assert_array_equal(abs(by_target).sum(-1) > 0, np.tril(np.ones((5, 5), bool)))
    assert (abs(by_image).sum(-1) > 0).all()
    by_alt = abs(by_alt[:, 0]).sum(-1)
    assert (by_alt[:, :2] > 0).all() and (by_alt[:, 2] == 0).all()  # the last is padding


def test_a_target_reads_the_tokens_before_it_and_not_itself():
    first = MODEL.apply({"params": PARAMS}, prefix(IMAGE, ALT), TARGETS, 2)[0]
    changed = MODEL.apply({"params": PARAMS}, prefix(IMAGE, ALT), TARGETS.at[0, 2].set(30), 2)[0]
    np.testing.assert_array_equal(first[:, :3], changed[:, :3])
    assert (first[:, 3] != changed[:, 3]).any()


def test_writing_token_by_token_is_the_training_pass():
    hidden, head = MODEL.apply({"params": PARAMS}, prefix(IMAGE, ALT), TARGETS, 2)
    written = MODEL.apply({"params": PARAMS}, prefix(IMAGE, ALT), method="start")
    before = jnp.array([2])
    for position in range(5):
        logits, written = MODEL.apply({"params": PARAMS}, written, before, jnp.array(position), method="next")
        np.testing.assert_allclose(logits, hidden[:, position] @ head, rtol=1e-4, atol=1e-5)
        before = TARGETS[:, position]
