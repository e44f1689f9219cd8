"""The pure training step: masks -> towers -> captioner -> losses -> gradients -> optimizer.

Legend: B global batch, H/W image height/width, T target positions.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clips_jax import augment, losses, masks
from clips_jax.batch import Batch
from clips_jax.config import Config
from clips_jax.data.tokenizer import SpecialTokens
from clips_jax.models.clips import Clips, Outputs, every_nth
from clips_jax.models.token_dropping import draw_kept
from clips_jax.optimizer import learning_rate_schedule

# Keys of the randomness inside a step, folded into the example's key.
JITTER_STREAM, VIEW_STREAM = 0, 1  # views are numbered from VIEW_STREAM on
IMAGE_TOKEN_STREAM = 2**16


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes. `step` counts finished updates."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_params(config: Config, model: Clips, key: jax.Array) -> Any:
    """Fresh float32 parameters."""
    captioner, size = config.model.captioner, config.model.image.image_size
    rows = captioner.every if captioner else 1  # the smallest batch that the captioner's stride divides
    views = {
        name: (jnp.zeros((rows, view.length), jnp.int32), jnp.ones((rows, view.length), bool))
        for name, view in config.objective.views.items()
    }
    targets_BxT = jnp.zeros((rows, captioner.target_length), jnp.int32) if captioner else None
    return model.init(key, jnp.zeros((rows, size, size, 3)), views, targets_BxT)["params"]


def init_state(config: Config, model: Clips, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state; run it under `jit` with output shardings, so that it is created where it will live."""
    params = init_params(config, model, key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def loss_parts(
    config: Config, outputs: Outputs, targets: tuple[jax.Array, jax.Array] | None, mesh: Mesh
) -> dict[str, jax.Array]:
    """The loss and its parts: "loss", "loss/contrastive", "loss/contrastive/VIEW", "loss/caption"."""
    objective, parts = config.objective, {}
    total = jnp.zeros(())
    if objective.contrastive != "none":
        weight = sum(view.weight for view in objective.views.values())
        parts["loss/contrastive"], by_view = losses.contrastive_loss(
            outputs.image_BxE,
            jnp.stack([outputs.texts[name] for name in objective.views], axis=1),
            outputs.scale,
            outputs.bias,
            kind=objective.contrastive,
            weights=tuple(view.weight / weight for view in objective.views.values()),
            mesh=mesh,
        )
        parts |= {f"loss/contrastive/{name}": part for name, part in zip(objective.views, by_view, strict=True)}
        total += objective.contrastive_weight * parts["loss/contrastive"]
    if outputs.caption and targets:
        counted = jnp.maximum(targets[1].sum(), 1)
        parts["loss/caption"] = losses.caption_loss(*outputs.caption, *targets, counted, mesh)
        total += objective.caption_weight * parts["loss/caption"]
    return {"loss": total, **parts}


def batch_loss(
    config: Config, model: Clips, special: SpecialTokens, mesh: Mesh, params: Any, batch: Batch, step: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of the batch of this step, and its parts: a function of (config, params, batch, step)."""
    keys_B = masks.example_keys(jax.random.key(config.seed), step, len(batch.images))
    fold = jax.vmap(jax.random.fold_in, (0, None))
    images_BxHxWx3 = augment.prepare_images(batch.images, fold(keys_B, JITTER_STREAM), config.data)
    views = {
        name: masks.make_view(batch.texts, view, fold(keys_B, VIEW_STREAM + i), special)
        for i, (name, view) in enumerate(config.objective.views.items())
    }
    captioner, targets = config.model.captioner, None
    targets_BxT = None
    if captioner:
        targets_BxT, weights_BxT = masks.caption_target(batch.texts[captioner.target], captioner.target_length, special)
        targets = every_nth(targets_BxT, captioner.every), every_nth(weights_BxT, captioner.every)
    kept = draw_kept(config.model, fold(keys_B, IMAGE_TOKEN_STREAM))
    outputs = model.apply({"params": params}, images_BxHxWx3, views, targets_BxT, kept)
    assert isinstance(outputs, Outputs)
    parts = loss_parts(config, outputs, targets, mesh)
    return parts["loss"], parts | {"logit_scale": outputs.scale}


def train_step(
    config: Config,
    model: Clips,
    special: SpecialTokens,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    If the loss, a gradient or an updated parameter is not finite, parameters and optimizer state stay as they were and
    the metric "finite" is 0: the state is never poisoned, and the loop stops the run.

    Returns:
      the next state; float32 () metrics: the loss parts, "gradient_norm", "parameter_norm", "learning_rate",
      "logit_scale", "finite".
    """
    (loss, metrics), gradients = jax.value_and_grad(batch_loss, argnums=4, has_aux=True)(
        config, model, special, mesh, state.params, batch, state.step
    )
    gradient_norm = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    if "logit_scale" in params:
        params["logit_scale"] = jnp.minimum(params["logit_scale"], jnp.log(config.objective.scale_max))
    parameter_norm = optax.tree.norm(params)
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm) & jnp.isfinite(parameter_norm)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    metrics |= {
        "gradient_norm": gradient_norm,
        "parameter_norm": parameter_norm,
        "learning_rate": learning_rate_schedule(config)(state.step),
        "finite": finite.astype(jnp.float32),
    }
    return TrainState(state.step + 1, params, opt_state), metrics
