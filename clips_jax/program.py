"""A config made concrete: tokenizer, mesh, model, optimizer and where every array lives. Nothing compiles here."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from clips_jax.config import Config, ConfigError
from clips_jax.data.tokenizer import SentencePieceTokenizer
from clips_jax.data.triples import tokenizer_path
from clips_jax.models.clips import Clips
from clips_jax.optimizer import make_optimizer
from clips_jax.sharding import make_mesh, parameter_shardings
from clips_jax.train_step import TrainState, init_params, init_state


@dataclasses.dataclass(frozen=True)
class Program:
    """What training and evaluation share.

    Attributes:
      state_shapes: a `TrainState` of ShapeDtypeStructs that carry their shardings.
    """

    config: Config
    tokenizer: SentencePieceTokenizer
    mesh: Mesh
    model: Clips
    optimizer: optax.GradientTransformation
    state_shapes: TrainState

    @property
    def shardings(self) -> TrainState:
        """A `TrainState` of shardings."""
        return jax.tree.map(lambda shape: shape.sharding, self.state_shapes)

    def initial_state(self) -> TrainState:
        """A fresh state, each array created where it will live."""
        # Any process can compute it from the seed; under jit nothing is whole on one device.
        init = jax.jit(
            lambda key: init_state(self.config, self.model, self.optimizer, key), out_shardings=self.shardings
        )
        return init(jax.random.key(self.config.seed))

    def tokenizer_identity(self) -> dict[str, Any]:
        """What a checkpoint remembers of the tokenizer: kind, hash, size and the lengths it is used with."""
        texts = {f"length/{name}": text.length for name, text in self.config.data.texts.items()}
        return self.tokenizer.identity() | texts | {"length/text_tower": self.config.model.text.length}


def make_program(config: Config, devices: Sequence[Any] | None = None) -> Program:
    """Builds it; raises `ConfigError` for whatever does not fit these devices or this tokenizer."""
    mesh = make_mesh(config, devices)
    tokenizer = SentencePieceTokenizer(tokenizer_path(config.data, config.tokenizer))
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise ConfigError(
            f"model.text.vocab_size: {config.model.text.vocab_size} is smaller than the tokenizer's "
            f"{tokenizer.vocab_size}; use at least that."
        )
    model = Clips(config.model, config.objective, tokenizer.special.bos)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    optimizer = make_optimizer(config, jax.eval_shape(lambda k: init_params(config, model, k), key))
    shapes = jax.eval_shape(lambda k: init_state(config, model, optimizer, k), key)
    shardings = parameter_shardings(shapes, mesh)
    shapes = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )
    return Program(config, tokenizer, mesh, model, optimizer, shapes)
