"""Properties of the token masks, and of the attention mask."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from clips_jax import masks
from clips_jax.batch import TokenizedText
from clips_jax.config import ViewConfig
from clips_jax.data.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(pad=0, bos=2, eos=3, cls=4)
SHIPPED = 24  # one shape for all property tests, so that each mask compiles once per budget
MASKS = ("truncation", "random", "block", "sub_caption")


@st.composite
def texts(draw):
    """Sentence lengths of a text that fits; tokens are all different, so that positions can be read off them."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=0, max_size=8))
    while sum(lengths) > SHIPPED:
        lengths.pop()
    return make_text(lengths)


def make_text(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.repeat(np.arange(len(lengths)), lengths)
    tokens = np.zeros(SHIPPED, np.int32)
    tokens[: len(ids)] = 100 + np.arange(len(ids))
    sentence_ids = np.full(SHIPPED, -1, np.int32)
    sentence_ids[: len(ids)] = ids
    return tokens, sentence_ids


@functools.partial(jax.jit, static_argnames=("mask", "budget", "sentences"))
def reduce_tokens(tokens, sentence_ids, key, mask, budget, sentences=1):
    return masks.reduce_tokens(tokens, sentence_ids, key, mask, budget, sentences)


def kept(text, seed, mask, budget, sentences=1):
    tokens, count = reduce_tokens(*text, jax.random.key(seed), mask=mask, budget=budget, sentences=sentences)
    tokens, count = np.asarray(tokens), int(count)
    assert (tokens[count:] == 0).all()
    return tokens[:count]


def many(text, draws, mask, budget, sentences=1):
    """Tokens kept in each of many draws: list of arrays."""
    keys = jax.random.split(jax.random.key(0), draws)
    run = jax.jit(jax.vmap(lambda key: masks.reduce_tokens(*map(jnp.asarray, text), key, mask, budget, sentences)))
    return [row[:count] for row, count in zip(*map(np.asarray, run(keys)), strict=True)]


def chi_square_is_uniform(counts: np.ndarray) -> bool:
    """Whether counts fit a uniform distribution: chi-square below its mean + 5 standard deviations."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("budget", [1, 5, 16, SHIPPED, SHIPPED + 6])
@hypothesis.given(text=texts(), seed=st.integers(0, 2**31 - 1), sentences=st.sampled_from([0, 1, 3]))
@hypothesis.settings(max_examples=30, deadline=None)
def test_kept_tokens_are_a_subsequence_within_the_budget(mask, budget, text, seed, sentences):
    result = kept(text, seed, mask, budget, sentences)
    source = text[0][text[1] >= 0]
    assert len(result) <= budget
    assert (np.diff(result) > 0).all() and np.isin(result, source).all()  # tokens increase along the source
    if mask != "sub_caption" or sentences == 0:
        assert len(result) == min(budget, len(source))
    else:
        assert len(result) > 0 or len(source) == 0
    np.testing.assert_array_equal(result, kept(text, seed, mask, budget, sentences))  # same key, same result


@hypothesis.given(text=texts(), seed=st.integers(0, 2**31 - 1), budget=st.sampled_from([1, 5, 16]))
@hypothesis.settings(max_examples=60, deadline=None)
def test_one_sub_caption_is_the_start_of_one_sentence(text, seed, budget):
    result = kept(text, seed, "sub_caption", budget)
    sentences = [list(text[0][text[1] == i]) for i in range(text[1].max() + 1)]
    assert list(result) in [sentence[:budget] for sentence in sentences] or not sentences


@hypothesis.given(text=texts(), seed=st.integers(0, 2**31 - 1), budget=st.sampled_from([5, 16]))
@hypothesis.settings(max_examples=60, deadline=None)
def test_sub_captions_fill_the_budget_with_whole_sentences_but_one(text, seed, budget):
    result = kept(text, seed, "sub_caption", budget, sentences=0)
    cut = 0
    for i in range(text[1].max() + 1):
        sentence = text[0][text[1] == i]
        mine = result[np.isin(result, sentence)]
        np.testing.assert_array_equal(mine, sentence[: len(mine)])  # always from its start
        cut += 0 < len(mine) < len(sentence)
    assert cut <= 1


def test_truncation_keeps_the_first_and_block_a_run():
    text = make_text([5, 9, 6])
    np.testing.assert_array_equal(kept(text, 0, "truncation", 7), 100 + np.arange(7))
    block = kept(text, 3, "block", 7)
    np.testing.assert_array_equal(np.diff(block), 1)


def test_block_starts_are_uniform():
    starts = [row[0] - 100 for row in many(make_text([5, 9, 6]), 4000, "block", 8)]
    counts = np.bincount(starts, minlength=13)
    assert len(counts) == 13 and chi_square_is_uniform(counts)


def test_random_positions_are_uniform():
    rows = many(make_text([5, 9, 6]), 4000, "random", 8)
    counts = np.bincount(np.concatenate(rows) - 100, minlength=20)
    assert len(counts) == 20 and chi_square_is_uniform(counts)
    pairs = {tuple(row[:2]) for row in rows}
    assert len(pairs) > 50  # positions are drawn together, not as a block


@pytest.mark.parametrize("lengths", [[3, 3, 3, 3], [1, 9, 2, 5, 4]])
def test_sentences_are_drawn_uniformly_whatever_their_length(lengths):
    text = make_text(lengths)
    first = np.cumsum([0, *lengths[:-1]]) + 100
    counts = np.array([sum(row[0] == f for row in many(text, 4000, "sub_caption", 6)) for f in first])
    assert counts.sum() == 4000 and chi_square_is_uniform(counts)


def test_pairs_of_sentences_are_drawn_uniformly():
    rows = many(make_text([2, 2, 2, 2]), 6000, "sub_caption", 4, sentences=2)
    pairs = np.array([[(row[0] - 100) // 2, (row[2] - 100) // 2] for row in rows])
    counts = np.bincount(pairs[:, 0] * 4 + pairs[:, 1])
    assert chi_square_is_uniform(counts[counts > 0]) and (counts > 0).sum() == 6


def test_frame_lays_out_special_tokens():
    kept_tokens = jnp.array([11, 12, 13, 0, 0])
    tokens, real = masks.frame(kept_tokens, jnp.array(3), 8, SPECIAL)
    assert tokens.tolist() == [2, 11, 12, 13, 3, 0, 0, 4]
    assert real.tolist() == [True] * 5 + [False] * 2 + [True]
    tokens, real = masks.frame(jnp.arange(11, 16), jnp.array(5), 8, SPECIAL)
    assert tokens.tolist() == [2, 11, 12, 13, 14, 15, 3, 4] and real.all()
    tokens, _ = masks.frame(kept_tokens * 0, jnp.array(0), 8, SPECIAL)
    assert tokens.tolist() == [2, 3, 0, 0, 0, 0, 0, 4]


def batch_of_texts(rows: int) -> dict[str, TokenizedText]:
    rng = np.random.default_rng(0)
    made = [make_text(list(rng.integers(1, 6, rng.integers(1, 5)))) for _ in range(rows)]
    recaption = TokenizedText(*map(np.stack, zip(*made, strict=True)))
    short = TokenizedText(recaption.tokens[:, :9] + 500, recaption.sentence_ids[:, :9])
    return {"recaption": recaption, "alt_text": short}


@pytest.mark.parametrize("mask", MASKS)
def test_views_depend_on_the_global_row_alone(mask):
    texts = batch_of_texts(16)
    view = ViewConfig({"alt_text": 0.5, "recaption": 0.5}, length=11, mask=mask)
    keys = masks.example_keys(jax.random.key(1), jnp.array(7), 16)
    whole, _ = masks.make_view(texts, view, keys, SPECIAL)
    for rows in (np.arange(4, 8), np.arange(1, 16, 3)):
        part, _ = masks.make_view(jax.tree.map(lambda x, r=rows: x[r], texts), view, keys[rows], SPECIAL)
        np.testing.assert_array_equal(part, whole[rows])
    again = masks.example_keys(jax.random.key(1), jnp.array(8), 16)
    assert (masks.make_view(texts, view, again, SPECIAL)[0] != whole).any()


def test_sources_are_drawn_by_their_probability():
    texts = jax.tree.map(lambda x: np.repeat(x[:1], 4000, axis=0), batch_of_texts(1))
    view = ViewConfig({"alt_text": 0.8, "recaption": 0.2}, length=11)
    keys = masks.example_keys(jax.random.key(0), jnp.array(0), 4000)
    tokens, _ = masks.make_view(texts, view, keys, SPECIAL)
    share = float((tokens[:, 1] >= 500).mean())
    assert abs(share - 0.8) < 5 * np.sqrt(0.8 * 0.2 / 4000)


def test_caption_target_ends_with_eos_and_weighs_padding_zero():
    text = TokenizedText(jnp.array([[7, 8, 9, 0, 0], [5, 6, 7, 8, 9]]), jnp.array([[0, 0, 1, -1, -1], [0] * 5]))
    targets, weights = masks.caption_target(text, 6, SPECIAL)
    assert targets.tolist() == [[7, 8, 9, 3, 0, 0], [5, 6, 7, 8, 9, 3]]
    assert weights.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    targets, weights = masks.caption_target(text, 4, SPECIAL)
    assert targets.tolist() == [[7, 8, 9, 3], [5, 6, 7, 8]] and weights.all()  # cut: no room for EOS


def test_combination_mask_picture():
    mask = masks.combination_mask(jnp.array([[True, True, False]]), 3)[0, 0].astype(int)
    assert mask.tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 1, 1, 1],
    ]
