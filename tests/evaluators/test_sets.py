"""Evaluation sets: every format from real files, counts held to, languages, intervals, probes, written captions."""

import csv
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clips_jax.config import ConfigError
from clips_jax.evaluators import classification, probes
from clips_jax.evaluators.bootstrap import interval_metrics, intervals
from clips_jax.evaluators.data_sets import built_in, read_class_names, read_data_set, read_templates
from clips_jax.evaluators.run_sets import SetEvaluation
from clips_jax.evaluators.written_captions import bleu_and_cider, words
from tests.data.make_tars import write_tar
from tests.evaluators.fakes import FakeEncoder, picture

COUNT = 12
RECALLS = [f"{d}/R@{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


@pytest.fixture
def root(tmp_path):
    """Pictures 0 … 11 that `FakeEncoder` knows, as pictures/00.png and so on."""
    (tmp_path / "pictures").mkdir()
    for i in range(COUNT):
        (tmp_path / "pictures" / f"{i:02}.png").write_bytes(picture(i))
    return tmp_path


def evaluate(root, text: str, encoder=None, tasks=None):
    (root / "mine.toml").write_text('description = "mine"\n' + text)
    name, data_set = read_data_set(str(root / "mine.toml"))
    evaluation = SetEvaluation(name, data_set, str(root), encoder or FakeEncoder(COUNT))
    return evaluation.run(tasks), evaluation


def captions_of(i: int) -> list[str]:
    return [f"thing {i} number {n}" for n in range(3)]


def write_karpathy(path) -> None:
    """Every third picture belongs to another split."""
    images = [
        {
            "filename": f"{i:02}.png",
            "filepath": "pictures",
            "split": "train" if i % 3 == 2 else "test",
            "sentences": [{"raw": text} for text in captions_of(i)],
        }
        for i in range(COUNT)
    ]
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))


def write_coco(path) -> None:
    """Annotations in no order."""
    annotations = [{"image_id": 100 + i, "id": 7 * i, "caption": c} for i in range(COUNT) for c in captions_of(i)]
    images = [{"id": 100 + i, "file_name": f"{i:02}.png"} for i in range(COUNT)]
    path.write_text(json.dumps({"images": images, "annotations": annotations[::-1]}))


def rows() -> list[dict]:
    return [{"id": f"{i:02}", "text": f"thing {i}", "split": "ab"[i % 2]} for i in range(COUNT)]


def write_csv(path) -> None:
    """As a spreadsheet does it, with a mark at the beginning."""
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["id", "text", "split"])
        writer.writeheader()
        writer.writerows(rows())


def write_caption_rows(path) -> None:
    """A row per caption; the rows of a picture lie apart."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [("id", "text"), *((f"{i:02}", f"thing {i} {n}") for n in "ab" for i in range(COUNT))]
        )


def write_jsonl(path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))


FORMATS = {
    "karpathy": ("captions_json", "x.json", write_karpathy, 'split = "test"', "captions", 8, 24),
    "coco": ("captions_json", "x.json", write_coco, 'images = "pictures"', "captions", 12, 36),
    "csv": ("table", "x.csv", write_csv, "", "text", 12, 12),
    "jsonl": ("table", "x.jsonl", write_jsonl, "", "text", 12, 12),
    "parquet": ("table", "x.parquet", lambda p: pq.write_table(pa.Table.from_pylist(rows()), p), "", "text", 12, 12),
    "grouped": ("table", "x.csv", write_caption_rows, "grouped = true", "text", 12, 24),
    "where": ("table", "x.csv", write_csv, 'where = { split = "a" }', "text", 6, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_retrieval_from_every_format(root, name):
    kind, file, write, more, text, images, texts = FORMATS[name]
    write(root / file)
    table = 'images = "pictures"\nimage = "id"\nimage_file = "{}.png"\n' if kind == "table" else ""
    records = f'[records]\nformat = "{kind}"\npath = "{file}"\n{table}{more}\n'
    counts = f"[expected]\nimages = {images}\ntexts = {texts}\n"
    results, _ = evaluate(root, f'{records}{counts}[retrieval]\ntext = "{text}"\n')
    metrics = results["retrieval/mine"]
    assert (metrics["n_images"], metrics["n_texts"]) == (images, texts)
    assert all(metrics[recall] == metrics[f"{recall}/low"] == metrics[f"{recall}/high"] == 100 for recall in RECALLS)
    for wrong in (f"images = {images + 1}", f"texts = {texts - 1}"):
        with pytest.raises(ConfigError, match="but the set has"):
            evaluate(root, f'{records}[expected]\n{wrong}\n[retrieval]\ntext = "{text}"\n')


def test_tars_are_a_set(root):
    members = []
    for i in range(COUNT):
        about = json.dumps({"re_caption": f"The thing {i} in full. It is long."}).encode()
        members += [(f"{i:03}.png", picture(i)), (f"{i:03}.txt", b"noise"), (f"{i:03}.json", about)]
    write_tar(root / "0.tar", members[:15])
    write_tar(root / "1.tar", members[15:])
    text = '[records]\nformat = "tars"\npath = "{0..1}.tar"\n[retrieval]\ntext = "recaption"\n'
    results, evaluation = evaluate(root, text)
    metrics = results["retrieval/mine"]
    assert metrics["text_to_image/R@1"] == 100 and metrics["n_images"] == COUNT
    assert metrics["texts_filling_the_window"] == COUNT and "fill the text tower's 7 tokens" in evaluation.notes[0]


def test_a_mistake_costs_what_it_should_and_bad_pictures_are_named(root):
    write_coco(root / "x.json")
    (root / "pictures" / "04.png").write_bytes(b"broken")
    (root / "pictures" / "07.png").unlink()
    text = '[records]\nformat = "captions_json"\npath = "x.json"\nimages = "pictures"\n[retrieval]\n'
    results, evaluation = evaluate(root, text, FakeEncoder(COUNT, mistaken=[1]))
    metrics = results["retrieval/mine"]
    assert metrics["n_images"] == COUNT and metrics["bad_images"] == 2
    assert metrics["image_to_text/R@1"] == pytest.approx(100 * 9 / 12)
    assert metrics["image_to_text/R@1/low"] < 75 < metrics["image_to_text/R@1/high"]
    assert evaluation.bad_pictures() == [str(root / "pictures" / f"{i}.png") for i in ("04", "07")]
    assert "2 pictures cannot be read" in evaluation.notes[0]


def test_wrong_files_are_named(root):
    table = '[records]\nformat = "table"\npath = "x.csv"\nimage = "id"\n'
    with pytest.raises(FileNotFoundError, match=r"x\.csv"):
        evaluate(root, f"{table}[retrieval]\n")
    write_csv(root / "x.csv")
    with pytest.raises(FileNotFoundError, match="data_root"):  # no images folder, no ending
        evaluate(root, f'{table}[retrieval]\ntext = "text"\n')
    with pytest.raises(ConfigError, match="not inside"):
        evaluate(root, f'{table}image_file = "../../{{}}"\n[retrieval]\ntext = "text"\n')
    with pytest.raises(ConfigError, match="Did you mean retrieval.text"):
        evaluate(root, f'{table}[retrieval]\ntexts = "text"\n')
    with pytest.raises(ConfigError, match="measures nothing"):
        evaluate(root, table)
    with pytest.raises(ConfigError, match="these are babel_imagenet"):
        read_data_set("coco")


@pytest.fixture
def classes(root):
    """Folders a, b, c of pictures i with i % 3 = 0, 1, 2."""
    for i in range(COUNT):
        folder = root / "test" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02}.png").write_bytes(picture(i))
    return root


FOLDERS = '[records]\nformat = "folder"\npath = "test"\n'


def test_classification_by_folders_with_names_templates_and_languages(classes):
    names = {"a": "round things", "b": "flat things", "c": "odd things"}
    (classes / "names.json").write_text(json.dumps(names))
    (classes / "prompts.txt").write_text("# comment\nsome {}\n\na {}.\n")
    languages = {"DE": [[2, 0], ["odd things", "round things"]], "FR": [[1], ["flat things"]]}
    (classes / "languages.json").write_text(json.dumps(languages))
    (classes / "prompts.json").write_text(json.dumps({"DE": ["ein {}"]}))
    text = (
        f'{FOLDERS}[classification]\nclass_names = "names.json"\ntemplates = ["prompts.txt", "{{}}"]\n'
        'languages = "languages.json"\nlanguage_templates = "prompts.json"\n'
    )
    results, _ = evaluate(classes, text)
    mean = results.pop("classification/mine/mean")
    assert mean["top1"] == 100 and mean["chance"] == (50 + 100) / 2 and "top1/low" not in mean
    assert {name: (m["top1"], m["n_images"], m["n_classes"], m["n_templates"]) for name, m in results.items()} == {
        "classification/mine": (100, 12, 3, 3),
        "classification/mine/DE": (100, 8, 2, 1),
        "classification/mine/FR": (100, 4, 1, 3),
    }
    swapped = {"DE": [[0, 2], ["odd things", "round things"]]}
    (classes / "languages.json").write_text(json.dumps(swapped))
    assert evaluate(classes, text)[0]["classification/mine/DE"]["top1"] == 0
    (classes / "languages.json").write_text(json.dumps({"DE": [[0, 9], ["x", "y"]]}))
    with pytest.raises(ConfigError, match="beyond the 3"):
        evaluate(classes, text)
    for count in (2, 4):  # of four names it is not known which three are meant
        (classes / "names.txt").write_text("\n".join("wxyz"[:count]))
        with pytest.raises(ConfigError, match=f"there are {count} classes"):
            evaluate(classes, f'{FOLDERS}[classification]\nclass_names = "names.txt"\n')


def test_a_column_of_class_names(root):
    labels = ["round things", "flat things", "odd things"]
    lines = ["id,kind", *(f"{i:02},{labels[i % 3]}" for i in range(COUNT))]
    (root / "x.csv").write_text("\n".join(lines))
    records = 'format = "table"\npath = "x.csv"\nimages = "pictures"\nimage = "id"\nimage_file = "{}.png"\n'
    text = f'[records]\n{records}[classification]\nlabel = "kind"\n[knn]\nlabel = "kind"\nk = 1\n[knn.train]\n{records}'
    results, _ = evaluate(root, text)
    assert results["classification/mine"]["top1"] == results["knn/mine"]["top1"] == 100
    numbers = ["id,kind", *(f"{i:02},{i % 3}" for i in range(COUNT))]
    (root / "x.csv").write_text("\n".join(numbers))
    (root / "names.txt").write_text("\n".join(labels))
    named = text.replace('label = "kind"\n', 'label = "kind"\nclass_names = "names.txt"\n', 1)
    assert evaluate(root, named)[0]["classification/mine"]["top1"] == 100


def test_captions_in_many_languages(root):
    lines = [
        {
            "image/key": f"{i:02}",
            "de": {"caption": [f"Ding, thing {i}"]},
            "sw": {"caption": [f"thing {(i + 1) % COUNT}"]},
        }
        for i in range(COUNT)
    ]
    (root / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = '[records]\nformat = "table"\npath = "x.jsonl"\nimages = "pictures"\nimage = "image/key"\n'
    text += 'image_file = "{}.png"\n[retrieval]\ntext = "*/caption"\n'
    results, _ = evaluate(root, text)
    assert results["retrieval/mine/mean"]["chance"] == pytest.approx(100 / COUNT)
    scores = {name: metrics["image_to_text/R@1"] for name, metrics in results.items()}
    assert scores == {"retrieval/mine/de": 100, "retrieval/mine/sw": 0, "retrieval/mine/mean": 50}
    assert list(evaluate(root, f'{text}languages = ["sw"]\n')[0]) == ["retrieval/mine/sw", "retrieval/mine/mean"]
    with pytest.raises(ConfigError, match="xx"):
        evaluate(root, f'{text}languages = ["xx"]\n')


def test_probes_and_captioning_as_a_set(classes):
    train = '[records]\nformat = "folder"\npath = "test"\n'
    text = f'{train}[linear_probe.train]\nformat = "folder"\npath = "test"\n'
    text += '[knn]\nk = 1\n[knn.train]\nformat = "folder"\npath = "test"\n'
    results, _ = evaluate(classes, text, FakeEncoder(COUNT, has_captioner=False))
    assert results["knn/mine"]["top1"] == results["linear_probe/mine"]["top1"] == 100
    assert results["knn/mine"]["n_train"] == COUNT
    write_coco(classes / "x.json")
    captioning = '[records]\nformat = "captions_json"\npath = "x.json"\nimages = "pictures"\n[captioning]\n'
    results, evaluation = evaluate(classes, captioning, FakeEncoder(COUNT, has_captioner=False))
    assert results == {} and "no captioner" in evaluation.notes[0]
    metrics = evaluate(classes, captioning)[0]["captioning/mine"]
    assert metrics["loss"] == metrics["loss/low"] == 0.5 and metrics["n_texts"] == 36 and metrics["n_images"] == 12


def test_everything_that_is_built_in_can_be_read():
    sets = {name: read_data_set(name)[1] for name in built_in("sets")}
    counts = {name: (s.expected.images, s.expected.texts) for name, s in sets.items() if s.retrieval}
    assert counts["coco_karpathy_test"] == (5000, 25010) and counts["flickr30k_karpathy_test"] == (1000, 5000)
    assert all(s.description for s in sets.values())
    for name, count in (("imagenet_80", 80), ("imagenet_7", 7)):
        templates = read_templates((name,), "")
        assert len(set(templates)) == count and all("{}" in template for template in templates)
    assert set(read_templates(("imagenet_7",), "")) < set(read_templates(("imagenet_80",), ""))
    names = read_class_names("imagenet", "", [])
    assert len(names) == 1000 and names[0] == "tench" and names[-1] == "toilet paper"
    with pytest.raises(ConfigError, match="imagenet_80"):
        read_templates(("imagenet_90",), "/nowhere")


def test_classes_of_one_name_are_no_tie():
    """As an argmax: the first is predicted, so a picture of the second is wrong at 1 and right at 5."""
    classes = np.eye(3, dtype=np.float32)[[0, 1, 0, 2]]
    pictures = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    metrics = classification.classification_metrics(
        pictures, classes, np.asarray([0, 2, 1, 3]), ["missile", "cat", "missile", "dog"]
    )
    assert metrics["top1"] == 75 and metrics["top5"] == 100


def test_intervals_have_the_width_of_the_binomial():
    generator = np.random.default_rng(3)
    hits = np.sort(generator.random((400, 1)) < 0.3, axis=0).astype(np.float64)  # in order: every part must be drawn
    low, high = intervals(hits, np.ones((400, 1)))
    share = hits.mean()
    width = 2 * 1.96 * math.sqrt(share * (1 - share) / 400)
    assert low[0] < share < high[0] and (high - low)[0] == pytest.approx(width, rel=0.12)
    # Five captions of a picture that stand or fall together are one observation, not five.
    together = interval_metrics({"five": (5 * hits[:, 0], np.full(400, 5.0)), "one": (hits[:, 0], np.ones(400))})
    assert together["five/low"] == together["one/low"] and together["five/high"] == together["one/high"]
    assert interval_metrics({"one": (hits[:, 0], np.ones(400))})["one/low"] == together["one/low"]  # seeded


def test_the_probe_is_at_the_minimum_of_its_loss():
    """NumPy's gradient in float64 vanishes there, and not at half the solution."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(53, 6))  # 53 divides over no number of devices
    labels = generator.integers(0, 3, 53)
    regularisation = 0.1
    weights, bias = probes.fit(features.astype(np.float32), labels, 3, regularisation)

    def gradient(weights, bias):
        logits = features @ weights + bias
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        error = (share - np.eye(3)[labels]) / len(labels)
        return np.linalg.norm(features.T @ error + regularisation * weights) + np.linalg.norm(error.sum(axis=0))

    assert gradient(weights.astype(np.float64), bias.astype(np.float64)) < 2e-4
    assert gradient(weights / 2.0, bias / 2.0) > 1e-2


def test_probe_and_neighbours_on_clusters_and_against_numpy():
    generator = np.random.default_rng(1)
    centres = generator.normal(size=(4, 8))

    def draw(count, noise):
        labels = generator.integers(0, 4, count)
        rows = centres[labels] + noise * generator.normal(size=(count, 8))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels

    train, test = draw(203, 0.3), draw(61, 0.3)
    found = probes.linear_probe(train, test, 4)
    assert found["top1"] > 90 and found["n_train"] == 203 and found["top1/low"] <= found["top1"] <= found["top1/high"]
    train, test = draw(203, 1.0), draw(300, 1.0)
    expected = 0
    for query, label in zip(*test, strict=True):
        scores = train[0].astype(np.float64) @ query
        nearest = np.argsort(-scores)[:5]
        votes = np.bincount(train[1][nearest], np.exp(scores[nearest] / 0.07), 4)
        expected += int(votes.argmax() == label)
    found = probes.nearest_neighbours(train, test, 4, k=5)
    assert found["top1"] == pytest.approx(100 * expected / 300) and 50 < found["top1"] < 95
    # Unreadable pictures: not trained on; wrong when tested.
    train[0][:3], test[0][:100] = np.nan, np.nan
    found = probes.nearest_neighbours(train, test, 4, k=5)
    assert found["n_train"] == 200 and found["n_images"] == 300 and found["top1"] <= 100 * 200 / 300


def test_bleu_and_cider():
    references = [
        ["A dog runs on the green grass.", "a dog running"],
        ["Two red cars are parked near a big house!"],
    ] * 4
    captions = ["a dog runs on the green grass", "two red cars are parked near a big house"] * 4
    perfect = bleu_and_cider(captions, references)
    assert perfect["BLEU-4"] == pytest.approx(100) and perfect["CIDEr"] > 100
    worse = bleu_and_cider(["a dog runs on grass that is green", *captions[1:]], references)
    assert worse["BLEU-4/low"] < worse["BLEU-4"] < 100 and worse["CIDEr"] < perfect["CIDEr"]
    nothing = bleu_and_cider(["something else entirely here"] * 8, references)
    assert nothing["BLEU-4"] < 1 and nothing["CIDEr"] < 1
    assert words("Don't stop, it's 3.5 km!") == "don't stop it's 3 5 km"
