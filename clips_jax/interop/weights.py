"""Weight files to arrays by name: safetensors, and PyTorch's own format where PyTorch is installed."""

import os

import numpy as np
from safetensors import SafetensorError, safe_open

from clips_jax.interop.state_dict import WrongWeights

# In the order in which they are looked for in a folder, as open_clip does.
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
_TORCH = (".bin", ".pt", ".pth")


def find_weights(folder: str) -> str:
    """The weight file of a model folder; raises `FileNotFoundError` or, for several unknown ones, `WrongWeights`."""
    for name in WEIGHT_FILES:
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    others = sorted(name for name in os.listdir(folder) if name.endswith((".safetensors", *_TORCH)))
    if not others:
        raise FileNotFoundError(
            f"{folder} is neither the workdir of a run (it has no checkpoints/) nor a model folder (it has no "
            f"{WEIGHT_FILES[0]}, {WEIGHT_FILES[2]} or the like)."
        )
    if len(others) > 1:
        raise WrongWeights(f"{folder} has several weight files ({', '.join(others)}); call one {WEIGHT_FILES[0]}.")
    return os.path.join(folder, others[0])


def read_weights(path: str) -> dict[str, np.ndarray]:
    """Arrays by name, float16 and bfloat16 as float32.

    PyTorch files are pickles: they are read by PyTorch with `weights_only=True`, which builds tensors and nothing else.

    Raises:
      WrongWeights: not a weight file, or a PyTorch file and no PyTorch.
    """
    if path.endswith(".safetensors"):
        try:
            with safe_open(path, framework="numpy") as file:
                return {name: _float32(file.get_tensor(name)) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise WrongWeights(f"{path} cannot be read: {error}") from error
    if not path.endswith(_TORCH):
        raise WrongWeights(f"{path}: weights are read from .safetensors, .bin, .pt and .pth.")
    try:
        import torch  # pyright: ignore[reportMissingImports] (no requirement of the package)
    except ImportError:
        raise WrongWeights(
            f"{path} is a PyTorch pickle, and PyTorch, which alone can read it safely, is not installed: pip install "
            "torch, or have it converted to safetensors (safetensors.torch.save_file) where PyTorch is."
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle.UnpicklingError, RuntimeError, EOFError, …
        raise WrongWeights(f"{path} cannot be read with weights only: {str(error).splitlines()[0]}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # a training checkpoint of open_clip
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WrongWeights(f"{path} holds no state dict of tensors.")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)
