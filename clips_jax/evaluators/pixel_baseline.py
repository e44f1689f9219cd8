"""What needs no learning: the training picture with the most similar pixels, on 12 x 12 thumbnails.

The share of test pictures whose nearest training picture shows the same thing (same `name`). It cannot take a text, so
it is not retrieval; it says how far plain likeness of the drawings goes.
"""

from collections.abc import Sequence

import numpy as np

from clips_jax.config import Config, ConfigError
from clips_jax.data.images import BadImage, decode_squashed
from clips_jax.data.triples import Records

THUMBNAIL = 12
_NAME = "name"
# Distances held at once (float64: 32 MB), and records read at once.
_DISTANCES = 1 << 22
_READ = 256


def nearest(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Index of the candidate with the smallest Euclidean distance, the first of equals.

    Args:
      queries: float64 (Q, D), whole numbers of at most 255, so that the products below are exact.
      candidates: float64 (C, D), likewise.

    Returns:
      int64 (Q,).
    """
    found = np.empty(len(queries), np.int64)
    lengths = np.sum(candidates**2, axis=1)
    step = max(1, _DISTANCES // len(candidates))
    for start in range(0, len(queries), step):
        # |q - c|^2 without |q|^2, which is the same for every candidate.
        distances = lengths - 2 * queries[start : start + step] @ candidates.T
        found[start : start + step] = np.argmin(distances, axis=1)
    return found


def evaluate(config: Config) -> dict[str, float]:
    """The baseline for the split `config.evaluation.pixel_baseline`; independent of the model.

    Returns:
      "same_name" (percent), "n_images", "bad_images" (test pictures that cannot be read: they count as wrong).
    """
    data = config.data
    train_thumbnails, train_names = _thumbnails(Records(data.dataset, data.split, data.data_dir))
    test_thumbnails, test_names = _thumbnails(Records(data.dataset, config.evaluation.pixel_baseline, data.data_dir))
    readable = [name is not None for name in train_names]
    names = np.asarray(train_names, object)[readable]
    right = names[nearest(test_thumbnails, train_thumbnails[readable])] == np.asarray(test_names, object)
    return {
        "same_name": 100 * float(np.mean(right)),
        "n_images": len(test_names),
        "bad_images": test_names.count(None),
    }


def _thumbnails(records: Records) -> tuple[np.ndarray, list[str | None]]:
    """Pixels, float64 (N, THUMBNAIL * THUMBNAIL * 3), and names; None where the picture cannot be read."""
    pixels = np.zeros((len(records), THUMBNAIL * THUMBNAIL * 3))
    names: list[str | None] = []
    for start in range(0, len(records), _READ):
        for record in records.read(_window(start, len(records))):
            if _NAME not in record:
                raise ConfigError(f"evaluation.pixel_baseline: needs records with a {_NAME!r}; got {sorted(record)}.")
            try:
                pixels[len(names)] = decode_squashed(record["image"], THUMBNAIL).reshape(-1)
                names.append(record[_NAME])
            except BadImage:
                names.append(None)
    return pixels, names


def _window(start: int, end: int) -> Sequence[int]:
    return range(start, min(start + _READ, end))
