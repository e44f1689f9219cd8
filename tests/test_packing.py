"""Packed texts: every token in one place, features and gradients as one by one, no text sees another."""

import dataclasses
import functools

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from clips_jax import masks
from clips_jax.config import PackingConfig
from clips_jax.models.text_tower import TextTower
from clips_jax.packing import cls_places, pack, packing_metrics, rows_per_group, take, token_places
from tests import small

CONFIG = PackingConfig(group=4, row_length=16, tokens_per_example=20)
POSITIONS = 14


def views_of(lengths_BxV: np.ndarray, length: int = 12):
    """Framed texts of these lengths, every token different from all others."""
    views = []
    for view, lengths_B in enumerate(lengths_BxV.T):
        first = 100 * (1 + np.arange(len(lengths_B)) + len(lengths_B) * view)[:, None]
        tokens = jnp.asarray(first + np.arange(length - 3)[None])
        frame = jax.vmap(functools.partial(masks.frame, length=length, special=small.SPECIAL))
        views.append(frame(tokens, jnp.asarray(lengths_B - 3)))
    return views


@functools.partial(jax.jit, static_argnames="config")
def packed(views, config=CONFIG):
    return pack(views, config, POSITIONS, small.SPECIAL, small.one_device())


def laid_out(result, config=CONFIG) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(token, position) in order of each text, by (example, view); checks that rows hold nothing else."""
    examples, views = result.starts_BxV.shape
    tokens, positions, segments = (
        np.asarray(x) for x in (result.tokens_GxF, result.positions_GxF, result.segments_GxF)
    )
    texts, used = {}, np.zeros(tokens.shape, bool)
    for example in range(examples):
        for view in range(views):
            group, start = example // config.group, int(result.starts_BxV[example, view])
            place = slice(start, start + int(result.lengths_BxV[example, view]))
            assert start // config.row_length == (place.stop - 1) // config.row_length  # within one row
            assert not used[group, place].any()  # and alone
            used[group, place] = True
            assert (segments[group, place] == example % config.group * views + view + 1).all()
            texts[example, view] = list(zip(tokens[group, place], positions[group, place], strict=True))
    assert (segments[~used] == 0).all() and (tokens[~used] == small.SPECIAL.pad).all()
    return texts


def expected_text(tokens, real, cut_to: int) -> list[tuple[int, int]]:
    text = [int(token) for token in tokens[real]]
    if len(text) > cut_to:
        text = [*text[: cut_to - 2], small.SPECIAL.eos, small.SPECIAL.cls]
    return list(zip(text, [*range(len(text) - 1), POSITIONS - 1], strict=True))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.lists(st.integers(3, 12), min_size=16, max_size=16))
def test_every_text_is_laid_out_whole_or_cut_to_the_longest_length_that_fits(lengths):
    lengths_BxV = np.array(lengths).reshape(8, 2)
    views = views_of(lengths_BxV)
    result = packed(views)
    texts = laid_out(result)
    for group in (slice(0, 4), slice(4, 8)):
        before, after = lengths_BxV[group], np.asarray(result.lengths_BxV)[group]
        np.testing.assert_array_equal(after, np.minimum(before, after.max()))  # one common length
        np.testing.assert_array_equal(np.asarray(result.cut_BxV)[group], before > after)
        room = rows_per_group(CONFIG) * CONFIG.row_length
        if before.sum() <= room - rows_per_group(CONFIG) * (before.max() - 1):  # any-fit cannot fail here
            assert (after == before).all()
    for (example, view), text in texts.items():
        tokens, real = (np.asarray(x)[example] for x in views[view])
        assert text == expected_text(tokens, real, int(result.lengths_BxV[example, view]))


def test_too_many_tokens_are_cut_and_counted():
    result = packed(views_of(np.array([[12, 12], [12, 12], [12, 12], [12, 3]] * 2)))
    texts = laid_out(result)
    # Five rows of 16 for seven texts of 12 and one of 3: two texts share a row only if they are 8 long.
    assert {len(text) for text in texts.values()} == {8, 3}
    np.testing.assert_allclose(packing_metrics(result)["text/cut"], 7 / 8)
    np.testing.assert_allclose(packing_metrics(result)["text/fill"], (7 * 8 + 3) / 80)


def test_a_group_does_not_depend_on_the_others():
    lengths = np.random.default_rng(0).integers(3, 13, (8, 2))
    both, second = packed(views_of(lengths)), packed([jax.tree.map(lambda x: x[4:], v) for v in views_of(lengths)])
    for field in dataclasses.fields(both):
        whole, part = getattr(both, field.name), getattr(second, field.name)
        np.testing.assert_array_equal(whole[len(whole) // 2 :], part)


@pytest.fixture(scope="module")
def tower():
    config = dataclasses.replace(small.config().model.text, packing=CONFIG, length=POSITIONS, vocab_size=2000)
    tower = TextTower(config, 24, jnp.dtype("float32"))
    params = tower.init(jax.random.key(0), jnp.zeros((1, 12), jnp.int32), jnp.ones((1, 12), bool))
    return tower, params


def test_packed_features_tokens_and_gradients_are_those_of_the_texts_one_by_one(tower):
    tower, params = tower
    views = views_of(np.random.default_rng(1).integers(3, 9, (8, 2)))
    result = packed(views)
    assert not result.cut_BxV.any() and len(np.unique(result.starts_BxV)) > 5
    cotangent = jax.random.normal(jax.random.key(1), (8, 2, 24))

    def one_by_one(params):
        features, tokens = zip(*(tower.apply(params, *view) for view in views), strict=True)
        return (jnp.stack(features, axis=1) * cotangent).sum() + (tokens[0] ** 2 * views[0][1][..., None]).sum()

    def together(params):
        features, tokens = tower.apply(params, result, method="packed")
        places, real = token_places(result.starts_BxV[:, 0], result.lengths_BxV[:, 0], 12)
        return (features * cotangent).sum() + (take(tokens, places) ** 2 * real[..., None]).sum()

    expected, ours = (jax.jit(jax.value_and_grad(f))(params) for f in (one_by_one, together))
    small.assert_trees_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_no_text_sees_another(tower):
    tower, params = tower
    result = packed(views_of(np.random.default_rng(1).integers(3, 9, (4, 2))))

    def features(noise_RxLxD):
        def add_noise(next_function, args, kwargs, context):
            out = next_function(*args, **kwargs)
            return out + noise_RxLxD if context.module.name == "tokens" and context.method_name == "__call__" else out

        with nn.intercept_methods(add_noise):
            return tower.apply(params, result, method="packed")[0].sum(axis=-1)

    rows = rows_per_group(CONFIG)
    seen_BxVxF = abs(jax.jacobian(features)(jnp.zeros((rows, 16, 32)))).sum(axis=-1).reshape(4, 2, -1)
    own_BxVxF = result.segments_GxF[0][None, None] == (jnp.arange(8) + 1).reshape(4, 2, 1)
    np.testing.assert_array_equal(seen_BxVxF > 0, own_BxVxF)


def test_the_captioner_sees_the_first_tokens_and_cls():
    result = packed(views_of(np.array([[9, 3], [5, 3], [4, 3], [3, 3]])))
    places, real = token_places(result.starts_BxV[:, 0], result.lengths_BxV[:, 0], 5)
    tokens = np.asarray(take(result.tokens_GxF[..., None], places)[..., 0])
    cls, bos, eos = small.SPECIAL.cls, small.SPECIAL.bos, small.SPECIAL.eos
    rows = [list(row[keep]) for row, keep in zip(tokens, np.asarray(real), strict=True)]
    assert rows == [[bos, 100, 101, 102, cls], [bos, 200, 201, eos, cls], [bos, 300, eos, cls], [bos, eos, cls]]
    cls_tokens = take(result.tokens_GxF[..., None], cls_places(result))
    assert (np.asarray(cls_tokens) == cls).all()
