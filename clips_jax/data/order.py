"""Which record of which data set a position uses: functions of (seed, position), so that nothing has to be remembered.

An epoch of a data set is one seeded permutation of its records; positions walk through it. In a mixture each data set
has its own walk, and a position is first given to one of them: every block of `MIXTURE_BLOCK` positions holds each data
set as often as its weight says, in an order drawn for the block. No buffers, no state: a run of 10^9 records costs what
one of 10^4 does.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from grain.experimental import index_shuffle

# The first entry of a SeedSequence, so that the streams drawn for different purposes are unrelated.
_EPOCH_ORDER, _CROP, _REPLACEMENT, _MIXTURE, _REWRITE = range(5)
# Rounds of index_shuffle's block cipher. With Grain's 4, neighbours in the order of 10^9 records are correlated by 0.55
# (0.43 at 10^6), with 6 by 0.1, with 8 not measurably; a round takes under 1 µs.
_SHUFFLE_ROUNDS = 12
# Up to this many records an epoch's order is a list (4 MB): index_shuffle tries again while it leaves the range, which
# takes 0.5 ms an index for 128 records.
_MOST_LISTED = 2**20
# Positions over which the proportions of a mixture are exact.
MIXTURE_BLOCK = 4096
# Weights are rounded to multiples of 2^-40, so that counts are exact integers at any position.
_WEIGHT_BITS = 40


def epoch_of(position: int, num_records: int) -> int:
    """How many times all records were used before the global `position`."""
    return position // num_records


def record_index(position: int, num_records: int, seed: int, source: int = 0) -> int:
    """The record used at `position` of a data set: each once per epoch, in another order each epoch.

    Args:
      position: counted within this data set.
      num_records: of the data set.
      seed: of the run.
      source: number of the data set within a mixture.
    """
    epoch = epoch_of(position, num_records)
    if num_records <= _MOST_LISTED:
        return int(_listed_order(seed, epoch, source, num_records)[position % num_records])
    order = _epoch_seed(seed, epoch, source)
    return index_shuffle(position % num_records, max_index=num_records - 1, seed=order, rounds=_SHUFFLE_ROUNDS)


@functools.lru_cache(maxsize=8)
def _listed_order(seed: int, epoch: int, source: int, num_records: int) -> np.ndarray:
    entropy = (_EPOCH_ORDER, seed, epoch, source)
    order = np.arange(num_records, dtype=np.int32)
    np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).shuffle(order)
    return order


@functools.lru_cache(maxsize=64)
def _epoch_seed(seed: int, epoch: int, source: int) -> int:
    entropy = (_EPOCH_ORDER, seed, epoch, source) if source else (_EPOCH_ORDER, seed, epoch)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def replacement_index(position: int, num_records: int, seed: int, attempt: int) -> int:
    """The record that stands in at the global `position` when the record there and `attempt` others were bad."""
    state = np.random.SeedSequence((_REPLACEMENT, seed, position, attempt)).generate_state(1, np.uint64)
    return int(state[0] % np.uint64(num_records))


class CropRandomness:
    """Where the randomness of crops comes from: at each position a stream of its own.

    The generator is counter-based (Philox, Salmon et al. 2011): the seed is its key and the position a part of its
    counter, so going to a position sets four numbers. A new generator for each would take six times as long.
    """

    def __init__(self, seed: int):
        """`seed`: of the run."""
        key = np.random.SeedSequence((_CROP, seed)).generate_state(2, np.uint64)
        self._philox = np.random.Philox(key=key)
        self._start: Any = self._philox.state  # nothing drawn yet, nothing buffered
        self._generator = np.random.Generator(self._philox)

    def at(self, position: int) -> np.random.Generator:
        """A generator at the beginning of the stream of the global `position`; the next call moves it."""
        self._start["state"]["counter"][1] = position
        self._philox.state = self._start
        return self._generator


def rewrite_choice(position: int, seed: int, text: int, count: int) -> int:
    """Which of `count` rewrites the global `position` uses for its text number `text`; uniform."""
    state = np.random.SeedSequence((_REWRITE, seed, position, text)).generate_state(1, np.uint64)
    return int(state[0] % np.uint64(count))


class Mixture:
    """Assigns positions to data sets in proportion to weights.

    In block b the first b * MIXTURE_BLOCK positions hold each data set its exact share of times, to within one.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        """`weights`: above 0, relative to each other; each at least 2 / MIXTURE_BLOCK of their sum."""
        shares = np.cumsum(np.asarray(weights, float)) / np.sum(weights)
        # Upper ends of the data sets' intervals of [0, 2^40].
        self._ends = (*(round(float(share) * 2**_WEIGHT_BITS) for share in shares[:-1]), 2**_WEIGHT_BITS)
        self._seed = seed

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For global positions, int64 (N,): the number of the data set and the position within it, int64 (N,) each."""
        if len(self._ends) == 1:
            return np.zeros_like(positions), positions
        sources, own = np.empty_like(positions), np.empty_like(positions)
        blocks = positions // MIXTURE_BLOCK
        for block in np.unique(blocks):
            rows = blocks == block
            places = positions[rows] % MIXTURE_BLOCK
            block_sources, block_own = _mixture_block(self._ends, self._seed, int(block))
            sources[rows], own[rows] = block_sources[places], block_own[places]
        return sources, own


@functools.lru_cache(maxsize=32)
def _mixture_block(ends: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each position in a block, the data set and the position within it."""
    used, used_after = _used(ends, block), _used(ends, block + 1)
    sources = np.repeat(np.arange(len(ends)), used_after - used)
    np.random.Generator(np.random.Philox(np.random.SeedSequence((_MIXTURE, seed, block)))).shuffle(sources)
    own = np.empty_like(sources)
    for source, before in enumerate(used):
        rows = np.flatnonzero(sources == source)
        own[rows] = before + np.arange(len(rows))
    return sources, own


def _used(ends: tuple[int, ...], block: int) -> np.ndarray:
    """How often each data set is used before a block, int64 (data sets,): rounded shares that sum to the positions."""
    bounds = [0, *(block * MIXTURE_BLOCK * end >> _WEIGHT_BITS for end in ends)]
    return np.diff(np.array(bounds, np.int64))
