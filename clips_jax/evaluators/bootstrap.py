"""Confidence intervals by bootstrap over pictures (Efron 1979): how far a score would move with other pictures.

Legend: N pictures, M metrics, R resamples.
"""

from collections.abc import Mapping

import numpy as np

RESAMPLES = 1000
LEVEL = 95.0  # percent
_SEED = 0
_COUNTS = 1 << 22  # resampled pictures held at once


def intervals(numerators_NxM: np.ndarray, denominators_NxM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of ratios of sums over pictures.

    A picture brings all that is counted for it, so several captions of one picture are not taken for independent. What
    is searched through (the gallery) stays whole. The same N gives the same resamples.

    Args:
      numerators_NxM: per picture what it adds to a metric's numerator, such as hits.
      denominators_NxM: and to its denominator, such as queries.

    Returns:
      low_M, high_M: NaN where a denominator is zero.
    """
    count = len(numerators_NxM)
    generator = np.random.default_rng(_SEED)
    found = []
    step = max(1, min(RESAMPLES, _COUNTS // max(count, 1)))
    for start in range(0, RESAMPLES, step):
        drawn = generator.integers(0, count, (min(step, RESAMPLES - start), count))
        times_RxN = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((times_RxN @ numerators_NxM) / (times_RxN @ denominators_NxM))
    edge = (100 - LEVEL) / 2
    low_M, high_M = np.percentile(np.concatenate(found), [edge, 100 - edge], axis=0)
    return low_M, high_M


def interval_metrics(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], scale: float = 100) -> dict[str, float]:
    """{"NAME/low": …, "NAME/high": …} of metrics by name, each a pair of (N,) numerators and denominators."""
    numerators, denominators = (np.stack([pair[i] for pair in parts.values()], axis=1) for i in (0, 1))
    low_M, high_M = intervals(numerators, denominators)
    found: dict[str, float] = {}
    for name, low, high in zip(parts, low_M, high_M, strict=True):
        found |= {f"{name}/low": scale * float(low), f"{name}/high": scale * float(high)}
    return found
