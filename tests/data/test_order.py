from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips_jax.data.order import MIXTURE_BLOCK, CropRandomness, Mixture, _mixture_block, record_index


def test_a_mixture_gives_every_data_set_its_share():
    weights = (0.7, 0.2, 0.0995, 0.0005)
    mixture = Mixture(weights, seed=3)
    sources, own = mixture.locate(np.arange(50 * MIXTURE_BLOCK))
    for source, weight in enumerate(weights):
        # Each data set is walked through in order, nothing twice and nothing left out.
        np.testing.assert_array_equal(own[sources == source], np.arange((sources == source).sum()))
        for end in range(MIXTURE_BLOCK, len(sources) + 1, MIXTURE_BLOCK):
            assert abs((sources[:end] == source).sum() - weight * end) <= 1


def reference(weights, seed, count):
    """The same by walking through all positions from the first: slow, and with nothing to look up."""
    used, found = Counter(), []
    for block in range(-(-count // MIXTURE_BLOCK)):
        order = _mixture_block(Mixture(weights, seed)._ends, seed, block)[0]
        for source in order.tolist():
            found.append((source, used[source]))
            used[source] += 1
    return found[:count]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.integers(0, 2**31), st.lists(st.integers(0, 20_000)))
def test_a_position_can_be_looked_up_anywhere(weights, seed, positions):
    expected = reference(weights, seed, 20_001)
    positions = np.array(positions, np.int64)
    sources, own = Mixture(weights, seed).locate(positions)
    assert list(zip(sources.tolist(), own.tolist(), strict=True)) == [expected[position] for position in positions]


def test_mixtures_of_far_positions_are_exact():
    far = 3 * 10**13 // MIXTURE_BLOCK * MIXTURE_BLOCK
    _, own = Mixture((0.3, 0.7), 0).locate(np.array([far]))
    sources, _ = Mixture((0.3, 0.7), 0).locate(np.array([far]))
    assert abs(own[0] - (0.3, 0.7)[sources[0]] * far) < 100  # 2^-40 of 3e13 positions


def test_blocks_and_seeds_differ():
    orders = {
        tuple(Mixture((1, 1), seed).locate(np.arange(64) + b * MIXTURE_BLOCK)[0]) for seed in (0, 1) for b in (0, 1)
    }
    assert len(orders) == 4


def test_data_sets_of_a_mixture_walk_in_orders_of_their_own():
    walks = {tuple(record_index(p, 1000, 0, source) for p in range(20)) for source in range(3)}
    assert len(walks) == 3


@pytest.mark.parametrize("num_records", [1000, 10**6, 10**9])
def test_the_order_is_well_shuffled(num_records):
    """Neighbours in the order are unrelated, and every window of positions covers the data set evenly."""
    count = 8000 if num_records > 1000 else 1000
    indices = np.array([record_index(p, num_records, 7) for p in range(count)], float) / num_records
    correlation = np.corrcoef(indices[:-1], indices[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(count)
    steps = np.abs(np.diff(indices))
    assert abs(steps.mean() - 1 / 3) < 0.05  # two independent uniform numbers are 1/3 apart on average
    for window in np.split(indices[: count // 8 * 8], 8):
        counts = np.histogram(window, 10, (0, 1))[0]
        expected = len(window) / 10
        assert ((counts - expected) ** 2 / expected).sum() < 33.7  # chi-square, 9 degrees of freedom, p = 0.0001


def test_crops_are_drawn_by_position_alone():
    draw = CropRandomness(5)
    in_order = [draw.at(position).random(4).tolist() for position in range(200)]
    far = 10**15
    backwards = CropRandomness(5)
    for position in (far, *reversed(range(200))):
        generator = backwards.at(position)
        generator.random(3)  # what was drawn before leaves nothing behind, not even half a word
        generator.integers(2**16, dtype=np.uint16)
        again = backwards.at(position).random(4).tolist()
        assert position == far or again == in_order[position]
    numbers = np.array(in_order)
    assert len(np.unique(numbers)) == numbers.size
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 4 / np.sqrt(len(numbers))
    assert CropRandomness(6).at(0).random() != numbers[0, 0]
