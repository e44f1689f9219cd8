"""What the pixels of a drawing say: colours, size, aspect, fill and symmetry."""

from __future__ import annotations

import dataclasses

import numpy as np

from clips_jax.data.emoji import colours
from clips_jax.data.emoji.drawings import alpha_box


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Measured on a normalised drawing (72 x 72 pixels).

    Attributes:
      colours: (name, share of the drawing's pixels in 0-1), largest first.
      width: pixels of the drawing's box.
      height: pixels of the drawing's box.
      fill: share of the box that the drawing covers, 0-1.
      mirror_left_right: likeness of the drawing and its mirror image, 0-1; 1 is exact symmetry.
      mirror_top_bottom: the same, upside down.
      outline_only: whether it is drawn in black lines without any colour.
    """

    colours: tuple[tuple[str, float], ...]
    width: int
    height: int
    fill: float
    mirror_left_right: float
    mirror_top_bottom: float
    outline_only: bool

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """1 less the mean difference of two pictures (height, width, 4) in 0-1, over the area that either covers."""
    covered = np.maximum(a[..., 3], b[..., 3]) > 0
    if not covered.any():
        return 1.0
    difference = np.abs(a - b).max(axis=-1)[covered].mean()
    return 1.0 - float(difference)


def measure(drawing: np.ndarray) -> Measurements:
    """Measures a drawing, RGBA uint8 (height, width, 4)."""
    top, bottom, left, right = alpha_box(drawing[..., 3])
    box = drawing[top:bottom, left:right].astype(np.float64) / 255.0
    box[..., :3] *= box[..., 3:]  # what is transparent has no colour
    named = tuple(colours.shares(drawing))
    return Measurements(
        colours=named,
        width=right - left,
        height=bottom - top,
        fill=float((box[..., 3] >= 0.5).mean()),
        mirror_left_right=_likeness(box, box[:, ::-1]),
        mirror_top_bottom=_likeness(box, box[::-1]),
        outline_only=bool(named) and named[0][0] == "black" and named[0][1] > 0.9,
    )
