"""Our models as an OpenCLIP folder that `open_clip_torch` 3.3.0 loads unmodified."""

import dataclasses
import json
import os
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from clips_jax.config import ImageTowerConfig, TextTowerConfig, TokenizerConfig, TransformerConfig, to_dict
from clips_jax.data.wordpiece import WordPieceTokenizer
from clips_jax.export.error import CannotExport
from clips_jax.export.hf_tokenizer import write_tokenizer
from clips_jax.interop.state_dict import from_state_dict, to_state_dict
from clips_jax.models.layers import LAYER_NORM_EPSILON
from clips_jax.preprocessing import Preprocessing
from clips_jax.pretrained import CAPTIONER_WEIGHTS, OPEN_CLIP_CONFIG, OWN_CONFIG, Pretrained

SAFETENSORS = "open_clip_model.safetensors"
TORCH = "open_clip_pytorch_model.bin"
FORK_CONFIG = "open_clip_config.clips_fork.json"

_FREE_STACK = {"width", "depth", "heads", "mlp_dim", "gelu", "remat"}
# The last of each acts in training only.
_FREE_IMAGE = {"transformer", "image_size", "patch_size", "class_token", "pool", "positions", "keep_tokens"}
_FREE_TEXT = {"transformer", "vocab_size", "length", "mask_padding", "packing"}


def obstacles(model: Pretrained) -> list[str]:
    """Why OpenCLIP's format cannot hold this model: one sentence each, none if it can."""
    config, image, text = model.config, model.config.model.image, model.config.model.text
    found = []
    if not config.objective.views or config.objective.contrastive == "none":
        found.append("it has no text tower or no temperature (objective.views, objective.contrastive)")
    if not image.class_token:
        found.append(
            "no class token (model.image.class_token=False): OpenCLIP's image tower always has one, and it takes part "
            "in attention"
        )
    if image.pool != "mean":
        found.append(f"model.image.pool={image.pool!r}: OpenCLIP pools to one vector before its projection")
    if text.mask_padding:
        found.append(
            "padding is masked in the text tower (model.text.mask_padding=True): OpenCLIP's text tower attends to it, "
            "and its config cannot say otherwise"
        )
    found += image_obstacles(image)
    found += _beyond(text, TextTowerConfig, _FREE_TEXT, "model.text")
    found += _beyond(text.transformer, TransformerConfig, _FREE_STACK, "model.text.transformer")
    return found


def image_obstacles(image: ImageTowerConfig) -> list[str]:
    """Settings of the image tower that differ from their defaults and that no other library knows."""
    found = _beyond(image, ImageTowerConfig, _FREE_IMAGE, "model.image")
    return found + _beyond(image.transformer, TransformerConfig, _FREE_STACK, "model.image.transformer")


def _beyond(part: Any, kind: Any, free: set[str], path: str) -> list[str]:
    return [
        f"{path}.{field.name}={getattr(part, field.name)!r} has no counterpart there"
        for field in dataclasses.fields(kind)
        if field.name not in free and getattr(part, field.name) != field.default
    ]


def write(model: Pretrained, folder: str) -> list[str]:
    """Writes the folder's files; returns notes for the user.

    Raises:
      CannotExport: what `obstacles` says.
    """
    reasons = obstacles(model)
    if reasons:
        raise CannotExport("OpenCLIP's format cannot hold this model:" + "".join(f"\n  {reason}" for reason in reasons))
    params = jax.tree.map(np.asarray, model.params)
    state = to_state_dict(params, model.config.model)
    _check_complete(params, state, model)
    save_file(state, os.path.join(folder, SAFETENSORS), metadata={"format": "pt"})
    notes = _write_torch(state, os.path.join(folder, TORCH))
    content = open_clip_config(model)
    write_json(os.path.join(folder, OPEN_CLIP_CONFIG), content)
    del content["model_cfg"]["text_cfg"]["tokenizer_mode"]
    write_json(os.path.join(folder, FORK_CONFIG), content)
    write_tokenizer(model.tokenizer, folder)
    write_own(model, folder)
    captioner = {k: v for k, v in flat(params).items() if k.startswith("captioner/")}
    if captioner:
        save_file(captioner, os.path.join(folder, CAPTIONER_WEIGHTS))
    if model.preprocessing.upright:
        notes.append(
            "open_clip ignores EXIF orientation and transparency; training here did not. Pictures with neither come "
            "out the same."
        )
    return notes


def _check_complete(params: Any, state: dict[str, np.ndarray], model: Pretrained) -> None:
    """Raises `CannotExport` if a parameter would be lost: the state dict must give back every one, bit for bit."""
    back = flat(from_state_dict(state, model.config.model, "logit_bias" in state))
    ours = {k: v for k, v in flat(params).items() if not k.startswith("captioner/")}
    lost = [k for k in sorted(ours) if k not in back or not np.array_equal(ours[k], back[k])]
    if lost:
        raise CannotExport(f"OpenCLIP's format has no place for the parameters {', '.join(lost)}.")


def _write_torch(state: dict[str, np.ndarray], path: str) -> list[str]:
    try:
        import torch  # pyright: ignore[reportMissingImports] (no requirement of the package)
    except ImportError:
        return [
            f"{os.path.basename(path)}, for older readers, is left out: PyTorch, which writes it, is not installed."
        ]
    torch.save({key: torch.from_numpy(array.copy()) for key, array in state.items()}, path)
    return []


def open_clip_config(model: Pretrained) -> dict[str, Any]:
    """The content of `open_clip_config.json`."""
    config, image, text = model.config, model.config.model.image, model.config.model.text
    released = isinstance(model.tokenizer, WordPieceTokenizer)
    cfg: dict[str, Any] = {
        "embed_dim": config.model.joint_dim,
        "vision_cfg": {
            "image_size": model.preprocessing.size,
            "layers": image.transformer.depth,
            "width": image.transformer.width,
            "head_width": image.transformer.width // image.transformer.heads,
            "mlp_ratio": _mlp_ratio(image.transformer),
            "patch_size": image.patch_size,
            "pos_embed_type": "learnable",  # the values are written out: open_clip's own sin-cos table is another one
            "no_ln_pre": True,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            **_gelu(image.transformer),
            "norm_kwargs": {"eps": LAYER_NORM_EPSILON},
        },
        "text_cfg": {
            "context_length": text.length,
            "vocab_size": text.vocab_size,
            # Not empty, or open_clip takes its own tokenizer; for a local folder it then reads the folder's files.
            "hf_tokenizer_name": "bert-base-uncased" if released else "tokenizer",
            "tokenizer_mode": "clips",
            "width": text.transformer.width,
            "heads": text.transformer.heads,
            "layers": text.transformer.depth,
            "mlp_ratio": _mlp_ratio(text.transformer),
            "pool_type": "last",
            "no_causal_mask": True,
            "pad_id": model.tokenizer.special.pad,
            "eos_id": model.tokenizer.special.eos,
            **_gelu(text.transformer),
            "norm_kwargs": {"eps": LAYER_NORM_EPSILON},
        },
    }
    if config.objective.contrastive == "sigmoid":
        cfg["init_logit_bias"] = config.objective.bias_init
    return {"model_cfg": cfg, "preprocess_cfg": preprocess_cfg(model.preprocessing)}


def preprocess_cfg(preprocessing: Preprocessing) -> dict[str, Any]:
    """`preprocess_cfg` of an OpenCLIP config."""
    return {
        "size": preprocessing.size,
        "mode": "RGB",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "resize_mode": preprocessing.resize,
    }


def _gelu(stack: TransformerConfig) -> dict[str, Any]:
    return {"act_kwargs": {"approximate": "tanh"}} if stack.gelu == "tanh" else {}


def _mlp_ratio(stack: TransformerConfig) -> float:
    ratio = stack.mlp_dim / stack.width  # open_clip rounds width * ratio down
    return ratio if int(stack.width * ratio) == stack.mlp_dim else (stack.mlp_dim + 0.5) / stack.width


def write_own(model: Pretrained, folder: str) -> None:
    """Our own description beside an export: with it, `pretrained.load` gives back this very model."""
    config = dataclasses.replace(model.made.config, init_from="", tokenizer=TokenizerConfig())
    content = {
        "config": to_dict(config),
        "tokenizer": model.tokenizer.identity(),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "step": model.step,
        "samples_seen": model.samples_seen,
    }
    write_json(os.path.join(folder, OWN_CONFIG), content)


def flat(params: Any) -> dict[str, np.ndarray]:
    """Parameters by path."""
    leaves: Any = traverse_util.flatten_dict(params, sep="/")
    return leaves


def write_json(path: str, content: Any) -> None:
    """UTF-8, indented."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
