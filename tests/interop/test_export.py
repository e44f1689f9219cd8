"""Exports read back bit-equal, tokenizers hand over their ids, and what a format cannot hold is refused.

What the other libraries compute with an export is compared by `test_live.py` and `clips_jax.export --verify`.
"""

import dataclasses
import filecmp
import json
import os
import random

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from clips_jax.config import ConfigError, MeshConfig
from clips_jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece
from clips_jax.encode import Encoder
from clips_jax.export.__main__ import export
from clips_jax.export.error import CannotExport
from clips_jax.export.hf_tokenizer import fast_tokenizer
from clips_jax.models.clips import Clips
from clips_jax.preprocessing import Preprocessing
from clips_jax.pretrained import Made, Pretrained, load
from clips_jax.sharding import make_mesh
from clips_jax.train_step import init_params
from tests import small
from tests.interop.test_import import FIXTURES

WORDS = "a photo of the red car and blue cat on green grass near an old stone house with two windows 3.5 m high".split()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")
    rng = random.Random(0)
    corpus = [" ".join(rng.choices(WORDS, k=12)) + ", Caf\u00e9 \u00dc\u00df!" for _ in range(400)]
    train_sentencepiece(corpus, path, 200)
    return SentencePieceTokenizer(path)


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A model of ours in the released architecture, with a captioner."""
    base = small.config(depth=1)
    image = dataclasses.replace(base.model.image, class_token=True)
    text = dataclasses.replace(base.model.text, mask_padding=False, vocab_size=tokenizer.vocab_size)
    views = {name: dataclasses.replace(view, length=text.length) for name, view in base.objective.views.items()}
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, image=image, text=text),
        objective=dataclasses.replace(base.objective, views=views),
        mesh=MeshConfig(),
    )
    model = Clips(config.model, config.objective, tokenizer.special.bos)
    params = jax.jit(lambda key: init_params(config, model, key))(jax.random.key(0))
    mesh, reading = make_mesh(config), Preprocessing.of_training(16)
    encoder = Encoder(config, model, tokenizer, mesh, params, reading)
    return Pretrained("nowhere", Made(config, 7, 56), config, model, tokenizer, reading, mesh, params, encoder)


def changed(model, **image):
    settings = dataclasses.replace(model.config.model, image=dataclasses.replace(model.config.model.image, **image))
    return dataclasses.replace(model, config=dataclasses.replace(model.config, model=settings))


@pytest.mark.parametrize("kind", ["open_clip", "clips_jax"])
def test_an_export_read_back_is_the_same_model(trained, kind, tmp_path):
    export(trained, kind, str(tmp_path / "out"))
    back = load(str(tmp_path / "out"))
    small.assert_trees_close(back.params, trained.params, rtol=0, atol=0)
    assert (back.step, back.samples_seen, back.preprocessing) == (7, 56, trained.preprocessing)
    assert back.config.model == trained.config.model
    texts = ["a red car", "", "the old stone house " * 9]
    assert np.array_equal(back.encoder.token_ids(texts), trained.encoder.token_ids(texts))


def test_an_imported_model_exports_to_the_same_bytes_of_weights(tmp_path):
    export(load(FIXTURES, positions="learned"), "open_clip", str(tmp_path / "out"))
    ours, theirs = (load_file(os.path.join(f, "open_clip_model.safetensors")) for f in (tmp_path / "out", FIXTURES))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) and ours[key].shape == theirs[key].shape for key in ours)
    assert filecmp.cmp(tmp_path / "out" / "vocab.txt", os.path.join(FIXTURES, "vocab.txt"), shallow=False)


def test_the_config_says_what_open_clip_must_be_told(trained, tmp_path):
    export(trained, "open_clip", str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    fork = json.loads((tmp_path / "out" / "open_clip_config.clips_fork.json").read_text())
    text = config["model_cfg"]["text_cfg"]
    assert text["tokenizer_mode"] == "clips" and text["hf_tokenizer_name"]
    assert "tokenizer_mode" not in fork["model_cfg"]["text_cfg"]
    assert config["model_cfg"]["vision_cfg"]["pos_embed_type"] == "learnable"


def test_the_card_says_what_is_in_the_folder_and_what_was_measured(trained, tmp_path):
    (tmp_path / "run").mkdir()
    model = dataclasses.replace(trained, path=str(tmp_path / "run"))
    for name, number in (("results.json", 37.5), ("sets.json", 62.5)):
        scores = {"knn/cifar10": {"top1": number, "n_images": 8, "n_classes": 2, "n_train": 9, "k": 3}}
        content = {"results": scores, "samples_seen": 48, "checkpoint_step": 6}
        (tmp_path / "run" / name).write_text(json.dumps(content))
    cards = {}
    for kind in ("open_clip", "timm", "vit", "clips_jax"):
        export(model, kind, str(tmp_path / kind))
        cards[kind] = (tmp_path / kind / "README.md").read_text()
        assert all(word in cards[kind] for word in ("Samples seen: 56", '"joint_dim": 24', "37.5", "62.5", "(step 6)"))
        assert (tmp_path / kind / "sets.json").is_file()
        assert ("captioner (in" in cards[kind]) == (kind == "open_clip")
        assert ("text tower" in cards[kind]) == (kind in ("open_clip", "clips_jax"))
    assert (tmp_path / "open_clip" / "clips_jax_captioner.safetensors").is_file()


@pytest.mark.parametrize(
    "kind, change, reason",
    [
        ("open_clip", dict(class_token=False), "no class token"),
        ("open_clip", dict(pool="concatenate"), "pool"),
        ("timm", dict(pool="concatenate"), "pool"),
        ("vit", dict(class_token=False), "no class token"),
        ("vit", dict(pool="concatenate"), "(?s)^(?!.*timm).*pool"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(trained, kind, change, reason, tmp_path):
    with pytest.raises(CannotExport, match=reason):
        export(changed(trained, **change), kind, str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_masked_padding_is_refused_by_open_clip(trained, tmp_path):
    text = dataclasses.replace(trained.config.model.text, mask_padding=True)
    settings = dataclasses.replace(trained.config, model=dataclasses.replace(trained.config.model, text=text))
    with pytest.raises(CannotExport, match="padding is masked"):
        export(dataclasses.replace(trained, config=settings), "open_clip", str(tmp_path / "out"))


def test_a_parameter_without_a_place_is_refused(trained, tmp_path):
    image = trained.params["image"] | {"registers": np.zeros(3, np.float32)}
    with pytest.raises(CannotExport, match="image/registers"):
        export(
            dataclasses.replace(trained, params=trained.params | {"image": image}), "open_clip", str(tmp_path / "out")
        )


def test_a_folder_with_something_in_it_is_left_alone(trained, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(CannotExport, match="not empty"):
        export(trained, "timm", str(tmp_path))
    assert os.listdir(tmp_path) == ["mine"]


def test_timm_holds_a_tower_without_class_token(trained, tmp_path):
    params = trained.params | {"image": {k: v for k, v in trained.params["image"].items() if k != "class_token"}}
    export(dataclasses.replace(changed(trained, class_token=False), params=params), "timm", str(tmp_path / "out"))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "cls_token" not in tensors and tensors["pos_embed"].shape == (1, 4, 32)


def test_thousands_of_strings_get_the_ids_of_sentencepiece(tokenizer):
    fast, _ = fast_tokenizer(tokenizer)
    rng = random.Random(1)
    alphabet = "abcdefghijklmnop qrstuvwxyz  ABCXYZ.,!?'-0123456789 \t\n"
    alphabet += "\u00e9\u00fc\u00df\u0130\ufb01\u2460\u00bd\uff21\u3000\u00a0\u4e2d\u6587\U0001f600"
    texts = ["", " ", "  two  spaces ", "a" * 300, "</s> a <cls> car <s>", "<unk> <pad>x", "[CLS] [PAD]"]
    texts += [" ".join(rng.choices(WORDS, k=rng.randrange(1, 12))) for _ in range(2000)]
    texts += ["".join(rng.choices(alphabet, k=rng.randrange(1, 40))) for _ in range(3000)]
    length = 512
    ours = tokenizer.encode(texts, length)
    for text, row in zip(texts, ours, strict=True):
        pieces = fast.encode(text, add_special_tokens=False).ids
        assert row[1 : 1 + len(pieces)].tolist() == pieces, text
        assert row[1 + len(pieces)] == tokenizer.special.eos, text


def test_a_step_is_for_workdirs():
    with pytest.raises(ConfigError, match="step"):
        load(FIXTURES, step=3)


def test_bpe_models_are_refused(tmp_path):
    import sentencepiece

    path = str(tmp_path / "bpe")
    texts = iter([" ".join(WORDS)] * 50)
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=texts, model_prefix=path, vocab_size=60, model_type="bpe", minloglevel=2
    )
    with pytest.raises(CannotExport, match="unigram"):
        fast_tokenizer(SentencePieceTokenizer(f"{path}.model"))
