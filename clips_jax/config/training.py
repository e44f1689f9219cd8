"""Settings of the run: optimizer, mesh, checkpoints."""

import dataclasses
from typing import Literal

from clips_jax.config.error import ConfigError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to zero.

    Attributes:
      warmup_samples: samples seen during warm-up.
      clip_norm: global gradient norm is clipped here; 0 turns clipping off (the recipe has none).
      freeze: regular expressions on parameter paths; what they match is not updated.
      mu_dtype: dtype of the first moment.
    """

    learning_rate: float
    warmup_samples: int
    weight_decay: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 0.0
    mu_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    freeze: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; -1 for one axis means all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def resolve(self, device_count: int) -> dict[str, int]:
        """Sizes by axis name; raises `ConfigError` if they do not multiply to `device_count`."""
        sizes = dataclasses.asdict(self)
        unknown = [axis for axis, size in sizes.items() if size == -1]
        wrong = [axis for axis, size in sizes.items() if size < 1 and size != -1]
        if wrong:
            raise ConfigError(f"mesh.{wrong[0]}: {sizes[wrong[0]]} is not a number of devices; use 1 or more, or -1.")
        known = 1
        for size in sizes.values():
            known *= size if size != -1 else 1
        if len(unknown) > 1:
            raise ConfigError(f"mesh: only one axis can be -1, but {', '.join(unknown)} are.")
        if unknown and device_count % known == 0:
            sizes[unknown[0]] = device_count // known
        elif unknown or known != device_count:
            raise ConfigError(
                f"mesh: {sizes} needs a multiple of {known} devices and there are {device_count}; "
                "change mesh.data, mesh.fsdp or mesh.tensor so that they multiply to it."
            )
        return sizes


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Attributes: every_steps: save interval; keep: the newest n are kept; keep_every_steps: and every step that
    is a multiple of this, for good (0 = none)."""

    every_steps: int
    keep: int = 2
    keep_every_steps: int = 0
