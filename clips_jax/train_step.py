"""The pure training step: masks -> towers -> captioner -> losses -> gradients -> optimizer.

Legend: B global batch, H/W image height/width, T target positions.
"""

import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from clips_jax import augment, losses, masks
from clips_jax.batch import Batch
from clips_jax.config import Config
from clips_jax.data.tokenizer import SpecialTokens
from clips_jax.models.clips import Clips, Outputs, every_nth
from clips_jax.models.token_dropping import draw_kept
from clips_jax.optimizer import learning_rate_schedule, path_name
from clips_jax.packing import pack, packing_metrics

# Keys of the randomness inside a step, folded into the example's key.
JITTER_STREAM, VIEW_STREAM = 0, 1  # views are numbered from VIEW_STREAM on
IMAGE_TOKEN_STREAM = 2**16

MATRICES = re.compile(r"/(kernel|embedding|head)$")

Metrics = dict[str, Any]  # float32 ()


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


class Step:
    """The parts of a step, with what they all need at hand.

    Everything random about an example follows from its key, whatever rows it is computed together with.
    """

    def __init__(self, config: Config, model: Clips, special: SpecialTokens, mesh: Mesh | AbstractMesh):
        self.config, self.model, self.special, self.mesh = config, model, special, mesh

    def outputs(self, params: Any, batch: Batch, keys_B: jax.Array, captions: bool) -> tuple[Outputs, Metrics]:
        """Masks, towers and, if asked for, the captioner; what was packed, as metrics."""
        fold, config, metrics = jax.vmap(jax.random.fold_in, (0, None)), self.config, {}
        images_BxHxWx3 = augment.prepare_images(batch.images, fold(keys_B, JITTER_STREAM), config.data)
        texts: Any = {
            name: masks.make_view(batch.texts, view, fold(keys_B, VIEW_STREAM + i), self.special)
            for i, (name, view) in enumerate(config.objective.views.items())
        }
        packing = config.model.text.packing
        if packing and texts:
            texts = pack(list(texts.values()), packing, config.model.text.length, self.special, self.mesh)
            metrics = packing_metrics(texts)
        targets_BxT = self.targets(batch)[0] if captions and config.model.captioner else None
        kept = draw_kept(config.model, fold(keys_B, IMAGE_TOKEN_STREAM))
        outputs = self.model.apply({"params": self.cast(params)}, images_BxHxWx3, texts, targets_BxT, kept)
        assert isinstance(outputs, Outputs)
        return outputs, metrics

    def cast(self, params: Any) -> Any:
        """Matrices in bfloat16, which is what they are multiplied in, if their gradients are to be summed in it."""
        if (self.config.model.dtype, self.config.optimizer.gradient_dtype) != ("bfloat16", "bfloat16"):
            return params

        def cast_one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            return x.astype(jnp.bfloat16) if MATRICES.search(path_name(path)) else x

        return jax.tree_util.tree_map_with_path(cast_one, params)

    def targets(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The captioner's targets and their weights, (B, T) each."""
        captioner = self.config.model.captioner
        assert captioner
        return masks.caption_target(batch.texts[captioner.target], captioner.target_length, self.special)

    def counted(self, batch: Batch) -> jax.Array:
        """How many target tokens of this batch count in the caption loss, at least 1."""
        captioner = self.config.model.captioner
        return jnp.maximum(every_nth(self.targets(batch)[1], captioner.every).sum(), 1) if captioner else jnp.ones(())

    def contrastive(
        self, image_BxE: jax.Array, texts_BxVxE: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Its share of the loss; "loss/contrastive" and "loss/contrastive/VIEW"."""
        objective = self.config.objective
        if objective.contrastive == "none":
            return jnp.zeros(()), {}
        weight = sum(view.weight for view in objective.views.values())
        loss, parts_V = losses.contrastive_loss(
            image_BxE,
            texts_BxVxE,
            scale,
            bias,
            kind=objective.contrastive,
            weights=tuple(view.weight / weight for view in objective.views.values()),
            mesh=self.mesh,
        )
        parts = {f"loss/contrastive/{name}": part for name, part in zip(objective.views, parts_V, strict=True)}
        return objective.contrastive_weight * loss, parts | {"loss/contrastive": loss}

    def caption(self, outputs: Outputs, batch: Batch, counted: jax.Array) -> tuple[jax.Array, Metrics]:
        """Its share of the loss; "loss/caption": the sum over this batch's target tokens over `counted`."""
        captioner = self.config.model.captioner
        if not outputs.caption or not captioner:
            return jnp.zeros(()), {}
        hidden_CxTxD, head_DxV = outputs.caption
        targets_CxT, weights_CxT = every_nth(self.targets(batch), captioner.every)
        loss = losses.caption_loss(hidden_CxTxD, head_DxV, targets_CxT, weights_CxT, counted, self.mesh)
        return self.config.objective.caption_weight * loss, {"loss/caption": loss}

    def loss(self, params: Any, batch: Batch, keys_B: jax.Array) -> tuple[jax.Array, Metrics]:
        """The loss of a batch and its parts."""
        outputs, metrics = self.outputs(params, batch, keys_B, captions=True)
        contrastive, parts = self.contrastive(outputs.image_BxE, outputs.texts_BxVxE, outputs.scale, outputs.bias)
        caption, caption_parts = self.caption(outputs, batch, self.counted(batch))
        total = contrastive + caption
        return total, {"loss": total} | parts | caption_parts | metrics | {"logit_scale": outputs.scale}

    def gradients(self, params: Any, batch: Batch, keys_B: jax.Array) -> tuple[Any, Metrics]:
        """The gradient of `loss`, and its parts."""
        if self.config.accumulation_steps > 1:
            return self.accumulated_gradients(params, batch, keys_B)
        (_, metrics), gradients = jax.value_and_grad(self.loss, has_aux=True)(params, batch, keys_B)
        return gradients, metrics

    def accumulated_gradients(self, params: Any, batch: Batch, keys_B: jax.Array) -> tuple[Any, Metrics]:
        """The same, in parts of the batch one after the other, in the memory of one (GradCache, Gao et al. 2021).

        First the embeddings of all parts; then the contrastive loss of the whole batch and its gradient by the
        embeddings; then, part by part, that gradient is sent through the towers and the caption loss added.
        """
        parts = self.config.accumulation_steps
        batches, keys = self.split((batch, keys_B), parts)
        counted = self.counted(batch)

        def embed(_: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            outputs, _ = self.outputs(params, *part, captions=False)
            return None, (outputs.image_BxE, outputs.texts_BxVxE)

        embeddings = jax.lax.scan(embed, None, (batches, keys))[1]
        scale, bias = self.model.apply({"params": params}, method="scale_and_bias")
        (contrastive, metrics), by_output = jax.value_and_grad(self.contrastive, argnums=(0, 1, 2, 3), has_aux=True)(
            *self.join(embeddings), scale, bias
        )
        by_embeddings, by_scale, by_bias = self.split(by_output[:2], parts), by_output[2], by_output[3]

        def surrogate(params: Any, batch: Batch, keys_B: jax.Array, by_embeddings: Any) -> tuple[jax.Array, Metrics]:
            """A function whose gradient by the parameters is this part's share of the loss's."""
            outputs, packed = self.outputs(params, batch, keys_B, captions=True)
            caption, caption_parts = self.caption(outputs, batch, counted)
            sent = (outputs.image_BxE * by_embeddings[0]).sum() + (outputs.texts_BxVxE * by_embeddings[1]).sum()
            sent += (outputs.scale * by_scale + outputs.bias * by_bias) / parts
            return sent + caption, caption_parts | {name: value / parts for name, value in packed.items()}

        def gradients_of(part: Any) -> tuple[Any, Metrics]:
            (_, metrics), gradients = jax.value_and_grad(surrogate, has_aux=True)(params, *part)
            return gradients, metrics

        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradients_of(part)), None

        all_parts = (batches, keys, by_embeddings)
        shapes = jax.eval_shape(gradients_of, jax.tree.map(lambda x: x[0], all_parts))
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        (gradients, summed), _ = jax.lax.scan(add, zeros, all_parts)
        loss = contrastive + self.config.objective.caption_weight * summed.get("loss/caption", 0.0)
        return gradients, {"loss": loss} | metrics | summed | {"logit_scale": scale}

    def split(self, tree: Any, parts: int) -> Any:
        """(B, …) -> (parts, B / parts, …): of every device's rows the first n-th, the second, …; nothing moves."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]

        def split_one(x: jax.Array) -> jax.Array:
            x = x.reshape(shards, parts, -1, *x.shape[1:]).swapaxes(0, 1)
            return x.reshape(parts, -1, *x.shape[3:])

        return jax.tree.map(split_one, tree)

    def join(self, tree: Any) -> Any:
        """The inverse of `split`."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]

        def join_one(x: jax.Array) -> jax.Array:
            x = x.reshape(x.shape[0], shards, -1, *x.shape[2:]).swapaxes(0, 1)
            return x.reshape(-1, *x.shape[3:])

        return jax.tree.map(join_one, tree)


def train_step(
    config: Config,
    model: Clips,
    special: SpecialTokens,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, Metrics]:
    """One update.

    If the loss, a gradient or a parameter is not finite, parameters and optimizer state stay as they were and the
    metric "finite" is 0, and the loop stops the run. What AdamW makes of finite gradients, parameters and moments is
    finite, so it is not looked at; an update that overflows by an absurd learning rate shows in the next step.

    Returns:
      the next state; float32 () metrics: the loss parts, "text/fill" and "text/cut" if texts are packed,
      "gradient_norm", "parameter_norm", "learning_rate", "logit_scale", "finite". Both norms are of the parameters that
      the loss was computed with.
    """
    keys_B = masks.example_keys(jax.random.key(config.seed), state.step, config.batch_size)
    with jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh):
        gradients, metrics = Step(config, model, special, mesh).gradients(state.params, batch, keys_B)
    # The norm of the new parameters would be computed by making them a second time: a tenth of the time to compile.
    gradient_norm, parameter_norm = optax.tree.norm(gradients), optax.tree.norm(state.params)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(gradient_norm) & jnp.isfinite(parameter_norm)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    if "logit_scale" in params:
        params["logit_scale"] = jnp.minimum(params["logit_scale"], jnp.log(config.objective.scale_max))
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
