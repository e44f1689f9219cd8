"""The typed, frozen form of a config: every setting a run has, and what it means.

`configs/*.py` return an `ml_collections.ConfigDict`, because that is what people override and sweep on the command
line. `parse.from_config_dict` turns it into these dataclasses, `check` checks them before anything
compiles; from there on nothing in the package sees a dict.
"""

import dataclasses
import typing
from typing import Any

from clips_jax.config.data import DataConfig, SourceConfig, TextConfig, TokenizerConfig
from clips_jax.config.error import ConfigError
from clips_jax.config.evaluation import CaptionLossConfig, ClassificationConfig, EvaluationConfig, RetrievalConfig
from clips_jax.config.model import (
    CaptionerConfig,
    ImageTowerConfig,
    ModelConfig,
    PackingConfig,
    TextTowerConfig,
    TransformerConfig,
)
from clips_jax.config.objective import Mask, ObjectiveConfig, ViewConfig
from clips_jax.config.training import (
    CheckpointConfig,
    InitConfig,
    LimitsConfig,
    MeshConfig,
    NonFiniteConfig,
    OptimizerConfig,
)

__all__ = [
    "CaptionLossConfig",
    "CaptionerConfig",
    "CheckpointConfig",
    "ClassificationConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "ImageTowerConfig",
    "InitConfig",
    "LimitsConfig",
    "Mask",
    "MeshConfig",
    "ModelConfig",
    "NonFiniteConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PackingConfig",
    "RetrievalConfig",
    "SourceConfig",
    "TextConfig",
    "TextTowerConfig",
    "TokenizerConfig",
    "TransformerConfig",
    "ViewConfig",
    "to_dict",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run is a function of.

    Attributes:
      batch_size: examples per step over all devices.
      total_samples: samples seen by the end; the run has `total_samples // batch_size` steps.
      accumulation_steps: parts that a batch is computed in, one after the other, to fit into memory; the gradient
        is that of the whole batch, the contrastive loss included.
      log_every_steps: interval of the progress line and of the logged metrics.
      check_replicas_every_steps: interval at which arrays that several devices hold alike are compared, bit by bit
        (0 = never).
      init_from: where the initial parameters come from (the stages of a recipe): a workdir, whose newest checkpoint is
        taken, or a model folder; "" = none. `init` says what may differ.
    """

    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    batch_size: int
    total_samples: int
    tokenizer: TokenizerConfig = TokenizerConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    accumulation_steps: int = 1
    nonfinite: NonFiniteConfig = NonFiniteConfig()
    limits: LimitsConfig = LimitsConfig()
    log_every_steps: int = 50
    check_replicas_every_steps: int = 1000
    init_from: str = ""
    init: InitConfig = InitConfig()
    seed: int = 0

    @property
    def total_steps(self) -> int:
        return self.total_samples // self.batch_size


def to_dict(config: Config) -> dict[str, Any]:
    """The JSON-ready form; `from_config_dict(to_dict(c)) == c`."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
