"""Records that cannot be used while training: counted over all processes, and when they are too many the run stops."""

import math
from collections.abc import Callable, Mapping
from typing import TypedDict

import numpy as np
from absl import logging

# Why a record was replaced: its bytes cannot be read or parsed; its picture cannot be decoded, or is too large.
REASONS = ("record", "image")
# Chance may exceed the allowed fraction by this many standard deviations (of a binomial count) before a run stops.
_SIGMAS = 3.0
_SHOWN = 5  # examples that go to the log


class TooManyBadRecords(RuntimeError):
    """More than `data.max_bad_fraction` of the records cannot be used."""


class Replaced(TypedDict):
    """What was replaced in one batch on this process. Keys: how many; how many by reason; some of them, described."""

    bad_records: int
    by_reason: dict[str, int]
    examples: list[str]


class BadRecordCounter:
    """Sums what was replaced over steps and processes, and decides whether the run may go on.

    The decision is taken on global counts, so all processes take it at the same step: a record that rots does not stop
    one process and leave the others waiting. It is taken over the steps since the last count (a data set that goes bad
    now) and over all steps since the start (one that always was a little too bad).
    """

    def __init__(self, max_fraction: float, totals: Mapping[str, int] | None = None):
        """`totals`: by metric name, from a checkpoint."""
        self._max_fraction = max_fraction
        self._totals = {reason: int((totals or {}).get(f"bad_records/{reason}", 0)) for reason in REASONS}
        self._here = np.zeros(len(REASONS), np.int64)  # on this process, since the last count
        self._bad = self._records = 0  # since the start of this process
        self._examples: list[str] = []

    def add(self, replaced: Replaced) -> None:
        """One batch of this process."""
        self._here += [replaced["by_reason"].get(reason, 0) for reason in REASONS]
        for example in replaced["examples"][: _SHOWN - len(self._examples)]:
            logging.warning("bad record, another stands in: %s", example)
            self._examples.append(example)

    def count(self, records: int, sum_over_processes: Callable[[np.ndarray], np.ndarray]) -> dict[str, int]:
        """Totals since the run began, over all processes: "bad_records" and "bad_records/REASON".

        All processes call it together.

        Args:
          records: used by all processes since the last call.
          sum_over_processes: of an int64 array.

        Raises:
          TooManyBadRecords: on all processes.
        """
        new = np.asarray(sum_over_processes(self._here))
        self._here = np.zeros(len(REASONS), np.int64)
        for reason, count in zip(REASONS, new.tolist(), strict=True):
            self._totals[reason] += count
        bad = int(new.sum())
        self._bad, self._records = self._bad + bad, self._records + records
        for found, among in ((bad, records), (self._bad, self._records)):
            if found > allowed(among, self._max_fraction):
                counts = ", ".join(f"{count} {reason}" for reason, count in self._totals.items() if count)
                example = f"For example {self._examples[0]}." if self._examples else "See the other processes' logs."
                raise TooManyBadRecords(
                    f"{found} of {among} records could not be used and were replaced, more than "
                    f"data.max_bad_fraction = {self._max_fraction} allows ({counts} since the run began). {example}"
                )
        return self.totals()

    def totals(self) -> dict[str, int]:
        """What the last call of `count` returned; goes into checkpoints."""
        by_reason = {f"bad_records/{reason}": count for reason, count in self._totals.items()}
        return {"bad_records": sum(self._totals.values()), **by_reason}


def allowed(records: int, fraction: float) -> int:
    """How many of `records` may be bad before there are more than `fraction` of them, beyond chance."""
    mean = records * fraction
    return math.ceil(mean + _SIGMAS * math.sqrt(mean * (1 - fraction)))
