import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from clips_jax.config import CaptionerConfig, ClassificationConfig, ConfigError, RetrievalConfig, ViewConfig
from clips_jax.evaluators import captioning, classification, pixel_baseline
from clips_jax.evaluators.run import evaluate_all, evaluator_names, headline
from clips_jax.evaluators.split import Split, Splits
from tests.evaluators.fakes import FakeEncoder, FakeRecords, install, make_config, record


class TableEncoder(FakeEncoder):
    """Texts by a table."""

    def __init__(self, table: dict[str, list[float]]):
        super().__init__(1)
        self._vectors = table

    def texts(self, texts):
        return np.asarray([self._vectors[text] for text in texts], np.float32)


def test_class_embedding_is_the_normalised_mean_over_templates():
    encoder = TableEncoder({"a cat": [1, 0], "cat": [0, 1], "a sea dog": [1, 0], "sea dog": [1, 0]})
    found = classification.class_embeddings(["cat", "sea_dog"], ["a {}", "{}"], encoder)
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [1, 0]], rtol=1e-6)
    with pytest.raises(ConfigError, match="photo"):
        classification.class_embeddings(["cat"], ["a photo"], encoder)


def test_classification_metrics_by_hand():
    classes = np.eye(7, dtype=np.float32)
    pictures = np.zeros((4, 7), np.float32)
    pictures[0, 0] = 1  # right
    pictures[1] = [0.5, 0, 0, 0, 0, 0, 1]  # class 0 is second
    pictures[2] = [1, 2, 3, 4, 5, 6, 0]  # class 6 is last
    pictures[3] = np.nan  # class 2: wrong
    metrics = classification.classification_metrics(pictures, classes, np.asarray([0, 0, 6, 2]))
    assert metrics == pytest.approx(
        {"top1": 25, "top5": 50, "per_class": 100 * (0.5 + 0 + 0) / 3, "n_images": 4, "n_classes": 7}
    )


def test_labels_that_are_no_class_raise():
    split = Split(FakeRecords([record(0, group=-1)]), FakeEncoder(1), {"group": ["one", "two"]})
    with pytest.raises(ValueError, match="does not label every picture"):
        classification.evaluate(ClassificationConfig("test", "group"), split, FakeEncoder(1))
    with pytest.raises(ConfigError, match="not a ClassLabel"):
        classification.evaluate(ClassificationConfig("test", "name"), split, FakeEncoder(1))


def test_caption_loss_weighs_tokens_and_uses_fallbacks():
    config = make_config()
    records = [record(0, recaption="one two three"), record(1, recaption="", alt_text="alone")]
    split = Split(FakeRecords(records), FakeEncoder(2))
    assert captioning.captioner_texts(config, split) == (["thing 0", "alone"], ["one two three", "alone"])
    metrics = captioning.evaluate(config, split, FakeEncoder(2))
    assert metrics == pytest.approx(
        {"loss": 0.5, "perplexity": np.exp(0.5), "n_tokens": 4, "n_images": 2, "bad_images": 0}
    )


def test_captioner_is_not_given_its_own_target():
    config = make_config()
    views = {"alt": ViewConfig({"recaption": 0.8, "alt_text": 0.2}, length=16)}
    mixed = dataclasses.replace(config, objective=dataclasses.replace(config.objective, views=views))
    split = Split(FakeRecords([record(0)]), FakeEncoder(1))
    assert captioning.captioner_texts(mixed, split)[0] == ["thing 0"]
    captioner = CaptionerConfig(config.model.text.transformer, condition_on=("image",))
    alone = dataclasses.replace(config, model=dataclasses.replace(config.model, captioner=captioner))
    assert captioning.captioner_texts(alone, split)[0] == [""]


def test_nearest_equals_brute_force():
    generator = np.random.default_rng(0)
    queries, candidates = generator.integers(0, 256, (9, 30)).astype(float), generator.integers(0, 256, (14, 30)) * 1.0
    expected = [int(np.argmin([np.sum((q - c) ** 2) for c in candidates])) for q in queries]
    assert pixel_baseline.nearest(queries, candidates).tolist() == expected


def test_pixel_baseline(monkeypatch):
    def grey(value: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (30, 30), (value, value, value)).save(file, "PNG")
        return file.getvalue()

    train = [
        record(0, image=grey(10), name="coal"),
        record(1, image=b"broken", name="ash"),
        record(2, image=grey(240), name="snow"),
    ]
    test = [
        record(0, image=grey(40), name="coal"),
        record(1, image=grey(200), name="snow"),
        record(2, image=grey(120), name="ash"),
        record(3, image=b"", name="coal"),
    ]
    install(monkeypatch, {"train": train, "test": test})
    assert pixel_baseline.evaluate(make_config()) == {"same_name": 50.0, "n_images": 4, "bad_images": 1}


def test_a_text_that_no_record_has_leaves_out_its_retrieval_and_no_other(monkeypatch):
    records = [record(i, recaption="") for i in range(12)]
    install(monkeypatch, {"train": records, "test": records})
    config = make_config()
    retrieval = {"names": RetrievalConfig("test", "name"), "long": RetrievalConfig("test", "recaption", headline=True)}
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, retrieval=retrieval))
    results = evaluate_all(config, FakeEncoder(12))
    assert "retrieval/names" in results and "retrieval/long" not in results and headline(config, results) == {}


def test_evaluate_all_runs_everything_and_encodes_a_split_once(monkeypatch):
    records = [record(i) for i in range(12)]
    opened = install(monkeypatch, {"train": records, "test": records})
    config, encoder = make_config(), FakeEncoder(12, mistaken=[2])
    results = evaluate_all(config, encoder)
    assert list(results) == [
        "retrieval/names",
        "retrieval/no_flags",
        "classification/group",
        "caption_loss/test",
        "pixel_baseline/test",
    ]
    assert encoder.encoded_pictures == 12
    assert opened["test"].pictures_read == 12 * 3  # texts, pictures, pixel baseline
    assert results["retrieval/names"]["image_to_text/R@1"] == pytest.approx(100 * 11 / 12)
    assert results["retrieval/no_flags"]["n_images"] == 9 and results["retrieval/no_flags"]["n_texts"] == 18
    assert results["classification/group"]["n_classes"] == 3
    assert results["pixel_baseline/test"]["same_name"] == 100
    found = headline(config, results)
    # Picture 2 looks just like picture 3, so text 3 does not find its picture for sure.
    assert found["retrieval/names/image_to_text/R@1"] == pytest.approx(100 * 11 / 12)
    assert found["retrieval/names/text_to_image/R@1"] == pytest.approx(100 * 10 / 12)
    assert len(found) == 2


def test_only_and_shared_splits(monkeypatch):
    records = [record(i) for i in range(5)]
    opened = install(monkeypatch, {"test": records})
    config, encoder = make_config(captioner=False), FakeEncoder(5, has_captioner=False)
    assert "caption_loss/test" not in evaluator_names(config)
    splits = Splits(config, encoder)
    assert list(evaluate_all(config, encoder, only=["retrieval/names"], splits=splits)) == ["retrieval/names"]
    read = opened["test"].pictures_read
    evaluate_all(config, encoder, only=["retrieval/names"], splits=splits)
    assert opened["test"].pictures_read == read
    assert encoder.encoded_pictures == 10  # the parameters may have changed in between
    assert evaluate_all(config, encoder, only=[]) == {}
    with pytest.raises(ValueError, match="caption_loss/test"):
        evaluate_all(config, encoder, only=["caption_loss/test"])


def test_a_config_without_evaluators_gives_nothing():
    config = make_config(retrieval={}, classification={}, caption_loss={}, pixel_baseline="")
    assert evaluate_all(config, FakeEncoder(1)) == {} and headline(config, {}) == {}


@pytest.mark.parametrize("keep", [True, False])
def test_pictures_come_in_the_order_asked_for(monkeypatch, keep):
    monkeypatch.setattr("clips_jax.evaluators.split._KEPT_PIXELS", 1 << 20 if keep else 0)
    split = Split(FakeRecords([record(i) for i in range(6)]), FakeEncoder(6))
    for _ in range(2):
        assert split.load([3, 1, 1, 5])[:, 0, 0, 0].tolist() == [15, 5, 5, 25]
    assert split.subset([4, 2])([1, 0, 1])[:, 0, 0, 0].tolist() == [10, 20, 10]
