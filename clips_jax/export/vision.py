"""The image tower alone, for timm (`VisionTransformer`) and transformers (`ViTModel`).

timm holds all of it: `fc_norm` is our norm after pooling, `head` our projection. `ViTModel` ends with the last block's
output: pooling, norm and projection stay outside, in `projection.safetensors`.
"""

import os
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from clips_jax.config import ImageTowerConfig
from clips_jax.export.error import CannotExport
from clips_jax.export.open_clip_folder import image_obstacles, write_json
from clips_jax.interop.state_dict import to_state_dict
from clips_jax.models.layers import LAYER_NORM_EPSILON
from clips_jax.pretrained import Pretrained

PROJECTION = "projection.safetensors"
_PREFIX = "visual.transformer.resblocks."


def timm_obstacles(image: ImageTowerConfig) -> list[str]:
    """Why timm cannot hold the image tower; none if it can. It needs no class token."""
    found = image_obstacles(image)
    if image.pool != "mean":
        found.append(f"model.image.pool={image.pool!r}: one vector is pooled before the head there")
    return found


def vit_obstacles(image: ImageTowerConfig) -> list[str]:
    """Why `ViTModel` cannot hold the image tower; none if it can."""
    found = timm_obstacles(image)
    if not image.class_token:
        found.append("no class token (model.image.class_token=False): ViTModel always has one, and it takes part")
    return found


def write_timm(model: Pretrained, folder: str) -> list[str]:
    """Writes a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    image, stack = model.config.model.image, model.config.model.image.transformer
    _refuse("timm's VisionTransformer", timm_obstacles(image))
    state = _vision_state(model)
    tensors = {
        "patch_embed.proj.weight": state["visual.conv1.weight"],
        "patch_embed.proj.bias": np.zeros(stack.width, np.float32),
        "pos_embed": state["visual.positional_embedding"][None, 0 if image.class_token else 1 :],
        "fc_norm.weight": state["visual.ln_post.weight"],
        "fc_norm.bias": state["visual.ln_post.bias"],
        "head.weight": state["visual.proj"].T,
        "head.bias": np.zeros(model.config.model.joint_dim, np.float32),
    }
    if image.class_token:
        tensors["cls_token"] = state["visual.class_embedding"][None, None]
    names = {
        **{f"ln_{i}.{kind}": f"norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")},
        **{f"attn.in_proj_{kind}": f"attn.qkv.{kind}" for kind in ("weight", "bias")},
        **{f"attn.out_proj.{kind}": f"attn.proj.{kind}" for kind in ("weight", "bias")},
        **{f"mlp.c_fc.{kind}": f"mlp.fc1.{kind}" for kind in ("weight", "bias")},
        **{f"mlp.c_proj.{kind}": f"mlp.fc2.{kind}" for kind in ("weight", "bias")},
    }
    for key in (key for key in state if key.startswith(_PREFIX)):
        layer, _, name = key.removeprefix(_PREFIX).partition(".")
        tensors[f"blocks.{layer}.{names[name]}"] = state[key]
    _save(tensors, os.path.join(folder, "model.safetensors"))
    write_json(os.path.join(folder, "config.json"), timm_config(model))
    return _notes(model)


def timm_config(model: Pretrained) -> dict[str, Any]:
    """timm's `config.json`: any plain ViT with our sizes as arguments."""
    image, stack = model.config.model.image, model.config.model.image.transformer
    preprocessing, size = model.preprocessing, model.preprocessing.image_size
    return {
        "architecture": "vit_base_patch16_224",
        "num_classes": model.config.model.joint_dim,
        "num_features": stack.width,
        "global_pool": "avg",
        "model_args": {
            "img_size": size,
            "patch_size": image.patch_size,
            "embed_dim": stack.width,
            "depth": stack.depth,
            "num_heads": stack.heads,
            "mlp_ratio": (stack.mlp_dim + 0.5) / stack.width,  # timm rounds down
            "class_token": image.class_token,
            "global_pool": "avg",
            "num_classes": model.config.model.joint_dim,
            "act_layer": "gelu_tanh" if stack.gelu == "tanh" else "gelu",
        },
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": preprocessing.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "squash" if preprocessing.resize == "squash" else "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": model.config.model.joint_dim,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def write_vit(model: Pretrained, folder: str) -> list[str]:
    """Writes a folder for `ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)`, and the projection beside it."""
    image, stack = model.config.model.image, model.config.model.image.transformer
    _refuse("transformers' ViTModel", vit_obstacles(image))
    state = _vision_state(model)
    width = stack.width
    tensors = {
        "embeddings.cls_token": state["visual.class_embedding"][None, None],
        "embeddings.position_embeddings": state["visual.positional_embedding"][None],
        "embeddings.patch_embeddings.projection.weight": state["visual.conv1.weight"],
        "embeddings.patch_embeddings.projection.bias": np.zeros(width, np.float32),
        # ViTModel's last norm acts on every token; ours on the mean, and is kept with the projection.
        "layernorm.weight": np.ones(width, np.float32),
        "layernorm.bias": np.zeros(width, np.float32),
    }
    names = {
        "ln_1": "layernorm_before",
        "ln_2": "layernorm_after",
        "attn.out_proj": "attention.output.dense",
        "mlp.c_fc": "intermediate.dense",
        "mlp.c_proj": "output.dense",
    }
    for key in (key for key in state if key.startswith(_PREFIX)):
        layer, _, name = key.removeprefix(_PREFIX).partition(".")
        here, kind = f"encoder.layer.{layer}", "weight" if name.endswith("weight") else "bias"
        if name.startswith("attn.in_proj"):
            for part, array in zip(("query", "key", "value"), np.split(state[key], 3), strict=True):
                tensors[f"{here}.attention.attention.{part}.{kind}"] = array
        else:
            tensors[f"{here}.{names[name.rpartition('.')[0]]}.{kind}"] = state[key]
    _save(tensors, os.path.join(folder, "model.safetensors"))
    projection = {"norm.weight": state["visual.ln_post.weight"], "norm.bias": state["visual.ln_post.bias"]}
    _save(projection | {"projection.weight": state["visual.proj"].T}, os.path.join(folder, PROJECTION))
    preprocessing = model.preprocessing
    write_json(
        os.path.join(folder, "config.json"),
        {
            "architectures": ["ViTModel"],
            "model_type": "vit",
            "hidden_size": width,
            "num_hidden_layers": stack.depth,
            "num_attention_heads": stack.heads,
            "intermediate_size": stack.mlp_dim,
            "hidden_act": "gelu_pytorch_tanh" if stack.gelu == "tanh" else "gelu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "layer_norm_eps": LAYER_NORM_EPSILON,
            "image_size": preprocessing.image_size,
            "patch_size": image.patch_size,
            "num_channels": 3,
            "qkv_bias": True,
        },
    )
    write_json(
        os.path.join(folder, "preprocessor_config.json"),
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": preprocessing.size, "width": preprocessing.size},
            "resample": 2 if preprocessing.interpolation == "bilinear" else 3,  # Pillow's numbers
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(preprocessing.mean),
            "image_std": list(preprocessing.std),
        },
    )
    if preprocessing.resize != "squash":
        raise CannotExport("ViTImageProcessor resizes straight to a square; this model's pictures are cropped.")
    return _notes(model)


def _vision_state(model: Pretrained) -> dict[str, np.ndarray]:
    params, image = model.params, model.config.model.image
    if not image.class_token:  # a place holder: the caller leaves it out
        params = params | {"image": params["image"] | {"class_token": np.zeros((1, image.transformer.width))}}
        if image.positions == "learned":
            table = np.asarray(params["image"]["positions"])
            padded = np.concatenate([np.zeros((1, table.shape[1]), table.dtype), table])
            params["image"]["positions"] = padded
    state = to_state_dict(params, model.config.model)
    return {key: array for key, array in state.items() if key.startswith("visual.")}


def _refuse(target: str, reasons: list[str]) -> None:
    if reasons:
        raise CannotExport(f"{target} cannot hold this image tower:" + "".join(f"\n  {reason}" for reason in reasons))


def _notes(model: Pretrained) -> list[str]:
    if model.preprocessing.size == model.preprocessing.image_size:
        return []
    return [
        f"pictures are resized to {model.preprocessing.size} px and the first {model.preprocessing.image_size} used; "
        "the config can only say the latter."
    ]


def _save(tensors: dict[str, np.ndarray], path: str) -> None:
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata={"format": "pt"})
