"""The live comparison: runs where open_clip_torch (3.3.0), timm and transformers are installed beside the package.

They are no requirement, so elsewhere this file is skipped; the fixtures of `test_import.py` are always checked.
"""

import os
import random

import numpy as np
import pytest

from clips_jax.export.__main__ import FORMATS, export
from clips_jax.export.verify import verify
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
