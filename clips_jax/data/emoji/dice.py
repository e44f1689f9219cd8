"""Deterministic choices: a stream of numbers that depends on a text key and on nothing else.

`random.Random` promises the same `random()` for ever, but not the same `choice` or `shuffle`; the built-in data
must be the same bit for bit on every machine and Python version, so the few operations it needs are written out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A stream of choices seeded by a text: block *n* is SHA-256 of (key, n), read as four 64-bit numbers."""

    def __init__(self, key: str) -> None:
        """Starts the stream of `key`."""
        self._key = key
        self._block = 0
        self._numbers: list[int] = []

    def _next(self) -> int:
        if not self._numbers:
            digest = hashlib.sha256(f"{self._key}\0{self._block}".encode()).digest()
            self._numbers = [int.from_bytes(digest[i : i + 8], "big") for i in range(0, 32, 8)]
            self._block += 1
        return self._numbers.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * (self._next() >> 11) / 2**53

    def below(self, n: int) -> int:
        """An integer in [0, n); the bias of the modulus is below n / 2**64."""
        return self._next() % n

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One item."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in another order (Fisher and Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """At most `n` different positions' items, in random order."""
        return self.shuffled(items)[:n]
