"""A config made concrete: mesh, model, optimizer and where every array lives. Nothing compiles here."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from clips_jax.batch import Batch, TokenizedText
from clips_jax.config import Config, ConfigError
from clips_jax.data.open_tokenizer import Tokenizer, open_tokenizer
from clips_jax.data.tokenizer import SpecialTokens
from clips_jax.data.triples import tokenizer_path
from clips_jax.models.clips import Clips
from clips_jax.optimizer import make_optimizer
from clips_jax.sharding import batch_sharding, make_mesh, parameter_shardings, replicated
from clips_jax.train_step import TrainState, init_params, init_state, train_step


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """All that the step is made of: it needs no data set, no tokenizer file and no device that is really there.

    Attributes:
      state_shapes: a `TrainState` of ShapeDtypeStructs that carry their shardings.
    """

    config: Config
    mesh: Mesh | AbstractMesh
    special: SpecialTokens
    model: Clips
    optimizer: optax.GradientTransformation
    state_shapes: TrainState

    @property
    def shardings(self) -> TrainState:
        """A `TrainState` of shardings."""
        return jax.tree.map(lambda shape: shape.sharding, self.state_shapes)

    @property
    def batch_shapes(self) -> Batch:
        """A `Batch` of ShapeDtypeStructs that carry their shardings: what one step is given."""
        config, rows = self.config, batch_sharding(self.mesh)

        def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=rows)

        size = config.model.image.image_size
        texts = {
            name: TokenizedText(array(jnp.int32, text.length), array(jnp.int32, text.length))
            for name, text in config.data.texts.items()
        }
        return Batch(array(jnp.uint8, size, size, 3), texts)

    def step(self) -> Any:
        """The jitted step: (state, batch) -> (state, metrics); the state is donated, the metrics are replicated."""
        return jax.jit(
            functools.partial(train_step, self.config, self.model, self.special, self.optimizer, self.mesh),
            donate_argnums=0,
            out_shardings=(self.shardings, replicated(self.mesh)),
        )

    def initial_state(self) -> TrainState:
        """A fresh state, each array created where it will live."""
        # Any process can compute it from the seed; under jit nothing is whole on one device.
        init = jax.jit(
            lambda key: init_state(self.config, self.model, self.optimizer, key), out_shardings=self.shardings
        )
        return init(jax.random.key(self.config.seed))


@dataclasses.dataclass(frozen=True)
class Program(StepProgram):
    """What training and evaluation share: the step, and the tokenizer of its texts."""

    tokenizer: Tokenizer
    mesh: Mesh

    def tokenizer_identity(self) -> dict[str, Any]:
        """What a checkpoint remembers of the tokenizer: kind, hash, size and the lengths it is used with."""
        texts = {f"length/{name}": text.length for name, text in self.config.data.texts.items()}
        return self.tokenizer.identity() | texts | {"length/text_tower": self.config.model.text.length}


def make_step_program(config: Config, mesh: Mesh | AbstractMesh, special: SpecialTokens) -> StepProgram:
    """Builds it; raises `ConfigError` for a parameter that does not fit the mesh."""
    model = Clips(config.model, config.objective, special.bos)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    optimizer = make_optimizer(config, jax.eval_shape(lambda k: init_params(config, model, k), key))
    shapes = jax.eval_shape(lambda k: init_state(config, model, optimizer, k), key)
    shardings = parameter_shardings(shapes, mesh)
    shapes = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )
    return StepProgram(config, mesh, special, model, optimizer, shapes)


def make_program(config: Config, devices: Sequence[Any] | None = None) -> Program:
    """Builds it; raises `ConfigError` for whatever does not fit these devices or this tokenizer."""
    mesh = make_mesh(config, devices)
    tokenizer = open_tokenizer(tokenizer_path(config.data, config.tokenizer))
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise ConfigError(
            f"model.text.vocab_size: {config.model.text.vocab_size} is smaller than the tokenizer's "
            f"{tokenizer.vocab_size}; use at least that."
        )
    step = make_step_program(config, mesh, tokenizer.special)
    return Program(**{field.name: getattr(step, field.name) for field in dataclasses.fields(step)}, tokenizer=tokenizer)
