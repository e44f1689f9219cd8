"""Decoding against exhaustive search and against the captioner without its cache."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax.config import ConfigError
from clips_jax.decoding import Decoding, nucleus, without_specials, write
from clips_jax.models.captioner import ROW_AXES, Captioner
from tests import small

SPECIAL = small.SPECIAL
LENGTH, WORDS = 4, 9  # ids 0 to 8: specials 0, 2, 3, 4; texts of 1, 5, 6, 7, 8


def table(seed: int, rows: int = 3) -> np.ndarray:
    """Logits (rows, LENGTH, before, next) of a made-up language."""
    return np.random.default_rng(seed).normal(scale=2, size=(rows, LENGTH, WORDS, WORDS)).astype(np.float32)


def decode(logits: np.ndarray, decoding: Decoding, identities=None) -> np.ndarray:
    def step(state, tokens_B, position):
        language, count = state
        return language[jnp.arange(len(tokens_B)), position, tokens_B], (language, count + 1)

    rows = len(logits)
    identities = jnp.arange(rows) if identities is None else jnp.asarray(identities)
    state = (jnp.asarray(logits), jnp.zeros(rows, jnp.int32))
    return np.asarray(write(step, state, (0, 0), identities, LENGTH, SPECIAL, decoding))


def every_text(logits: np.ndarray, length_penalty: float) -> dict[tuple[int, ...], float]:
    """Penalised log-probability of every text of one row, in float64."""
    words = [token for token in range(WORDS) if token not in (SPECIAL.pad, SPECIAL.bos, SPECIAL.cls)]
    allowed = np.full(WORDS, -np.inf)
    allowed[words] = 0
    scores = logits.astype(np.float64) + allowed
    log = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    found = {}
    for text in itertools.product(words, repeat=LENGTH):
        end = text.index(SPECIAL.eos) + 1 if SPECIAL.eos in text else LENGTH
        total = sum(log[i, ([SPECIAL.bos, *text])[i], text[i]] for i in range(end))
        padded = text[:end] + (SPECIAL.pad,) * (LENGTH - end)
        found[padded] = total / ((5 + end) / 6) ** length_penalty
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_texts(length_penalty):
    for seed in range(4):
        logits = table(seed)
        found = decode(logits, Decoding("beam", beams=130, length_penalty=length_penalty))
        for row in range(len(logits)):
            texts = every_text(logits[row], length_penalty)
            best = max(texts, key=lambda text: texts[text])
            assert texts[tuple(found[row].tolist())] == pytest.approx(texts[best], abs=1e-5)


def test_one_beam_is_greedy_and_a_few_are_no_worse():
    logits = table(7, rows=8)
    greedy = decode(logits, Decoding())
    for row, text in enumerate(greedy):
        before = SPECIAL.bos
        for position, token in enumerate(text):
            if before == SPECIAL.eos:
                assert (text[position:] == SPECIAL.pad).all()
                break
            allowed = logits[row, position, before].copy()
            allowed[[SPECIAL.pad, SPECIAL.bos, SPECIAL.cls]] = -np.inf
            assert token == allowed.argmax()
            before = token
    wide = decode(logits, Decoding("beam", beams=3, length_penalty=0.0))
    scores = [every_text(row, 0.0) for row in logits]
    greedy_sum, wide_sum = (sum(s[tuple(t.tolist())] for s, t in zip(scores, x, strict=True)) for x in (greedy, wide))
    assert wide_sum > greedy_sum


def test_beams_of_a_row_do_not_depend_on_its_neighbours():
    logits = table(3, rows=4)
    together = decode(logits, Decoding("beam", beams=3))
    alone = [decode(logits[row : row + 1], Decoding("beam", beams=3))[0] for row in range(4)]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_nucleus_keeps_the_fewest_that_reach_the_share():
    probabilities = np.asarray([[0.1, 0.5, 0.25, 0.15]], np.float32)
    for top_p, kept in ((0.3, [1]), (0.5, [1]), (0.6, [1, 2]), (0.8, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        found = nucleus(jnp.log(probabilities), top_p - 1e-6)
        assert np.flatnonzero(np.asarray(found[0]) > -1e29).tolist() == kept


def test_sampling_follows_the_truncated_distribution_and_the_seed():
    rows = 4000
    logits = np.repeat(table(1, rows=1), rows, axis=0)
    decoding = Decoding("nucleus", temperature=0.7, top_p=0.8, seed=5)
    found = decode(logits, decoding)
    first = np.asarray(without_specials(jnp.asarray(logits[0, 0, SPECIAL.bos]), SPECIAL), np.float64) / 0.7
    probabilities = np.exp(first - first.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    keep = order[: np.searchsorted(np.cumsum(probabilities[order]), 0.8) + 1]
    expected = np.zeros(WORDS)
    expected[keep] = probabilities[keep] / probabilities[keep].sum()
    seen = np.bincount(found[:, 0], minlength=WORDS) / rows
    np.testing.assert_allclose(seen, expected, atol=4 * math.sqrt(0.25 / rows))
    np.testing.assert_array_equal(found, decode(logits, decoding))
    assert (found != decode(logits, dataclasses.replace(decoding, seed=6))).any()
    # A row's text is a function of its number alone, wherever it stands.
    moved = decode(logits[:8], decoding, identities=[7, 6, 5, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(moved[::-1], found[:8])


def test_settings_that_make_no_sense_are_named():
    for wrong in ({"beams": 0}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Decoding("nucleus", **wrong)


@functools.cache
def captioner() -> tuple:
    """A captioner with random weights, sharp enough to write something, and a prefix with padding."""
    config = dataclasses.replace(small.config().model.captioner, kind="teacher_forced")
    model = Captioner(config, small.VOCAB_SIZE, jnp.dtype("float32"))
    image, alt = jax.random.normal(jax.random.key(1), (5, 4, 16)), jax.random.normal(jax.random.key(2), (5, 6, 8))
    real = jnp.arange(6)[None] < jnp.array([6, 3, 1, 5, 2])[:, None]
    prefix = {"image": (image, jnp.ones((5, 4), bool)), "alt": (alt, real)}
    zeros = jnp.zeros((5, config.target_length), jnp.int32)
    params = dict(jax.jit(model.init, static_argnums=3)(jax.random.key(0), prefix, zeros, SPECIAL.bos)["params"])
    params["head"] = params["head"] * 8
    params["tokens"] = {"embedding": params["tokens"]["embedding"] * 30}
    return model, params, prefix


def test_logits_with_the_cache_are_those_without():
    model, params, prefix = captioner()
    length = model.config.target_length
    targets = np.random.default_rng(0).integers(5, small.VOCAB_SIZE, (5, length)).astype(np.int32)
    hidden, head = jax.jit(model.apply, static_argnums=3)({"params": params}, prefix, targets, SPECIAL.bos)
    expected = np.einsum("btd,dv->btv", np.asarray(hidden, np.float64), np.asarray(head, np.float64))
    written = jax.jit(functools.partial(model.apply, method="start"))({"params": params}, prefix)
    step = jax.jit(functools.partial(model.apply, {"params": params}, method="next"))
    before = jnp.full(5, SPECIAL.bos, jnp.int32)
    for position in range(length):
        logits, written = step(written, before, jnp.int32(position))
        np.testing.assert_allclose(logits, expected[:, position], atol=2e-4, rtol=1e-4)
        before = jnp.asarray(targets[:, position])


def test_captions_with_the_cache_are_those_without():
    model, params, prefix = captioner()
    length = model.config.target_length

    def step(written, tokens_B, position):
        return model.apply({"params": params}, written, tokens_B, position, method="next")

    start = jax.jit(functools.partial(model.apply, method="start"))({"params": params}, prefix)
    found = write(step, start, ROW_AXES, jnp.arange(5), length, SPECIAL, Decoding())

    @jax.jit
    def predict(targets):
        hidden, head = model.apply({"params": params}, prefix, targets, SPECIAL.bos)
        return without_specials(jnp.einsum("btd,dv->btv", hidden, head), SPECIAL).argmax(axis=-1)

    expected = np.full((5, length), SPECIAL.pad, np.int32)
    for position in range(length):
        ended = (expected[:, :position] == SPECIAL.eos).any(axis=1)
        expected[:, position] = np.where(ended, SPECIAL.pad, np.asarray(predict(expected))[:, position])
    np.testing.assert_array_equal(found, expected)
    assert len({tuple(row) for row in expected.tolist()}) > 1  # the prefix decides, or the test shows nothing
    beams = write(step, start, ROW_AXES, jnp.arange(5), length, SPECIAL, Decoding("beam", beams=1, length_penalty=0.0))
    np.testing.assert_array_equal(beams, expected)
