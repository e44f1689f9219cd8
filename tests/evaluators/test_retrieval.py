import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips_jax.config import ConfigError, RetrievalConfig
from clips_jax.evaluators import retrieval
from clips_jax.evaluators.retrieval import Queries, evaluate, find_queries, ranks, retrieval_metrics
from clips_jax.evaluators.split import Split
from tests.evaluators.fakes import FakeEncoder, FakeRecords, record


def make_queries(captions: list[list[str]]) -> Queries:
    """`find_queries` on records that have nothing but these captions."""
    split = Split(FakeRecords([{"image": b"", "text": texts} for texts in captions]), FakeEncoder(1))
    return find_queries(RetrievalConfig(split="test", text="text"), split)


def reference(images: np.ndarray, texts_of: dict[str, np.ndarray], captions: list[list[str]]) -> dict[str, float]:
    """The definition, caption by caption, in float64: a caption is right for every picture that has the same one."""
    images = images.astype(np.float64)
    occurrences = [(owner, text) for owner, texts in enumerate(captions) for text in texts]

    def score(image: int, text: str) -> float:
        value = float(images[image] @ texts_of[text].astype(np.float64))
        return -np.inf if np.isnan(value) else value

    found: dict[str, list[float]] = {"image_to_text": [], "text_to_image": []}
    for image, own in enumerate(captions):
        best = max(score(image, text) for text in own)
        wrong = [score(image, text) for _, text in occurrences if text not in own]
        found["image_to_text"].append(1 + sum(value >= best for value in wrong) if best > -np.inf else np.inf)
    for _, text in occurrences:
        right = [image for image, own in enumerate(captions) if text in own]
        best = max(score(image, text) for image in right)
        wrong = [score(image, text) for image in range(len(captions)) if image not in right]
        found["text_to_image"].append(1 + sum(value >= best for value in wrong) if best > -np.inf else np.inf)
    metrics: dict[str, float] = {"n_images": len(captions), "n_texts": len(occurrences)}
    for direction, values in found.items():
        for k in (1, 5, 10):
            metrics[f"{direction}/R@{k}"] = 100 * sum(value <= k for value in values) / len(values)
        metrics[f"{direction}/median_rank"] = float(np.median(values))
    return metrics


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[str]], np.ndarray, dict[str, np.ndarray]]:
    """Several captions per picture, shared captions, and small whole numbers, so that ties are many and exact."""
    names = [f"text {i}" for i in range(draw(st.integers(1, 12)))]
    captions = draw(st.lists(st.lists(st.sampled_from(names), min_size=1, max_size=4), min_size=1, max_size=14))
    value = st.one_of(st.integers(-2, 2).map(float), st.just(float("nan")))
    vector = st.lists(value if draw(st.booleans()) else st.integers(-2, 2).map(float), min_size=3, max_size=3)
    images = np.asarray([draw(vector) for _ in captions], np.float32)
    return captions, images, {name: np.asarray(draw(vector), np.float32) for name in names}


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([1, 7, 1 << 22]))
def test_metrics_equal_the_definition(problem, scores_at_once):
    captions, images, texts = problem
    queries = make_queries(captions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_SCORES", scores_at_once)
        found = retrieval_metrics(images, np.stack([texts[text] for text in queries.texts]), queries)
    expected = reference(images, texts, captions)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-9), key


def test_a_perfect_encoder_is_right_and_a_random_one_is_at_chance():
    count = 400
    queries = make_queries([[f"{i} a", f"{i} b"] for i in range(count)])
    generator = np.random.default_rng(1)
    directions = generator.normal(size=(count, 64)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    perfect = retrieval_metrics(directions, np.repeat(directions, 2, axis=0), queries)
    assert all(value == 100 for key, value in perfect.items() if "R@" in key)
    assert perfect["image_to_text/median_rank"] == perfect["text_to_image/median_rank"] == 1
    random = retrieval_metrics(directions, generator.normal(size=(2 * count, 64)).astype(np.float32), queries)
    assert random["image_to_text/R@10"] < 8 and random["text_to_image/R@10"] < 8
    # The better of two captions among 800: rank 235 in the middle; one picture among 400: 200.
    assert 180 < random["image_to_text/median_rank"] < 290
    assert 160 < random["text_to_image/median_rank"] < 240


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_an_encoder_that_says_the_same_of_everything_gets_nothing(value):
    queries = make_queries([[f"{i}"] for i in range(20)])
    same = np.full((20, 4), value, np.float32)
    metrics = retrieval_metrics(same, same, queries)
    assert all(metrics[key] == 0 for key in metrics if "R@" in key)
    assert metrics["image_to_text/median_rank"] == (np.inf if np.isnan(value) else 20)


def test_ties_are_exact_wherever_the_candidates_lie():
    """A collapsed encoder whose one direction has no round numbers; the pictures differ."""
    generator = np.random.default_rng(0)
    same = np.tile(generator.normal(size=(1, 192)).astype(np.float32), (1003, 1))
    pictures = generator.normal(size=(1003, 192)).astype(np.float32)
    metrics = retrieval_metrics(pictures, same, make_queries([[f"{i}"] for i in range(1003)]))
    assert metrics["image_to_text/median_rank"] == 1003 and metrics["image_to_text/R@10"] == 0


def test_nan_is_wrong_even_among_few():
    queries = make_queries([["a"], ["b"]])
    same = np.full((2, 4), np.nan, np.float32)
    metrics = retrieval_metrics(same, same, queries)
    assert all(metrics[key] == 0 for key in metrics if "R@" in key)


def test_one_nan_picture_is_wrong_and_leaves_the_others_right():
    queries = make_queries([[f"{i}"] for i in range(10)])
    images = np.eye(10, dtype=np.float32)
    images[3] = np.nan
    metrics = retrieval_metrics(images, np.eye(10, dtype=np.float32), queries)
    assert metrics["image_to_text/R@1"] == metrics["text_to_image/R@1"] == 90


def test_ranks_weigh_candidates_that_stand_for_several():
    found = ranks(
        np.asarray([[1.0]], np.float32),
        np.asarray([[0.5], [2.0], [0.1]], np.float32),
        np.asarray([[0, 0]]),
        np.asarray([1, 3, 1]),
    )
    assert found.tolist() == [4]


def test_a_picture_that_cannot_be_read_counts_as_wrong():
    records = [record(i) for i in range(10)]
    records[4]["image"] = b"not a picture"
    split = Split(FakeRecords(records), FakeEncoder(10))
    metrics = evaluate(RetrievalConfig(split="test", text="name"), split, FakeEncoder(10))
    assert metrics["bad_images"] == 1 and metrics["n_images"] == 10
    assert metrics["image_to_text/R@1"] == 90 and metrics["text_to_image/R@1"] == 90


def test_sentences_left_out_records_and_empty_texts():
    records = [record(i) for i in range(8)] + [record(8, recaption="  ", aliases=[])]
    split = Split(FakeRecords(records), FakeEncoder(9))
    first = find_queries(RetrievalConfig(split="test", text="recaption", sentence=0), split)
    assert first.texts[2] == "This is thing 2." and first.without_text == 1
    second = find_queries(RetrievalConfig(split="test", text="recaption", sentence=1), split)
    assert second.texts == ["It is a picture."] and second.counts.tolist() == [8] and len(second.pairs) == 8
    no_flags = find_queries(RetrievalConfig(split="test", text="aliases", leave_out="is_flag"), split)
    assert no_flags.images.tolist() == [0, 1, 2, 4, 5, 6] and no_flags.counts.sum() == 12
    with pytest.raises(ValueError, match="no record has a text"):
        find_queries(RetrievalConfig(split="test", text="recaption", sentence=5), split)
    with pytest.raises(ConfigError, match="no feature 'title'"):
        find_queries(RetrievalConfig(split="test", text="title"), split)
