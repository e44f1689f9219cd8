"""From concepts and drawings to records: which drawing goes into which split, and what a record holds."""

from __future__ import annotations

import hashlib
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

Drawn = tuple[Concept, np.ndarray]


def png(picture: np.ndarray) -> bytes:
    """Encodes RGB uint8 (height, width, 3)."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=4)
    return out.getvalue()


def record(
    concept: Concept, drawing: np.ndarray, measured: Measurements, set_name: str, variant: int
) -> dict[str, Any]:
    """One record; a function of its arguments only. The drawing is RGBA uint8 (72, 72, 4)."""
    key = f"{set_name}/{concept.code}/{variant}"
    background = backgrounds.choose(drawing, key)
    return {
        "id": key,
        "image": io.BytesIO(png(backgrounds.compose(drawing, background))),
        "alt_text": alt_text.write(concept, key),
        "recaption": recaption.write(concept, measured, background, key),
        "name": concept.name,
        "aliases": list(concept.aliases),
        "group": concept.group,
        "subgroup": concept.subgroup,
        "drawing_set": set_name,
        "is_flag": concept.is_flag,
    }


def training_records(set_names: Iterable[str], concepts: Sequence[Concept]) -> Iterator[dict[str, Any]]:
    """Records of every drawing of every trained concept in the sets, `VARIANTS` each."""
    trained = [c for c in concepts if not c.unseen]
    for set_name in set_names:
        for concept, drawing in drawings(set_name, trained):
            measured = measure(drawing)
            for variant in range(VARIANTS):
                yield record(concept, drawing, measured, set_name, variant)


def without_duplicates(drawn: Iterable[Drawn]) -> list[Drawn]:
    """Keeps one concept for each drawing and each name, so that every test query has one right answer.

    Some concepts share one drawing, such as the flags of Norway and of Bouvet Island. A trained concept stays rather
    than an unseen one (whose picture would be known), then the one that became an emoji earlier, then the shorter
    name. The order of the input is kept.

    Args:
      drawn: (concept, drawing RGBA uint8 (72, 72, 4)) of one set.
    """
    drawn = list(drawn)
    hashes: set[bytes] = set()
    names: set[str] = set()
    kept: set[str] = set()
    for concept, drawing in sorted(drawn, key=lambda pair: (pair[0].unseen, pair[0].rank)):
        digest, name = hashlib.sha256(drawing.tobytes()).digest(), concept.name.lower()
        if digest not in hashes and name not in names:
            kept.add(concept.code)
        hashes.add(digest)
        names.add(name)
    return [pair for pair in drawn if pair[0].code in kept]


def test_records(set_name: str, held_out: Sequence[Drawn], unseen: bool) -> Iterator[dict[str, Any]]:
    """Records of the held-out set: of the concepts left out of training (`unseen`), or of those trained on."""
    for concept, drawing in held_out:
        if concept.unseen == unseen:
            yield record(concept, drawing, measure(drawing), set_name, 0)
