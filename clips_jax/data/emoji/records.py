"""From concepts and drawings to records: which drawing goes into which split, and what a record holds."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clips_jax.data.emoji import alt_text, backgrounds, recaption
from clips_jax.data.emoji.concepts import Concept
from clips_jax.data.emoji.drawings import drawings
from clips_jax.data.emoji.measure import Measurements, measure

# Each training drawing comes on this many backgrounds, each with its own AltText and recaption.
VARIANTS = 2

# Root mean square difference, in 0-255, below which two drawings count as one. Measured on Noto Color: pairs that look
# the same differ by less than 1, all others by more than 8.
SAME_DRAWING = 4.0

Drawn = tuple[Concept, np.ndarray]


def png(picture: np.ndarray) -> bytes:
    """Encodes RGB uint8 (height, width, 3)."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=4)
    return out.getvalue()


def record(
    concept: Concept,
    drawing: np.ndarray,
    measured: Measurements,
    set_name: str,
    variant: int,
    noise: float = 0.0,
    opening_first: float = recaption.OPENING_FIRST,
) -> dict[str, Any]:
    """One record; a function of its arguments only.

    Args:
      concept: what is drawn.
      drawing: RGBA uint8 (72, 72, 4).
      measured: on the drawing.
      set_name: of the drawing's set.
      variant: 0 to `VARIANTS` - 1.
      noise, opening_first: of `alt_text.write`, `recaption.write`.
    """
    key = f"{set_name}/{concept.code}/{variant}"
    background = backgrounds.choose(drawing, key)
    return {
        "id": key,
        "image": io.BytesIO(png(backgrounds.compose(drawing, background))),
        "alt_text": alt_text.write(concept, key, noise),
        "recaption": recaption.write(concept, measured, background, key, opening_first),
        "name": concept.name,
        "aliases": list(concept.aliases),
        "group": concept.group,
        "subgroup": concept.subgroup,
        "drawing_set": set_name,
        "is_flag": concept.is_flag,
    }


def training_records(
    set_names: Iterable[str],
    concepts: Sequence[Concept],
    noise: float = 0.0,
    opening_first: float = recaption.OPENING_FIRST,
) -> Iterator[dict[str, Any]]:
    """Records of every drawing of every trained concept in the sets, `VARIANTS` each; settings as in `record`."""
    trained = [c for c in concepts if not c.unseen]
    for set_name in set_names:
        for concept, drawing in drawings(set_name, trained):
            measured = measure(drawing)
            for variant in range(VARIANTS):
                yield record(concept, drawing, measured, set_name, variant, noise, opening_first)


def _same(drawings_rgba: np.ndarray) -> np.ndarray:
    """Which drawings, uint8 (n, 72, 72, 4), look the same: bool (n, n), from root mean square differences."""
    flat = drawings_rgba[:, ::4, ::4].reshape(len(drawings_rgba), -1).astype(np.float64)
    squares = (flat**2).mean(axis=1)
    return squares[:, None] + squares - 2 / flat.shape[1] * flat @ flat.T < SAME_DRAWING**2


def without_duplicates(drawn: Iterable[Drawn]) -> list[Drawn]:
    """Keeps one concept for each drawing and each name, so that every test query has one right answer.

    Some concepts share one drawing, such as the flags of Norway and of Bouvet Island, or nearly, such as two of the
    family silhouettes. A trained concept stays rather than an unseen one (whose picture would be known), then the one
    that became an emoji earlier, then the shorter name. The order of the input is kept.

    Args:
      drawn: (concept, drawing RGBA uint8 (72, 72, 4)) of one set.
    """
    drawn = list(drawn)
    if not drawn:
        return []
    same = _same(np.stack([drawing for _, drawing in drawn]))
    names: set[str] = set()
    kept: list[int] = []
    for i in sorted(range(len(drawn)), key=lambda i: (drawn[i][0].unseen, drawn[i][0].rank)):
        name = drawn[i][0].name.lower()
        if name not in names and not same[i, kept].any():
            kept.append(i)
            names.add(name)
    return [drawn[i] for i in sorted(kept)]


def test_records(set_name: str, held_out: Sequence[Drawn], unseen: bool) -> Iterator[dict[str, Any]]:
    """Records of the held-out set: of the concepts left out of training (`unseen`), or of those trained on."""
    for concept, drawing in held_out:
        if concept.unseen == unseen:
            yield record(concept, drawing, measure(drawing), set_name, 0)
