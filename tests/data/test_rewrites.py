"""One of several texts per example: uniform over all of them, and a function of (seed, position)."""

import collections

from clips_jax.config import TextConfig
from clips_jax.data.pipeline import draw_texts

TEXTS = {"alt_text": TextConfig(8), "rewrites": TextConfig(8, among=("alt_text",))}


def shares(found, seed=0):
    drawn = [draw_texts(found, TEXTS, position, seed)["rewrites"] for position in range(3000)]
    return {text: count / 3000 for text, count in collections.Counter(drawn).items()}


def test_the_alt_text_is_as_likely_as_each_of_any_number_of_rewrites():
    # Standard deviation of a share of 3,000 draws: below 0.01.
    for rewrites in ([], ["one"], ["one", "two", "three"], ["one", " ", "two"]):
        real = [text for text in ["alt", *rewrites] if text.strip()]
        found = shares({"alt_text": "alt", "rewrites": rewrites})
        assert set(found) == set(real)
        assert all(abs(share - 1 / len(real)) < 0.04 for share in found.values())
    assert set(shares({"alt_text": " ", "rewrites": ["one"]})) == {"one"}
    assert set(shares({"alt_text": "", "rewrites": []})) == {""}


def test_the_draw_is_a_function_of_seed_and_position():
    found = {"alt_text": "alt", "rewrites": ["one", "two", "three"]}
    first, again, other = (
        [draw_texts(found, TEXTS, position, seed)["rewrites"] for position in range(50)] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert draw_texts(found, TEXTS, 7, 0)["alt_text"] == "alt"
