"""The step: the loss parts add up, frozen parameters stay, non-finite losses change nothing, the scale is clamped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax import masks
from clips_jax.augment import prepare_images
from clips_jax.models import layers
from clips_jax.models.clips import Clips
from clips_jax.models.fused_attention import fused_attention
from clips_jax.models.image_tower import normalize
from clips_jax.optimizer import learning_rate_schedule, make_optimizer
from clips_jax.train_step import VIEW_STREAM, Step, init_params, init_state, train_step
from tests import references, small

PREPARED = {}


def prepared(config):
    """The model, a fresh state and the jitted step of a config; tests that use the same one trace it once."""
    if repr(config) not in PREPARED:
        PREPARED[repr(config)] = prepare(config)
    return PREPARED[repr(config)]


def prepare(config):
    model = Clips(config.model, config.objective, small.SPECIAL.bos)
    key = jax.random.key(0)
    optimizer = make_optimizer(config, jax.eval_shape(lambda k: init_params(config, model, k), key))
    state = init_state(config, model, optimizer, key)
    return (
        model,
        state,
        jax.jit(functools.partial(train_step, config, model, small.SPECIAL, optimizer, small.one_device())),
    )


def test_the_loss_is_the_papers_sum():
    config = small.config()
    model, state, step = prepared(config)
    batch = small.batch(config)
    _, metrics = step(state, batch)
    keys = masks.example_keys(jax.random.key(config.seed), jnp.array(0), config.batch_size)
    images = prepare_images(batch.images, jax.vmap(jax.random.fold_in, (0, None))(keys, 0), config.data)
    image = model.apply({"params": state.params}, images, method="encode_image")
    losses = []
    for i, (name, view) in enumerate(config.objective.views.items()):
        view_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, VIEW_STREAM + i)
        framed = masks.make_view(batch.texts, view, view_keys, small.SPECIAL)
        text = model.apply({"params": state.params}, framed, method="encode_text")
        losses.append(references.softmax_loss(np.asarray(image), np.asarray(text), 1 / 0.07))
        np.testing.assert_allclose(metrics[f"loss/contrastive/{name}"], losses[-1], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses) + 2 * metrics["loss/caption"], rtol=1e-5)


def test_training_reduces_the_loss():
    config = small.config()
    _, state, step = prepared(config)
    batch, losses = small.batch(config), []
    for _ in range(10):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def with_attention(config, attention):
    model = config.model
    parts = {
        name: dataclasses.replace(part, transformer=dataclasses.replace(part.transformer, attention=attention))
        for name, part in (("image", model.image), ("text", model.text), ("captioner", model.captioner))
    }
    return dataclasses.replace(config, model=dataclasses.replace(model, **parts))


@pytest.mark.parametrize("on_tpu", [False, True])
def test_fused_attention_trains_as_plain_attention_does(monkeypatch, on_tpu):
    """On this CPU because it is the same; as on a TPU with the kernel run step by step, packed texts included."""
    config = small.packed(small.config(depth=5), tokens_per_example=30, group=4)
    _, state, step = prepare(with_attention(config, "plain"))
    expected = step(state, small.batch(config))
    kernels = []

    def kernel(*inputs):
        kernels.append(inputs)
        return fused_attention(*inputs, interpret=True)

    monkeypatch.setattr(layers, "fused_attention", kernel)
    if on_tpu:
        monkeypatch.setattr(layers, "trains_on", lambda platform: platform == "tpu")
    _, state, step = prepare(with_attention(config, "fused"))
    small.assert_trees_close(step(state, small.batch(config)), expected, rtol=1e-3, atol=1e-5)
    assert bool(kernels) == on_tpu


def test_captioner_on_every_second_example_sees_these_examples():
    config = small.config()
    captioner = dataclasses.replace(config.model.captioner, every=2)
    half = dataclasses.replace(config, model=dataclasses.replace(config.model, captioner=captioner))
    model, state, _ = prepared(config)
    batch = small.batch(config)
    odd = jax.tree.map(lambda x: x.at[1::2].set(x[1::2][::-1]), jax.tree.map(jnp.asarray, batch.texts["recaption"]))
    model = Clips(half.model, half.objective, small.SPECIAL.bos)
    loss = jax.jit(Step(half, model, small.SPECIAL, small.one_device()).loss)
    keys = masks.example_keys(jax.random.key(config.seed), state.step, config.batch_size)
    parts = loss(state.params, batch, keys)[1]
    changed = loss(state.params, batch.replace(texts=batch.texts | {"recaption": odd}), keys)[1]
    assert parts["loss/caption"] == changed["loss/caption"]
    assert parts["loss/contrastive/recap"] != changed["loss/contrastive/recap"]


def gradients(config):
    step = Step(config, Clips(config.model, config.objective, small.SPECIAL.bos), small.SPECIAL, small.one_device())
    keys = masks.example_keys(jax.random.key(config.seed), jnp.array(0), config.batch_size)
    return jax.jit(step.gradients)(prepared(small.config())[1].params, small.batch(config), keys)


@pytest.fixture(scope="module")
def plain_gradients():
    return gradients(small.config())


@pytest.mark.parametrize(("packed", "parts"), [(True, 1), (False, 4), (True, 2)])
def test_packed_texts_and_parts_of_a_batch_change_no_gradient(plain_gradients, packed, parts):
    config = dataclasses.replace(small.config(), accumulation_steps=parts)
    config = small.packed(config, group=2, tokens_per_example=27) if packed else config
    ours, metrics = gradients(config)
    if packed:
        assert metrics.pop("text/cut") == 0 and 0.3 < metrics.pop("text/fill") < 0.7
    small.assert_trees_close(metrics, plain_gradients[1], rtol=1e-5)
    small.assert_trees_close(ours, plain_gradients[0], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing_and_says_so(where):
    config = small.config()
    _, state, step = prepared(config)
    params = jax.tree.map(lambda x: x, state.params)
    if where == "loss":
        params["image"]["head"]["kernel"] = params["image"]["head"]["kernel"].at[0, 0].set(jnp.nan)
    else:
        params["logit_scale"] = jnp.float32(300.0)  # exp overflows
    state = state.replace(params=params)
    after, metrics = step(state, small.batch(config))
    assert metrics["finite"] == 0 and after.step == 1
    np.testing.assert_array_equal(after.params["text"]["head"]["kernel"], params["text"]["head"]["kernel"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.opt_state))


def test_frozen_parameters_stay():
    config = small.config()
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, freeze=("^image/",)))
    _, state, step = prepared(config)
    after, _ = step(step(state, small.batch(config))[0], small.batch(config))
    np.testing.assert_array_equal(after.params["image"]["head"]["kernel"], state.params["image"]["head"]["kernel"])
    assert (after.params["text"]["head"]["kernel"] != state.params["text"]["head"]["kernel"]).any()


def test_the_scale_is_clamped():
    config = small.config()
    _, state, step = prepared(config)
    state = state.replace(params=state.params | {"logit_scale": jnp.log(200.0)})
    np.testing.assert_allclose(jnp.exp(step(state, small.batch(config))[0].params["logit_scale"]), 100, rtol=1e-5)


def test_weight_decay_touches_kernels_only():
    config = small.config()
    strong = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, weight_decay=5.0))
    none = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, weight_decay=0.0))
    results = []
    for settings in (strong, none):
        _, state, step = prepared(settings)
        results.append(step(step(state, small.batch(config))[0], small.batch(config))[0].params)
    assert (results[0]["image"]["head"]["kernel"] != results[1]["image"]["head"]["kernel"]).any()
    assert (results[0]["captioner"]["head"] != results[1]["captioner"]["head"]).any()
    for path in (
        ("text", "tokens", "embedding"),
        ("captioner", "queries"),
        ("image", "norm", "scale"),
        ("logit_scale",),
    ):
        a, b = results
        for key in path:
            a, b = a[key], b[key]
        np.testing.assert_array_equal(a, b)


def test_schedule():
    config = small.config(total_samples=8 * 100)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, warmup_samples=80))
    schedule = learning_rate_schedule(config)
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [0, 5e-3, 1e-2], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(schedule(55), 1e-2 * (1 + np.cos(np.pi / 2)) / 2, rtol=1e-4)
    assert schedule(100) == pytest.approx(0, abs=1e-9)


def test_images_without_jitter_are_normalised():
    config = small.config()
    images = small.batch(config).images
    np.testing.assert_allclose(
        prepare_images(images, None, config.data), normalize(images / 255.0), rtol=1e-5, atol=1e-5
    )


def test_jitter_stays_in_range_and_keeps_shares():
    config = dataclasses.replace(small.config().data, jitter_probability=0.0)
    keys = jax.random.split(jax.random.key(0), 2000)
    image = jnp.broadcast_to(jnp.array([200, 50, 50], jnp.uint8), (2000, 2, 2, 3))
    out = np.asarray(prepare_images(image, keys, config)) * np.array([0.229, 0.224, 0.225]) + np.array(
        [0.485, 0.456, 0.406]
    )
    gray = float((np.ptp(out, axis=-1) < 1e-3).all(axis=(1, 2)).mean())
    assert abs(gray - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 2000)
    always = dataclasses.replace(config, jitter_probability=1.0, grayscale_probability=0.0)
    out = np.asarray(prepare_images(image, keys, always)) * np.array([0.229, 0.224, 0.225]) + np.array(
        [0.485, 0.456, 0.406]
    )
    assert out.min() > -1e-5 and out.max() < 1 + 1e-5 and float(out.std(axis=0).min()) > 0.02
