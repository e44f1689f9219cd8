"""Our parameter tree and the OpenCLIP state dict, both ways: every array moved or transposed, none computed.

The one exception is the sin-cos position table, which is a parameter there and computed here.

Legend: N patches, P patch size, W tower width, D width, H heads, K head width, L layers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from clips_jax.config import ModelConfig, TransformerConfig
from clips_jax.models.image_tower import sincos_positions

Arrays = Mapping[str, np.ndarray]
POSITIONS_TOLERANCE = 1e-5  # between a stored sin-cos table and ours


class WrongWeights(ValueError):
    """Weights that are not what the config describes, or that our model cannot hold."""


def normalize_keys(state: Arrays) -> dict[str, np.ndarray]:
    """The spellings that occur brought to one: no `module.` prefix, no `text.` prefix, 0-d scale and bias."""
    plain: dict[str, np.ndarray] = {}
    for name, array in state.items():
        key = name.removeprefix("module.").removeprefix("text.")
        if key in plain:
            raise WrongWeights(f"two tensors are called {key!r} once prefixes are off; one of them is {name!r}.")
        if key in ("logit_scale", "logit_bias"):
            if array.size != 1:
                raise WrongWeights(f"{name} has shape {array.shape}; one number is wanted.")
            array = array.reshape(())
        plain[key] = array
    return plain


def from_state_dict(state: Arrays, model: ModelConfig, with_bias: bool) -> dict[str, Any]:
    """Parameters of `Clips` (towers and temperature) from a state dict whose keys are `normalize_keys`'.

    Args:
      state: arrays by key; cast to float32.
      model: what the weights must fit; `positions` of the image tower says how the table is held.
      with_bias: whether there is a `logit_bias` (sigmoid loss).

    Raises:
      WrongWeights: missing or unknown keys, all of them listed; a wrong shape; NaN; a table that is not sin-cos.
    """
    expected = state_shapes(model, with_bias)
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise WrongWeights(
            f"the weights do not fit the model.{_listed('missing', missing)}{_listed('unknown', unknown)}"
        )
    wrong = [f"{k}: {state[k].shape}, not {expected[k]}" for k in sorted(expected) if state[k].shape != expected[k]]
    if wrong:
        raise WrongWeights(f"the weights do not fit the model.{_listed('of another shape', wrong)}")
    arrays = {key: np.asarray(array, np.float32) for key, array in state.items()}
    broken = sorted(key for key, array in arrays.items() if not np.isfinite(array).all())
    if broken:
        raise WrongWeights(f"the weights are damaged.{_listed('with NaN or infinity', broken)}")
    image, text = model.image, model.text
    patch = arrays["visual.conv1.weight"].transpose(2, 3, 1, 0)
    flat = {
        "image/patches/kernel": patch.reshape(-1, patch.shape[-1]),
        "image/class_token": arrays["visual.class_embedding"][None],
        "image/head/kernel": arrays["visual.proj"],
        "text/tokens/embedding": arrays["token_embedding.weight"],
        "text/positions": arrays["positional_embedding"],
        "text/head/kernel": arrays["text_projection"],
        "logit_scale": arrays["logit_scale"],
        **_norm_from(arrays, "visual.ln_post", "image/norm"),
        **_norm_from(arrays, "ln_final", "text/norm"),
        **_blocks_from(arrays, "visual.transformer", "image/transformer/blocks", image.transformer),
        **_blocks_from(arrays, "transformer", "text/transformer/blocks", text.transformer),
    }
    if with_bias:
        flat["logit_bias"] = arrays["logit_bias"]
    table = arrays["visual.positional_embedding"]
    if image.positions == "learned":
        flat["image/positions"] = table
    else:
        difference = sincos_difference(table)
        if difference > POSITIONS_TOLERANCE:
            raise WrongWeights(
                f"the image position table is not sin-cos: it differs by {difference:.1e} (at most "
                f"{POSITIONS_TOLERANCE:.0e}). Hold it as learned positions: --positions learned."
            )
    return traverse_util.unflatten_dict(flat, sep="/")


def to_state_dict(params: Any, model: ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of `from_state_dict`, bit for bit: float32 arrays by OpenCLIP key. A captioner is left out."""
    flat = {k: np.asarray(v, np.float32) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    image, size = model.image, model.image.patch_size
    if image.positions == "learned":
        table = flat["image/positions"]
    else:
        grid, width = image.image_size // size, image.transformer.width
        table = np.concatenate([np.zeros((1, width), np.float32), sincos_positions(grid, width)])
    state = {
        "visual.conv1.weight": flat["image/patches/kernel"].reshape(size, size, 3, -1).transpose(3, 2, 0, 1),
        "visual.class_embedding": flat["image/class_token"][0],
        "visual.positional_embedding": table,
        "visual.proj": flat["image/head/kernel"],
        "token_embedding.weight": flat["text/tokens/embedding"],
        "positional_embedding": flat["text/positions"],
        "text_projection": flat["text/head/kernel"],
        "logit_scale": flat["logit_scale"],
        **_norm_to(flat, "image/norm", "visual.ln_post"),
        **_norm_to(flat, "text/norm", "ln_final"),
        **_blocks_to(flat, "image/transformer/blocks", "visual.transformer"),
        **_blocks_to(flat, "text/transformer/blocks", "transformer"),
    }
    if "logit_bias" in flat:
        state["logit_bias"] = flat["logit_bias"]
    return {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in state.items()}


def state_shapes(model: ModelConfig, with_bias: bool) -> dict[str, tuple[int, ...]]:
    """Every key of a released model of this size, with its shape."""
    image, text, joint = model.image, model.text, model.joint_dim
    width, patches = image.transformer.width, (image.image_size // image.patch_size) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "visual.conv1.weight": (width, 3, image.patch_size, image.patch_size),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (1 + patches, width),
        "visual.proj": (width, joint),
        "token_embedding.weight": (text.vocab_size, text.transformer.width),
        "positional_embedding": (text.length, text.transformer.width),
        "text_projection": (text.transformer.width, joint),
        "logit_scale": (),
    }
    if with_bias:
        shapes["logit_bias"] = ()
    for name, size in (("visual.ln_post", width), ("ln_final", text.transformer.width)):
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    for prefix, stack in (("visual.transformer", image.transformer), ("transformer", text.transformer)):
        block = _block_shapes(stack)
        shapes |= {f"{prefix}.resblocks.{i}.{key}": shape for i in range(stack.depth) for key, shape in block.items()}
    return shapes


def sincos_difference(table_1NxW: np.ndarray) -> float:
    """Largest difference between a stored table (class token first) and the fixed one; infinite if it cannot be one."""
    rows, width = table_1NxW.shape
    grid = round((rows - 1) ** 0.5)
    if grid * grid != rows - 1 or width % 4:
        return float("inf")
    difference = max(np.abs(table_1NxW[1:] - sincos_positions(grid, width)).max(), np.abs(table_1NxW[0]).max())
    return float(difference) if np.isfinite(difference) else float("inf")


def _block_shapes(stack: TransformerConfig) -> dict[str, tuple[int, ...]]:
    width, hidden = stack.width, stack.mlp_dim
    return {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (hidden, width),
        "mlp.c_fc.bias": (hidden,),
        "mlp.c_proj.weight": (width, hidden),
        "mlp.c_proj.bias": (width,),
    }


# Per block: our path and the key there; whether the array is a kernel, which torch holds transposed.
_PLAIN = (
    ("norm_attention/scale", "ln_1.weight", False),
    ("norm_attention/bias", "ln_1.bias", False),
    ("norm_mlp/scale", "ln_2.weight", False),
    ("norm_mlp/bias", "ln_2.bias", False),
    ("attention/out/bias", "attn.out_proj.bias", False),
    ("mlp/up/kernel", "mlp.c_fc.weight", True),
    ("mlp/up/bias", "mlp.c_fc.bias", False),
    ("mlp/down/kernel", "mlp.c_proj.weight", True),
    ("mlp/down/bias", "mlp.c_proj.bias", False),
)
_QKV = ("query", "key", "value")


def _blocks_from(arrays: Arrays, prefix: str, path: str, stack: TransformerConfig) -> dict[str, np.ndarray]:
    depth, width, heads = stack.depth, stack.width, stack.heads

    def stacked(key: str) -> np.ndarray:
        return np.stack([arrays[f"{prefix}.resblocks.{i}.{key}"] for i in range(depth)])

    flat = {f"{path}/{ours}": stacked(key).swapaxes(-1, -2) if t else stacked(key) for ours, key, t in _PLAIN}
    weight, bias = stacked("attn.in_proj_weight"), stacked("attn.in_proj_bias")
    for part, name in enumerate(_QKV):
        rows = slice(part * width, (part + 1) * width)
        kernel = weight[:, rows].swapaxes(-1, -2)
        flat[f"{path}/attention/{name}/kernel"] = kernel.reshape(depth, width, heads, width // heads)
        flat[f"{path}/attention/{name}/bias"] = bias[:, rows].reshape(depth, heads, width // heads)
    out = stacked("attn.out_proj.weight").swapaxes(-1, -2)
    flat[f"{path}/attention/out/kernel"] = out.reshape(depth, heads, width // heads, width)
    return flat


def _blocks_to(flat: Arrays, path: str, prefix: str) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    for layer in range(len(flat[f"{path}/norm_mlp/scale"])):
        here = f"{prefix}.resblocks.{layer}"
        for ours, key, transposed in _PLAIN:
            array = flat[f"{path}/{ours}"][layer]
            state[f"{here}.{key}"] = array.T if transposed else array
        kernels = [flat[f"{path}/attention/{name}/kernel"][layer] for name in _QKV]
        biases = [flat[f"{path}/attention/{name}/bias"][layer] for name in _QKV]
        out = flat[f"{path}/attention/out/kernel"][layer]
        state[f"{here}.attn.in_proj_weight"] = np.concatenate([k.reshape(len(k), -1).T for k in kernels])
        state[f"{here}.attn.in_proj_bias"] = np.concatenate([b.reshape(-1) for b in biases])
        state[f"{here}.attn.out_proj.weight"] = out.reshape(-1, out.shape[-1]).T
    return state


def _norm_from(arrays: Arrays, key: str, path: str) -> dict[str, np.ndarray]:
    return {f"{path}/scale": arrays[f"{key}.weight"], f"{path}/bias": arrays[f"{key}.bias"]}


def _norm_to(flat: Arrays, path: str, key: str) -> dict[str, np.ndarray]:
    return {f"{key}.weight": flat[f"{path}/scale"], f"{key}.bias": flat[f"{path}/bias"]}


def _listed(what: str, names: list[str]) -> str:
    return f"\n{what} ({len(names)}):" + "".join(f"\n  {name}" for name in names) if names else ""
