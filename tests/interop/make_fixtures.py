"""Makes `fixtures/`: a tiny CLIPS-type model with random weights and what open_clip_torch computes with it.

    python -m tests.interop.make_fixtures BERT_VOCABULARY

Run it where torch, open_clip_torch 3.3.0, transformers and safetensors are installed; the tests need none of them. The
vocabulary is the released one with [bos] and [eos]; a small part of it is enough for the tests and is kept.
"""

import argparse
import json
import os

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file

from clips_jax.models.image_tower import sincos_positions

FOLDER = os.path.join(os.path.dirname(__file__), "fixtures")
SIZE, PATCH, WIDTH, TEXT_WIDTH, JOINT, LENGTH = 16, 8, 32, 32, 16, 80
TEXTS = [
    "",
    "a photo of a cat",
    "A Photo of a CAF\u00c9 &amp;amp; cr\u00e8me br\u00fbl\u00e9e",
    "&lt;b&gt;bold&lt;/b&gt;   and\twhite\nspace\u00a0here",
    "\u7ea2\u8272\u7684\u6c7d\u8f66 and \u6771\u4eac\u30bf\u30ef\u30fc",
    "x" * 101 + " is one word too long, " + "y" * 100 + " is not",
    "the red car is in the photo of the cat " * 20,
    "[CLS] in a text, [bos] too, don\u2019t \u201cquote\u201d sch\u00c3\u00b6n",
    "\U0001f600 emoji, \ufffd and a \u0000 control \u200b character",
]
# Pieces that the texts need beyond single characters; every character of the vocabulary's first 1,000 entries is kept.
WORDS = "photo cat red car is in the of and one word too long text don quote caf creme bold white space here a".split()


def model_config(vocab_size: int) -> dict:
    """The released architecture, tiny."""
    norm = {"eps": 1e-6}
    vision = {"image_size": SIZE, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": PATCH, "no_ln_pre": True}
    vision |= {"pool_type": "avg", "final_ln_after_pool": True, "norm_kwargs": norm, "mlp_ratio": 1.5}
    text = {"context_length": LENGTH, "vocab_size": vocab_size, "hf_tokenizer_name": "bert-base-uncased"}
    text |= {"tokenizer_mode": "clips", "width": TEXT_WIDTH, "heads": 2, "layers": 1, "pool_type": "last"}
    text |= {"no_causal_mask": True, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": norm, "mlp_ratio": 1.5}
    return {"embed_dim": JOINT, "vision_cfg": vision, "text_cfg": text}


def pictures() -> list[np.ndarray]:
    """Noise of several shapes, and pictures with almost no variance, where a wrong LayerNorm shows most."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, shape, np.uint8) for shape in ((16, 16, 3), (23, 40, 3), (50, 9, 3))]
    flat = [np.full((20, 20, 3), grey, np.uint8) + rng.integers(0, 2, (20, 20, 3), np.uint8) for grey in (0, 117, 254)]
    return noise + flat


def small_vocabulary(path: str) -> list[str]:
    """[PAD] … and the pieces that `TEXTS` are made of, in the order of the whole vocabulary."""
    with open(path, encoding="utf-8") as file:
        whole = [line.rstrip("\n") for line in file]
    characters = {c for text in TEXTS for c in text.lower()}
    kept = [p for p in whole[:103] if p.startswith("[") and not p.startswith("[unused")]
    characters |= set("abcdefghijklmnopqrstuvwxyz")
    singles = [p for p in whole if p not in kept and p.removeprefix("##") in characters]
    return kept + singles + [p for p in whole if p in WORDS and p not in singles]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("vocabulary")
    vocabulary = small_vocabulary(parser.parse_args().vocabulary)
    os.makedirs(FOLDER, exist_ok=True)
    config = model_config(len(vocabulary) + 5)  # more rows than pieces, as the released models have
    torch.manual_seed(0)
    model = CLIP(**json.loads(json.dumps(config))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            noise = scale * torch.randn_like(parameter)
            parameter.copy_(parameter + noise if parameter.ndim < 2 else noise)
            if "positional" in name and "visual" in name:
                parameter[0], parameter[1:] = 0, torch.from_numpy(sincos_positions(SIZE // PATCH, WIDTH))
        model.logit_scale.fill_(2.5)
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(weights, os.path.join(FOLDER, "open_clip_model.safetensors"))
    preprocess = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    preprocess |= {"interpolation": "bilinear", "resize_mode": "squash"}
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    tokenizer_config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "tokenize_chinese_chars": True}
    tokenizer_config |= {"strip_accents": None, **special, "bos_token": "[bos]", "eos_token": "[eos]"}
    for name, content in (
        ("open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess}),
        ("tokenizer_config.json", tokenizer_config),
    ):
        with open(os.path.join(FOLDER, name), "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
    with open(os.path.join(FOLDER, "vocab.txt"), "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{piece}\n" for piece in vocabulary)
    write_expected()


def write_expected() -> None:
    """What open_clip makes of the folder, as a user would call it."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{FOLDER}")
    ids = open_clip.get_tokenizer(f"local-dir:{FOLDER}")(TEXTS)
    captured = {}
    model.eval().visual.transformer.register_forward_hook(lambda *args: captured.update(image_tokens=args[2]))
    model.ln_final.register_forward_hook(lambda *args: captured.update(text_tokens=args[2]))
    found = pictures()
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.fromarray(picture)) for picture in found])
        image, text = model.encode_image(pixels), model.encode_text(ids)
        logits = model.get_logits(pixels, ids)[0]
    np.savez_compressed(
        os.path.join(FOLDER, "expected.npz"),
        **{f"picture_{i}": picture for i, picture in enumerate(found)},
        pixels=pixels.numpy(),
        token_ids=ids.numpy().astype(np.int32),
        image_features=image.numpy(),
        text_features=text.numpy(),
        image_embeddings=torch.nn.functional.normalize(image, dim=-1).numpy(),
        text_embeddings=torch.nn.functional.normalize(text, dim=-1).numpy(),
        image_tokens=captured["image_tokens"].numpy(),
        text_tokens=captured["text_tokens"][:2].numpy(),
        logits=logits.numpy(),
        texts=np.array(json.dumps(TEXTS)),
    )


if __name__ == "__main__":
    main()
