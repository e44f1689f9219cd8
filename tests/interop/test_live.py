"""The live comparison: runs where open_clip_torch (3.3.0), timm and transformers are installed beside the package.

They are no requirement, so elsewhere this file is skipped; the fixtures of `test_import.py` are always checked.
"""

import json
import os
import random
import shutil

import numpy as np
import pytest

from clips_jax.embed import main as embed
from clips_jax.export.__main__ import FORMATS, export
from clips_jax.export.verify import TEXTS, verify
from clips_jax.interop.state_dict import normalize_keys
from clips_jax.interop.weights import find_weights, read_weights
from clips_jax.models.image_tower import sincos_positions
from clips_jax.pretrained import load
from tests.interop.test_export import tokenizer, trained  # noqa: F401 (fixtures)
from tests.interop.test_import import FIXTURES, VOCABULARY

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("timm")
pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("whose", ["imported", "trained"])
def test_every_export_computes_the_same_there(whose, kind, request, tmp_path):
    model = load(FIXTURES, exact=True) if whose == "imported" else request.getfixturevalue("trained")
    export(model, kind, str(tmp_path / "out"))
    found = verify(model, kind, str(tmp_path / "out"))
    print(whose, kind, [(d.what, f"{d.largest:.1e}") for d in found])
    assert found and all(difference.fine for difference in found)


def test_verify_sees_a_changed_weight(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = load(FIXTURES, exact=True)
    export(model, "open_clip", str(tmp_path / "out"))
    path = str(tmp_path / "out" / "open_clip_model.safetensors")
    weights = load_file(path)
    weights["ln_final.weight"] = weights["ln_final.weight"] + 0.01 * np.arange(32, dtype=np.float32)
    save_file(weights, path)
    assert [d.what for d in verify(model, "open_clip", str(tmp_path / "out")) if not d.fine][:1] == ["text embeddings"]


# Head widths 80 and 72, a picture that patches do not fill, other GELUs than usual, text keys under "text.", every way
# of keeping weights, learned and sin-cos positions.
SHAPES = {
    "h80": (dict(image_size=56, patch_size=14, width=160, head_width=80), dict(width=128, heads=2), "module.", "bin"),
    "h72": (dict(image_size=32, patch_size=16, width=144, head_width=72), dict(width=64, heads=4), "text.", "hf"),
    "crop": (
        dict(image_size=50, patch_size=14, width=96, head_width=32),
        dict(width=96, heads=3),
        "module.text.",
        "pt",
    ),
    "gelu": (
        dict(image_size=32, patch_size=8, width=64, head_width=16, act_kwargs={"approximate": "tanh"}),
        dict(width=64, heads=2, act_kwargs=None),
        "",
        "safetensors",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_models_of_other_shapes_embed_the_same_from_the_command_line(name, positions, tmp_path):
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    vision, text, prefix, form = SHAPES[name]
    with open(os.path.join(FIXTURES, "open_clip_config.json"), encoding="utf-8") as file:
        content = json.load(file)
    content["model_cfg"]["vision_cfg"] |= vision
    content["model_cfg"]["text_cfg"] |= text
    torch.manual_seed(len(name) + len(positions))
    kind = open_clip.CustomTextCLIP if prefix.endswith("text.") else open_clip.CLIP
    theirs = kind(**json.loads(json.dumps(content["model_cfg"]))).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(parameter + 0.3 * noise if parameter.ndim < 2 else parameter.shape[-1] ** -0.5 * noise)
            if key == "visual.positional_embedding" and positions == "sincos":
                grid = vision["image_size"] // vision["patch_size"]
                parameter[0], parameter[1:] = 0, torch.from_numpy(sincos_positions(grid, vision["width"]))
        theirs.logit_scale.fill_(2.7)
    folder = tmp_path / "model"
    folder.mkdir()
    for file in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(os.path.join(FIXTURES, file), folder)
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    outer = prefix.removesuffix("text.")
    state = {outer + key: value.contiguous() for key, value in theirs.state_dict().items()}
    state[f"{outer}logit_scale"] = state[f"{outer}logit_scale"].reshape(1)
    if form in ("safetensors", "hf"):
        save_file(state, folder / {"hf": "model.safetensors", "safetensors": "open_clip_model.safetensors"}[form])
    else:
        whole = {"state_dict": state, "epoch": 3} if form == "pt" else state
        torch.save(whole, folder / {"bin": "open_clip_pytorch_model.bin", "pt": "epoch_3.pt"}[form])

    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 4), np.uint8)).resize((90, 61), Image.Resampling.BICUBIC)
    rgb, exif = smooth.convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    rgb.save(tmp_path / "in" / "a.jpg", exif=exif)
    rgb.convert("CMYK").save(tmp_path / "in" / "b.jpg")
    smooth.save(tmp_path / "in" / "c.png")
    rgb.convert("P").save(tmp_path / "in" / "d.gif")
    rgb.convert("L").save(tmp_path / "in" / "e.webp")
    for grey in (0, 128, 254):
        nearly = np.full((20, 20, 3), grey, np.uint8) + rng.integers(0, 2, (20, 20, 3), np.uint8)
        Image.fromarray(nearly).save(tmp_path / "in" / f"grey{grey}.png")
    (tmp_path / "texts.txt").write_text("\n".join(text.replace("\n", " ") for text in TEXTS) + "\n", encoding="utf-8")
    arguments = ["--images", tmp_path / "in", "--texts", tmp_path / "texts.txt", "--positions", positions]
    embed(["--model", str(folder), "--out", str(tmp_path / "ours.npz"), *map(str, arguments)])

    size = (vision["image_size"],) * 2
    preprocess = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**content["preprocess_cfg"] | {"size": size}), is_train=False
    )
    tokenize = open_clip.tokenizer.HFTokenizer(str(folder), context_length=80, tokenizer_mode="clips")
    with np.load(tmp_path / "ours.npz") as ours, torch.no_grad():
        pictures = [preprocess(Image.open(tmp_path / "in" / name)) for name in sorted(os.listdir(tmp_path / "in"))]
        ids = tokenize(ours["texts"].tolist())
        assert np.array_equal(ours["token_ids"], ids.numpy())
        image = theirs.encode_image(torch.stack(pictures), normalize=True).numpy()
        np.testing.assert_allclose(ours["image_embeddings"], image, atol=5e-6)
        np.testing.assert_allclose(ours["text_embeddings"], theirs.encode_text(ids, normalize=True).numpy(), atol=5e-6)
    export(load(str(folder), positions=positions), "open_clip", str(tmp_path / "out"))
    back, wanted = (normalize_keys(read_weights(find_weights(str(f)))) for f in (tmp_path / "out", folder))
    assert back.keys() == wanted.keys()
    table = "visual.positional_embedding"
    assert all(np.array_equal(back[key], wanted[key]) for key in wanted if key != table or positions == "learned")
    np.testing.assert_allclose(back[table], wanted[table], atol=1e-5)


def test_torch_weights_and_prefixes_are_read(tmp_path):
    import torch

    model = load(FIXTURES)
    export(model, "open_clip", str(tmp_path / "out"))
    os.remove(tmp_path / "out" / "open_clip_model.safetensors")
    os.remove(tmp_path / "out" / "clips_jax.json")
    path = tmp_path / "out" / "open_clip_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save({"state_dict": {f"module.{k}": v.reshape(1) if v.ndim == 0 else v for k, v in state.items()}}, path)
    back = load(str(tmp_path / "out"))
    np.testing.assert_array_equal(back.params["text"]["head"]["kernel"], model.params["text"]["head"]["kernel"])
    torch.save({"state_dict": state, "evil": os.system}, path)
    with pytest.raises(ValueError, match="weights only"):
        load(str(tmp_path / "out"))


@pytest.mark.skipif(not os.path.isfile(VOCABULARY), reason="the whole vocabulary is not there")
def test_thousands_of_texts_get_the_token_ids_of_the_whole_vocabulary(tmp_path):
    from clips_jax.data.wordpiece import WordPieceTokenizer
    from clips_jax.export.hf_tokenizer import write_tokenizer

    ours = WordPieceTokenizer(VOCABULARY)
    write_tokenizer(ours, str(tmp_path))
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=80, tokenizer_mode="clips")
    rng = random.Random(0)
    words = ours.vocabulary()
    ranges = [(32, 127), (0xA0, 0x250), (0x300, 0x340), (0x370, 0x500), (0x4E00, 0x4F00), (0x1F600, 0x1F640), (0, 32)]
    texts = [
        "".join(rng.choice([" ", ", ", ""]) + rng.choice(words) for _ in range(rng.randrange(40))) for _ in range(3000)
    ]
    for _ in range(3000):
        texts.append("".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(40))))
    assert np.array_equal(ours.encode(texts, 80), theirs(texts).numpy())
