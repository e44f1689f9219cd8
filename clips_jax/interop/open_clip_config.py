"""`open_clip_config.json` and our model settings, both ways.

Sizes come from the tensors' shapes; the file says what shapes cannot: heads, GELUs, preprocessing. What it states
beside that must agree with the tensors and with the released architecture, else the model would be another one.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from clips_jax.config import ImageTowerConfig, ModelConfig, TextTowerConfig, TransformerConfig
from clips_jax.interop.state_dict import WrongWeights
from clips_jax.models.layers import LAYER_NORM_EPSILON
from clips_jax.preprocessing import Preprocessing

# Head widths of released models by tower width, for weights without a config; 64 everywhere else.
_HEAD_WIDTHS = {1280: 80, 1152: 72}
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # open_clip's default where preprocess_cfg is silent
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What the released architecture is, in open_clip's words. A key that is not here or in the lists below must be at
# open_clip's default, which for all of them is some kind of "off".
_VISION_FIXED = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
_TEXT_FIXED = {"no_causal_mask": True, "pool_type": "last"}
_VISION_FREE = {
    *("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "act_kwargs", "norm_kwargs"),
    *("pos_embed_type", "patch_dropout", "output_tokens"),  # the stored table counts; the others act in training only
    *("attn_pooler_queries", "attn_pooler_heads"),  # no effect without attentional_pool
}
_TEXT_FREE = {
    *("context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "width", "heads"),
    *("layers", "mlp_ratio", "act_kwargs", "norm_kwargs", "pad_id", "eos_id", "output_tokens", "final_ln_after_pool"),
}
_MODEL_FREE = {"embed_dim", "vision_cfg", "text_cfg", "init_logit_scale", "init_logit_bias", "custom_text"}
_MODEL_FREE |= {"nonscalar_logit_scale", "output_dict", "cast_dtype"}
_OFF = (None, False, 0, 0.0, "linear", "default", [], {})


def model_from(
    state: Mapping[str, np.ndarray], file: Mapping[str, Any] | None, learned_positions: bool
) -> tuple[ModelConfig, Preprocessing]:
    """Our settings for a state dict with `normalize_keys`' keys.

    Args:
      state: the tensors.
      file: the parsed `open_clip_config.json`; None takes the released architecture's values.
      learned_positions: hold the image position table as a parameter; else it must be the sin-cos one.

    Raises:
      WrongWeights: no CLIPS-type model; the message says what differs.
    """
    wanted = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "positional_embedding")
    lacking = [key for key in (*wanted, "token_embedding.weight") if key not in state]
    if lacking:
        raise WrongWeights(f"no CLIPS-type OpenCLIP weights: {', '.join(lacking)} not there.")
    cfg = dict((file or {}).get("model_cfg", file or {}))
    vision, text = dict(cfg.get("vision_cfg", {})), dict(cfg.get("text_cfg", {}))
    if file is not None:
        _check_architecture(cfg, vision, text)
    width, _, patch, _ = state["visual.conv1.weight"].shape
    rows = state["visual.positional_embedding"].shape[0]
    grid = math.isqrt(rows - 1)
    if grid * grid != rows - 1:
        raise WrongWeights(f"visual.positional_embedding has {rows} rows: not a class token and a square of patches.")
    length, text_width = state["positional_embedding"].shape
    text_heads = text.get("heads", 8 if text else text_width // 64)
    model = ModelConfig(
        image=ImageTowerConfig(
            transformer=_stack(state, "visual.transformer", width, _vision_heads(width, vision, file), vision, "exact"),
            image_size=grid * patch,
            patch_size=patch,
            class_token=True,
            positions="learned" if learned_positions else "sincos2d",
        ),
        text=TextTowerConfig(
            transformer=_stack(state, "transformer", text_width, text_heads, text, "exact" if file else "tanh"),
            vocab_size=state["token_embedding.weight"].shape[0],
            length=length,
            mask_padding=False,
        ),
        joint_dim=state["visual.proj"].shape[1],
    )
    size = _square(vision.get("image_size", grid * patch))
    _check_sizes(model, cfg, vision, text, size)
    return model, _preprocessing((file or {}).get("preprocess_cfg"), size, grid * patch)


def _check_architecture(cfg: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> None:
    wrong = []
    for name, part, fixed, free in (
        ("vision_cfg", vision, _VISION_FIXED, _VISION_FREE),
        ("text_cfg", text, _TEXT_FIXED, _TEXT_FREE),
    ):
        if not part:
            raise WrongWeights(f"open_clip_config.json: no {name}.")
        wrong += [f"{name}.{k}: {part.get(k)!r}, not {v!r}" for k, v in fixed.items() if part.get(k) != v]
        wrong += [f"{name}.{k}: {v!r}" for k, v in part.items() if k not in fixed and k not in free and v not in _OFF]
        epsilon = (part.get("norm_kwargs") or {}).get("eps", 1e-5)  # PyTorch's default
        if epsilon != LAYER_NORM_EPSILON:
            wrong.append(f"{name}.norm_kwargs.eps: {epsilon}, not {LAYER_NORM_EPSILON}")
    wrong += [f"{k}: {v!r}" for k, v in cfg.items() if k not in _MODEL_FREE and v not in _OFF]
    if wrong:
        lines = "".join(f"\n  {line}" for line in wrong)
        raise WrongWeights(f"open_clip_config.json describes another architecture than CLIPS':{lines}")


def _vision_heads(width: int, vision: dict[str, Any], file: Any) -> int:
    head_width = vision.get("head_width", 64) if file else _HEAD_WIDTHS.get(width, 64)
    if width % head_width:
        raise WrongWeights(f"vision width {width} is not a multiple of the head width {head_width}.")
    return width // head_width


def _stack(
    state: Mapping[str, np.ndarray], prefix: str, width: int, heads: int, cfg: dict[str, Any], gelu: str
) -> TransformerConfig:
    depth = len({key.split(".resblocks.")[1].split(".")[0] for key in state if key.startswith(f"{prefix}.resblocks.")})
    first = state.get(f"{prefix}.resblocks.0.mlp.c_fc.weight")
    if first is None or heads < 1 or width % heads:
        raise WrongWeights(f"{prefix}: no blocks, or {heads} heads do not divide the width {width}.")
    activation = cfg.get("act_kwargs")
    if activation is not None:
        gelu = "tanh" if activation.get("approximate", "none") == "tanh" else "exact"
    return TransformerConfig(width, depth, heads, first.shape[0], gelu)  # type: ignore[arg-type]


def _check_sizes(
    model: ModelConfig, cfg: dict[str, Any], vision: dict[str, Any], text: dict[str, Any], size: int
) -> None:
    image, patch = model.image, model.image.patch_size
    stated = {
        "embed_dim": (cfg.get("embed_dim"), model.joint_dim),
        "vision_cfg.width": (vision.get("width"), image.transformer.width),
        "vision_cfg.layers": (vision.get("layers"), image.transformer.depth),
        "vision_cfg.patch_size": (vision.get("patch_size") and _square(vision["patch_size"]), patch),
        "vision_cfg.image_size": (size // patch * patch, image.image_size),
        "text_cfg.context_length": (text.get("context_length"), model.text.length),
        "text_cfg.vocab_size": (text.get("vocab_size"), model.text.vocab_size),
        "text_cfg.width": (text.get("width"), model.text.transformer.width),
        "text_cfg.layers": (text.get("layers"), model.text.transformer.depth),
    }
    wrong = [f"{k}: {said}, the weights {is_}" for k, (said, is_) in stated.items() if said is not None and said != is_]
    if wrong:
        raise WrongWeights("open_clip_config.json and the weights disagree:" + "".join(f"\n  {line}" for line in wrong))


def _square(size: Any) -> int:
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise WrongWeights(f"open_clip_config.json: {size} is not square; the image tower is for squares.")
    return int(sides.pop())


def _preprocessing(cfg: Mapping[str, Any] | None, size: int, image_size: int) -> Preprocessing:
    if cfg is None:  # the released models'
        return Preprocessing(size, image_size, upright=False)
    stated = {key: value for key, value in cfg.items() if value is not None}
    resize, interpolation = stated.get("resize_mode", "shortest"), stated.get("interpolation", "bicubic")
    if resize not in ("squash", "shortest") or interpolation not in ("bilinear", "bicubic"):
        raise WrongWeights(
            f"preprocess_cfg: resize_mode {resize!r}, interpolation {interpolation!r}; squash or shortest, bilinear or "
            "bicubic can be done."
        )
    if "size" in stated:
        sides = stated["size"] if isinstance(stated["size"], (list, tuple)) else [stated["size"]]
        if {int(side) for side in sides[-2:]} != {size}:
            raise WrongWeights(f"preprocess_cfg.size: {stated['size']}, but the model is for {size} px.")
    mean, std = tuple(stated.get("mean", _CLIP_MEAN)), tuple(stated.get("std", _CLIP_STD))
    return Preprocessing(size, image_size, resize, interpolation, False, mean, std)
