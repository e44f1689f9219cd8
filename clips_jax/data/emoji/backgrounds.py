"""Lays a drawing on a varied, pale to middling background.

Backgrounds are chosen by a hash of the record's id. They are never dark, because the monochrome set is drawn in
black, and differ visibly from the drawing's own edge where one of a few candidates does.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from clips_jax.data.emoji import colours
from clips_jax.data.emoji.dice import Dice
from clips_jax.data.emoji.drawings import DRAWING_SIZE

# Side of a finished picture in pixels, and the margin around the drawing.
PICTURE_SIZE = 80
MARGIN = (PICTURE_SIZE - DRAWING_SIZE) // 2

# All assumptions: a third of two-colour backgrounds, brightness 185-255 of 255 before saturation is taken off.
_GRADIENT_SHARE = 1 / 3
_BRIGHTNESS = (185.0, 255.0)
_SATURATION = (0.0, 0.38)
_CANDIDATES = 6
# Lab distance from the drawing's edge that is certainly seen (the just noticeable difference is about 2.3).
_ENOUGH_CONTRAST = 25.0


@dataclasses.dataclass(frozen=True)
class Background:
    """A plain or two-colour background.

    Attributes:
      first: sRGB in 0-255.
      second: the colour that a gradient ends in; equal to `first` when plain.
      direction: (x, y) unit vector of the gradient.
    """

    first: tuple[float, float, float]
    second: tuple[float, float, float]
    direction: tuple[float, float]

    @property
    def names(self) -> tuple[str, ...]:
        """One colour name, or two different ones."""
        return tuple(dict.fromkeys((colours.name_of(self.first), colours.name_of(self.second))))


# Unit vectors written out: sin and cos may differ in the last bit between C libraries.
_DIRECTIONS = ((1.0, 0.0), (0.0, 1.0), (0.7071, 0.7071), (0.7071, -0.7071), (-1.0, 0.0), (0.0, -1.0))


def _colour(dice: Dice) -> tuple[float, float, float]:
    """A pale to middling sRGB colour: hue, saturation and brightness drawn evenly."""
    hue, saturation, value = dice.uniform(0, 6), dice.uniform(*_SATURATION), dice.uniform(*_BRIGHTNESS)

    def channel(n: int) -> float:
        k = (n + hue) % 6
        return value - value * saturation * max(0.0, min(k, 4 - k, 1.0))

    return channel(5), channel(3), channel(1)


def _candidate(dice: Dice) -> Background:
    first = _colour(dice)
    gradient = dice.chance(_GRADIENT_SHARE)
    return Background(first, _colour(dice) if gradient else first, dice.pick(_DIRECTIONS))


def _edge_colour(drawing: np.ndarray) -> np.ndarray:
    """Mean sRGB (3,) of the drawing's opaque pixels that have a transparent neighbour or lie on the border."""
    opaque = np.pad(drawing[..., 3] >= 128, 1)
    inner = opaque[:-2, 1:-1] & opaque[2:, 1:-1] & opaque[1:-1, :-2] & opaque[1:-1, 2:]
    edge = opaque[1:-1, 1:-1] & ~inner
    return drawing[edge][:, :3].mean(axis=0) if edge.any() else np.zeros(3)


def choose(drawing: np.ndarray, key: str) -> Background:
    """The background for a drawing, RGBA uint8 (72, 72, 4), by a text key."""
    dice = Dice(f"background:{key}")
    candidates = [_candidate(dice) for _ in range(_CANDIDATES)]
    means = [(np.array(c.first) + np.array(c.second)) / 2 for c in candidates]
    points_lab = colours.lab(np.stack([_edge_colour(drawing), *means]))
    contrasts = np.linalg.norm(points_lab[1:] - points_lab[0], axis=-1)
    enough = np.flatnonzero(contrasts >= _ENOUGH_CONTRAST)
    return candidates[int(enough[0]) if len(enough) else int(contrasts.argmax())]


def paint(background: Background) -> np.ndarray:
    """RGB uint8 (80, 80, 3)."""
    if background.first == background.second:
        colour = np.floor(np.array(background.first) + 0.5).astype(np.uint8)
        return np.tile(colour, (PICTURE_SIZE, PICTURE_SIZE, 1))
    along = np.linspace(-0.5, 0.5, PICTURE_SIZE)
    x, y = background.direction
    position = np.clip(0.5 + x * along[None, :] + y * along[:, None], 0.0, 1.0)[..., None]
    mixed = np.array(background.first) * (1 - position) + np.array(background.second) * position
    return np.floor(mixed + 0.5).astype(np.uint8)


def compose(drawing: np.ndarray, background: Background) -> np.ndarray:
    """Lays a drawing, RGBA uint8 (72, 72, 4), on a background: RGB uint8 (80, 80, 3)."""
    picture = Image.fromarray(paint(background)).convert("RGBA")
    picture.alpha_composite(Image.fromarray(drawing), (MARGIN, MARGIN))
    return np.array(picture.convert("RGB"))
