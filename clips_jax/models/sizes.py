"""Widths and depths by name, from the released configs (table in docs/method.md); nano and micro are ours."""

import dataclasses

from clips_jax.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """Shapes of the three stacks and the joint width."""

    image: TransformerConfig
    text: TransformerConfig
    decoder: TransformerConfig
    joint_dim: int


def _stack(width: int, depth: int, heads: int, mlp_dim: int | None = None, gelu: str = "tanh") -> TransformerConfig:
    return TransformerConfig(width, depth, heads, mlp_dim or 4 * width, gelu)  # type: ignore[arg-type]


# The released weights use exact GELU in the image tower and tanh in the text tower.
SIZES = {
    # Micro sizes for the built-in data on a CPU: chosen by measuring, see docs/experiments.md.
    "nano": Size(_stack(32, 2, 2, gelu="exact"), _stack(32, 1, 2), _stack(32, 1, 2), 32),
    "micro": Size(_stack(96, 1, 3, gelu="exact"), _stack(96, 1, 3), _stack(96, 1, 3), 128),
    "Ti": Size(_stack(192, 12, 3, 768, "exact"), _stack(192, 12, 3), _stack(192, 12, 3), 192),
    "S": Size(_stack(384, 12, 6, 1536, "exact"), _stack(384, 12, 6), _stack(384, 12, 6), 384),
    "B": Size(_stack(768, 12, 12, 3072, "exact"), _stack(512, 12, 8), _stack(512, 12, 8), 512),
    "L": Size(_stack(1024, 24, 16, 4096, "exact"), _stack(768, 12, 12), _stack(768, 12, 12), 768),
    # Joint width 1152: OpenVision config. Text MLP 4304 and the decoder as the text tower: assumption.
    "So400m": Size(_stack(1152, 27, 16, 4304, "exact"), _stack(1152, 27, 16, 4304), _stack(1152, 27, 16, 4304), 1152),
    "H": Size(_stack(1280, 32, 16, 5120, "exact"), _stack(1024, 24, 16), _stack(1024, 24, 16), 1024),
}
