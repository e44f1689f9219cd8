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
      gradient_dtype: in which gradients of matrices are summed over devices where activations are bfloat16; float32
        costs twice the traffic. With float32 activations it is float32 in any case.
    """

    learning_rate: float
    warmup_samples: int
    weight_decay: float = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 0.0
    mu_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_dtype: Literal["float32", "bfloat16"] = "bfloat16"
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
class InitConfig:
    """How the parameters of `init_from` are fitted to this config's model; without it everything must fit exactly.

    Sin-cos image positions are no parameter: they follow the resolution by themselves.

    Attributes:
      text_positions: for another `model.text.length`: "keep" the first rows (a longer table's further ones start
        fresh), or "stretch" as Long-CLIP does (the first 20 kept, the rest interpolated). CLS stays last in both.
      image_positions: learned ones for another grid: "interpolate" (bicubic); also starts them from a sin-cos table.
      patches: for another patch size: "resize" the kernel by pseudo-inverse (FlexiViT).
      allow_missing: regular expressions on whole parameter paths; what they match may start fresh, for instance
        "captioner/.*" from an imported model.
      allow_unused: the same for parameters of `init_from` that this model has no place for.
    """

    text_positions: Literal["strict", "keep", "stretch"] = "strict"
    image_positions: Literal["strict", "interpolate"] = "strict"
    patches: Literal["strict", "resize"] = "strict"
    allow_missing: tuple[str, ...] = ()
    allow_unused: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept.

    Attributes:
      every_steps: save interval.
      keep: the newest n are kept.
      keep_every_steps: and every step that is a multiple of this, for good (0 = none).
      keep_best: and the best by this result of an evaluation, such as
        "retrieval/unseen_drawings/image_to_text/R@1"; each evaluation is then followed by a save. Higher is better,
        but for losses, perplexities and ranks ("" = none).
      on_full_disk: what a save that finds the disk full does to the run. Either way older checkpoints stay whole.
    """

    every_steps: int
    keep: int = 2
    keep_every_steps: int = 0
    keep_best: str = ""
    on_full_disk: Literal["stop", "continue"] = "stop"


@dataclasses.dataclass(frozen=True)
class NonFiniteConfig:
    """What happens when the loss, a gradient or a parameter is not a number. The update itself is always skipped.

    Attributes:
      stop_after: so many skipped updates in a row end the run, or rewind it (assumption: a single bad batch passes, a
        state that went wrong does not recover).
      rewinds: so many times the run goes back to the last checkpoint before the bad steps and on with the data after
        them, before it stops.
    """

    stop_after: int = 3
    rewinds: int = 0


@dataclasses.dataclass(frozen=True)
class LimitsConfig:
    """How long things may take before a process gives up, in seconds; it exits with the code launchers restart on.

    The defaults are assumptions: generous for a pod, and no month lost to a hang.

    Attributes:
      join: until all processes have found each other.
      compile: from then to the end of the first step: restoring and compiling.
      step: one step, loading its batch included.
      save: one checkpoint, from its start until it is whole.
      evaluation: one batch of an evaluation, compiling included; also the final table and report.
      silence: until a process that gives no sign of life is taken for lost.
    """

    join: float = 600.0
    compile: float = 3600.0
    step: float = 900.0
    save: float = 1800.0
    evaluation: float = 1800.0
    silence: float = 90.0
