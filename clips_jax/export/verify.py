"""An exported folder against the model it came from, in the library it is for.

Needs that library beside this package; it is no requirement of it.
"""

import dataclasses
import io
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from clips_jax.data.wordpiece import clean
from clips_jax.export.error import CannotExport
from clips_jax.export.vision import PROJECTION
from clips_jax.interop.weights import read_weights
from clips_jax.models.layers import LAYER_NORM_EPSILON
from clips_jax.pretrained import Pretrained

EMBEDDINGS = 2e-5  # largest difference of a number in a normalised embedding
TOKENS = 1e-4  # of a token's output
TEXTS = (
    "",
    "a cat",
    "</s> and <s> in a text",
    "A photo of TWO red cars, parked; behind them: 3.5 m of snow!",
    "caf\u00e9 cr\u00e8me br\u00fbl\u00e9e",
    "\u7ea2\u8272\u7684\u6c7d\u8f66 \u6771\u4eac\u30bf\u30ef\u30fc",
    "salt &amp;amp; pepper &lt;b&gt;",
    "emoji \U0001f600 and  \t white\nspace ",
    "x" * 101 + " after a word of 101 letters",
    "a long text that goes on " * 40,
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing compared: the largest difference and what is allowed."""

    what: str
    largest: float
    allowed: float

    @property
    def fine(self) -> bool:
        """Within tolerance; NaN is not."""
        return self.largest <= self.allowed


def verify(model: Pretrained, kind: str, folder: str) -> list[Difference]:
    """Reloads the export in the other library and compares; `model` must have been loaded with `exact`.

    Raises:
      CannotExport: the library is not installed.
    """
    try:
        return _CHECKS[kind](model, folder)
    except ImportError as error:
        raise CannotExport(
            f"--verify loads the export in {_NEEDS[kind]}, and {error.name} is not installed here: pip install "
            f"{_NEEDS[kind]} in the environment of clips_jax."
        ) from error


def pictures(size: int) -> list[bytes]:
    """Picture files to compare on: noise of several shapes, and nearly plain ones, where a wrong LayerNorm shows."""
    rng = np.random.default_rng(0)
    shapes = ((size, size), (2 * size + 3, size + 7), (size // 2 + 1, 3 * size))
    arrays = [rng.integers(0, 256, (*shape, 3)) for shape in shapes]
    arrays += [np.full((size, size, 3), grey) + rng.integers(0, 2, (size, size, 3)) for grey in (0, 128, 254)]
    files = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array.astype(np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


def _ours(model: Pretrained, files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (N, S, S, 3) and embeddings (N, E)."""
    pixels = np.stack([model.preprocessing.pixels(file) for file in files])
    return pixels, model.encoder.images(lambda rows: pixels[list(rows)], len(files))


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def _normalized(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _open_clip(model: Pretrained, folder: str) -> list[Difference]:
    import open_clip  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    other, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    other.eval()
    files = pictures(model.preprocessing.size)
    _, images = _ours(model, files)
    texts = list(TEXTS) if model.tokenizer.identity()["kind"] == "wordpiece" else [clean(text) for text in TEXTS]
    ids = tokenizer(texts)
    with torch.no_grad():
        stacked = torch.stack([preprocess(Image.open(io.BytesIO(file))) for file in files])
        their_images = other.encode_image(stacked, normalize=True).numpy()
        their_texts = other.encode_text(ids, normalize=True).numpy()
    found = [
        Difference("image embeddings", _largest(images, their_images), EMBEDDINGS),
        Difference("token ids", _largest(model.encoder.token_ids(texts), ids.numpy()), 0),
        Difference("text embeddings", _largest(model.encoder.texts(texts), their_texts), EMBEDDINGS),
        Difference("logit scale", _largest(model.params["logit_scale"], other.logit_scale.detach().numpy()), 0),
    ]
    torch_file = os.path.join(folder, "open_clip_pytorch_model.bin")
    if os.path.isfile(torch_file):
        state = {key: value.numpy() for key, value in other.state_dict().items()}
        again = read_weights(torch_file)
        largest = max(_largest(state[key], again[key]) if key in again else np.inf for key in state)
        found.append(Difference("the .bin against the .safetensors", largest, 0))
    return found


def _timm(model: Pretrained, folder: str) -> list[Difference]:
    import timm  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    other = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels, images = _ours(model, pictures(model.preprocessing.size))
    with torch.no_grad():
        theirs = other(_normalized_pixels(model, pixels, torch)).numpy()
    return [Difference("image embeddings", _largest(images, _normalized(theirs)), EMBEDDINGS)]


def _vit(model: Pretrained, folder: str) -> list[Difference]:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import ViTModel  # pyright: ignore[reportMissingImports]

    other = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    pixels, images = _ours(model, pictures(model.preprocessing.size))
    with torch.no_grad():
        output = other(_normalized_pixels(model, pixels, torch), output_hidden_states=True)
    tokens = output.hidden_states[-1].numpy()
    params = {"params": model.params}
    with jax.default_matmul_precision("highest"):
        normalized = model.preprocessing.normalize(jnp.asarray(pixels))
        ours = model.model.apply(params, normalized, {}, method="encode_tokens")["image"]  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
    head = read_weights(os.path.join(folder, PROJECTION))
    pooled = tokens[:, 1:].astype(np.float64).mean(axis=1)
    pooled = (pooled - pooled.mean(-1, keepdims=True)) / np.sqrt(pooled.var(-1, keepdims=True) + LAYER_NORM_EPSILON)
    theirs = (pooled * head["norm.weight"] + head["norm.bias"]) @ head["projection.weight"].T
    return [
        Difference("token outputs", _largest(np.asarray(ours), tokens), TOKENS),
        Difference("image embeddings, projected outside", _largest(images, _normalized(theirs)), EMBEDDINGS),
    ]


def _own(model: Pretrained, folder: str) -> list[Difference]:
    from clips_jax.pretrained import load

    other = load(folder, exact=True)
    pairs = zip(jax.tree.leaves(model.params), jax.tree.leaves(other.params), strict=True)
    return [Difference("parameters", max(_largest(np.asarray(a), np.asarray(b)) for a, b in pairs), 0)]


def _normalized_pixels(model: Pretrained, pixels: np.ndarray, torch: Any) -> Any:
    return torch.from_numpy(np.array(model.preprocessing.normalize(jnp.asarray(pixels))).transpose(0, 3, 1, 2).copy())


_CHECKS: dict[str, Callable[[Pretrained, str], list[Difference]]] = {
    "open_clip": _open_clip,
    "timm": _timm,
    "vit": _vit,
    "clips_jax": _own,
}
_NEEDS = {"open_clip": "open_clip_torch==3.3.0", "timm": "timm", "vit": "transformers torch", "clips_jax": "clips_jax"}
