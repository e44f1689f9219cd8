"""Imported models compute what open_clip_torch computes; the fixtures are its numbers (`make_fixtures.py`)."""

import dataclasses
import io
import json
import math
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from clips_jax.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from clips_jax.data.wordpiece import WordPieceTokenizer
from clips_jax.interop.open_clip_config import model_from
from clips_jax.interop.state_dict import WrongWeights, from_state_dict, normalize_keys, state_shapes, to_state_dict
from clips_jax.interop.weights import read_weights
from clips_jax.models.clips import Clips
from clips_jax.models.sizes import SIZES
from clips_jax.pretrained import load

FIXTURES = os.path.join(os.path.dirname(__file__), "fixtures")
WEIGHTS = os.path.join(FIXTURES, "open_clip_model.safetensors")
VOCABULARY = os.path.join(os.path.dirname(__file__), "../../../shared/data/bert_vocab_bos_eos.txt")


@pytest.fixture(scope="module")
def expected():
    with np.load(os.path.join(FIXTURES, "expected.npz")) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    return load(FIXTURES, exact=True)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FIXTURES, tmp_path / "model")


def state():
    return normalize_keys(load_file(WEIGHTS))


def config():
    with open(os.path.join(FIXTURES, "open_clip_config.json"), encoding="utf-8") as file:
        return json.load(file)


def largest(a, b):
    return np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()


def files(expected):
    found = []
    for i in range(len(expected["pixels"])):
        file = io.BytesIO()
        Image.fromarray(expected[f"picture_{i}"]).save(file, "PNG")
        found.append(file.getvalue())
    return found


def pixels(model, expected):
    return np.stack([model.preprocessing.pixels(file) for file in files(expected)])


def test_pictures_are_read_as_there(model, expected):
    ours = model.preprocessing.normalize(jnp.asarray(pixels(model, expected)))
    assert largest(ours, expected["pixels"].transpose(0, 2, 3, 1)) <= 1e-6


def test_token_ids_are_those_of_open_clip(model, expected):
    texts = json.loads(str(expected["texts"]))
    ids = model.encoder.token_ids(texts)
    assert (ids == expected["token_ids"]).all()
    special = model.tokenizer.special
    assert ids[0].tolist() == [special.bos, special.eos] + 77 * [special.pad] + [special.cls]


def test_embeddings_are_those_of_open_clip(model, expected):
    images = pixels(model, expected)
    assert (
        largest(model.encoder.images(lambda rows: images[list(rows)], len(images)), expected["image_embeddings"])
        <= 5e-6
    )
    texts = model.encoder.texts(json.loads(str(expected["texts"])))
    assert largest(texts, expected["text_embeddings"]) <= 5e-6


def features(params, settings, expected, objective):
    """Features, token outputs and logits of the two towers, as open_clip has them."""
    clips = Clips(settings, objective, bos=0)
    images = jnp.asarray(expected["pixels"].transpose(0, 2, 3, 1))
    tokens = jnp.asarray(expected["token_ids"])
    with jax.default_matmul_precision("highest"):
        image, image_tokens = jax.jit(lambda p, x: clips.apply({"params": p}, x, method=lambda m, x: m.image(x)))(
            params, images
        )
        text, text_tokens = jax.jit(lambda p, *x: clips.apply({"params": p}, *x, method=lambda m, *x: m.text(*x)))(
            params, tokens, tokens != 0
        )
    scaled = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (np.asarray(image), np.asarray(text))]
    logits = np.exp(params["logit_scale"]) * scaled[0] @ scaled[1].T
    return dict(
        image_features=image, text_features=text, image_tokens=image_tokens, text_tokens=text_tokens[:2], logits=logits
    )


def test_features_tokens_and_logits_are_those_of_open_clip(model, expected):
    found = features(model.params, model.config.model, expected, model.config.objective)
    for name, tolerance in dict(
        image_features=2e-5, text_features=2e-5, image_tokens=1e-4, text_tokens=1e-4, logits=1e-4
    ).items():
        assert largest(found[name], expected[name]) <= tolerance, name


@pytest.mark.parametrize("tower, name", [("image", "image_features"), ("text", "text_features")])
def test_the_tolerance_tells_one_gelu_from_the_other(model, expected, tower, name):
    part = getattr(model.config.model, tower)
    stack = dataclasses.replace(part.transformer, gelu="tanh" if tower == "image" else "exact")
    wrong = dataclasses.replace(model.config.model, **{tower: dataclasses.replace(part, transformer=stack)})
    assert largest(features(model.params, wrong, expected, model.config.objective)[name], expected[name]) > 2e-5


def test_there_and_back_is_bit_equal():
    settings, _ = model_from(state(), config(), learned_positions=True)
    back = to_state_dict(from_state_dict(state(), settings, with_bias=False), settings)
    assert back.keys() == state().keys()
    assert all(np.array_equal(back[key], array) and back[key].shape == array.shape for key, array in state().items())


def test_a_sincos_table_is_computed_within_the_tolerance():
    settings, _ = model_from(state(), config(), learned_positions=False)
    params = from_state_dict(state(), settings, with_bias=False)
    assert "positions" not in params["image"]
    key = "visual.positional_embedding"
    assert largest(to_state_dict(params, settings)[key], state()[key]) <= 1e-5


def test_other_spellings_of_the_keys():
    spelt = {}
    for key, array in load_file(WEIGHTS).items():
        text = not key.startswith(("visual.", "logit_scale"))
        spelt[f"module.{'text.' if text else ''}{key}"] = array.reshape(1) if key == "logit_scale" else array
    assert {k: v.shape for k, v in normalize_keys(spelt).items()} == {k: v.shape for k, v in state().items()}
    with pytest.raises(WrongWeights, match="two tensors"):
        normalize_keys(spelt | {"positional_embedding": spelt["module.text.positional_embedding"]})


def test_every_unknown_and_missing_key_is_listed():
    weights = state()
    del weights["ln_final.bias"], weights["visual.transformer.resblocks.1.ln_1.weight"]
    weights |= {"visual.ln_pre.weight": np.zeros(32, np.float32), "text_decoder.x": np.zeros(3, np.float32)}
    settings, _ = model_from(weights, config(), learned_positions=False)
    with pytest.raises(WrongWeights) as error:
        from_state_dict(weights, settings, with_bias=False)
    for key in ("ln_final.bias", "resblocks.1.ln_1.weight", "visual.ln_pre.weight", "text_decoder.x"):
        assert key in str(error.value)


def test_nan_is_named_and_not_embedded_with(folder):
    weights = load_file(WEIGHTS)
    weights["ln_final.bias"][3], weights["visual.positional_embedding"][1, 2] = np.inf, np.nan
    save_file(weights, folder / "open_clip_model.safetensors")
    for positions in ("", "learned"):
        with pytest.raises(WrongWeights, match=r"damaged[^:]*:\n  ln_final.bias\n  visual.positional_embedding"):
            load(str(folder), positions=positions)


@pytest.mark.parametrize("change", [{"vision_cfg": 5}, {"text_cfg": {"norm_kwargs": [1]}}])
def test_a_config_of_another_form_is_named(folder, change):
    file = config()
    file["model_cfg"] |= change
    (folder / "open_clip_config.json").write_text(json.dumps(file))
    with pytest.raises(WrongWeights, match="open_clip_config.json has another form"):
        load(str(folder))
    (folder / "open_clip_config.json").write_text(json.dumps(config()))
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json is not JSON"):
        load(str(folder))


def test_positions_that_are_not_sincos_must_be_said_to_be_learned(folder, expected):
    weights = load_file(WEIGHTS)
    weights["visual.positional_embedding"][3, 5] += 2e-5
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(WrongWeights, match="--positions learned"):
        load(str(folder))
    learned = load(str(folder), positions="learned")
    table = learned.params["image"]["positions"]
    assert np.array_equal(table, weights["visual.positional_embedding"])


@pytest.mark.parametrize(
    "part, change, named",
    [
        ("text_cfg", {"no_causal_mask": False}, "text_cfg.no_causal_mask"),
        ("text_cfg", {"norm_kwargs": {"eps": 1e-5}}, "text_cfg.norm_kwargs.eps"),
        ("vision_cfg", {"pool_type": "tok"}, "vision_cfg.pool_type"),
        ("vision_cfg", {"ls_init_value": 0.1}, "vision_cfg.ls_init_value"),
        ("text_cfg", {"context_length": 77}, "text_cfg.context_length"),
    ],
)
def test_another_architecture_is_refused_by_name(part, change, named):
    file = config()
    file["model_cfg"][part] |= change
    with pytest.raises(WrongWeights, match=named):
        model_from(state(), file, learned_positions=False)


@pytest.mark.parametrize(
    "size, patch, image_size, heads, tensors, parameters",
    [
        ("Ti", 16, 160, 3, 300, 17_077_633),
        ("L", 14, 224, 16, 444, 414_247_425),
        ("L", 14, 336, 16, 444, 414_575_105),
        ("H", 14, 224, 16, 684, 968_284_161),
    ],
)
def test_the_released_models_are_recognised_by_their_weights(size, patch, image_size, heads, tensors, parameters):
    shape = SIZES[size]
    built = ModelConfig(
        ImageTowerConfig(shape.image, image_size, patch, class_token=True),
        TextTowerConfig(shape.text, 32_000, 80, mask_padding=False),
        shape.joint_dim,
    )
    shapes = state_shapes(built, with_bias=False)
    assert len(shapes) == tensors and sum(math.prod(s) for s in shapes.values()) == parameters
    weights = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    assert shape.image.heads == heads and model_from(weights, None, learned_positions=False)[0] == built


def test_a_torch_file_without_torch_says_what_to_do(folder):
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0:
        pytest.skip("PyTorch is installed")
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"PK")
    os.remove(folder / "open_clip_model.safetensors")
    with pytest.raises(WrongWeights, match="pip install"):
        load(str(folder))


def test_a_damaged_weight_file_is_named(folder):
    path = folder / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WrongWeights, match="open_clip_model.safetensors"):
        read_weights(str(path))


def test_a_folder_without_a_tokenizer_says_so(folder):
    os.remove(folder / "vocab.txt")
    with pytest.raises(FileNotFoundError, match="tokenizer travels with it"):
        load(str(folder))


def test_wordpiece_gives_each_token_its_sentence_and_reads_back():
    tokenizer = WordPieceTokenizer(FIXTURES)
    tokens, sentences = tokenizer.tokenize(["the cat. the red car is here! a photo"], 16)
    kept = tokens[0] != tokenizer.special.pad
    assert sentences[0][kept].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2]
    assert tokenizer.decode(tokenizer.encode(["the red car"], 12)[0]) == "the red car"


@pytest.mark.skipif(not os.path.isfile(VOCABULARY), reason="the whole vocabulary is not there")
def test_the_released_vocabulary():
    tokenizer = WordPieceTokenizer(VOCABULARY)
    assert tokenizer.vocab_size == 30522
    assert dataclasses.astuple(tokenizer.special) == (0, 1, 2, 101)
    ids = tokenizer.encode(["", "x" * 101, "the " * 100], 80)
    assert ids[0].tolist() == [1, 2] + 77 * [0] + [101]
    assert ids[1].tolist() == [1, 100, 2] + 76 * [0] + [101]
    assert ids[2].tolist() == [1] + 77 * [1996] + [2, 101]
