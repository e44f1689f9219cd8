"""The model card: `README.md` of an exported folder."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from clips_jax.config import to_dict
from clips_jax.evaluators.results import results_table
from clips_jax.pretrained import CAPTIONER_WEIGHTS, Pretrained, is_workdir

_USE = {
    "open_clip": """```python
import open_clip  # open_clip_torch 3.3.0

model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
```

The CLIPS authors' fork of open_clip does not know `tokenizer_mode`: there, put `open_clip_config.clips_fork.json` in
the place of `open_clip_config.json`.""",
    "timm": """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # pictures -> joint embeddings, not L2-normalised
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```""",
    "vit": """```python
from transformers import ViTImageProcessor, ViTModel

model = ViTModel.from_pretrained("FOLDER", add_pooling_layer=False)
processor = ViTImageProcessor.from_pretrained("FOLDER")
```

Leave out `last_hidden_state`'s norm, which is the identity here. The joint embedding is the mean over the patch tokens
(without the first, the class token), then the LayerNorm and the matrix in `projection.safetensors`.""",
    "clips_jax": """```
python -m clips_jax.embed --model FOLDER --images DIR --out FILE.npz
```""",
}
_RESULTS = ("results.json", "sets.json")  # of the run's own evaluators, of `evaluate --set`
_IMAGES_ONLY = ("timm", "vit")
_LIBRARY = {"open_clip": "open_clip", "timm": "timm", "vit": "transformers", "clips_jax": "clips_jax"}
_TASK = {"open_clip": "zero-shot-image-classification", "clips_jax": "zero-shot-image-classification"}


def write_card(model: Pretrained, kind: str, folder: str) -> None:
    """Writes the card, and the results of `_RESULTS` that the workdir (or the folder the model came from) has."""
    found = {}
    for name in _RESULTS:
        path = epath.Path(model.path) / name
        if path.exists():
            found[name] = json.loads(path.read_text())
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(json.dumps(found[name], indent=2) + "\n")
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
        file.write(card(model, kind, list(found.values())))


def card(model: Pretrained, kind: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The card's Markdown; `results` as `clips_jax.evaluate` writes them."""
    config, made = model.config, model.made
    image, text = config.model.image, config.model.text
    parts = {"image tower": model.params["image"]}
    if kind not in _IMAGES_ONLY and "text" in model.params:
        parts["text tower"] = model.params["text"]
    if kind not in _IMAGES_ONLY and "captioner" in model.params:
        where = f" (in `{CAPTIONER_WEIGHTS}`)" if kind == "open_clip" else ""
        parts[f"captioner{where}"] = model.params["captioner"]
    sizes = ", ".join(f"{name} {sum(x.size for x in jax.tree.leaves(part)):,}" for name, part in parts.items())
    reading, not_here = model.preprocessing, "" if "text tower" in parts else " (the tower is not in this export)"
    if is_workdir(model.path) or made.samples_seen:
        data = made.config.data
        training = [
            f"- Data: `{data.dataset}`, split `{data.split}`, texts {', '.join(f'`{t}`' for t in data.texts)}",
            f"- Samples seen: {made.samples_seen:,} ({made.step:,} steps of {made.config.batch_size:,})",
            f"- Loss: {made.config.objective.contrastive} over the views "
            f"{', '.join(f'`{v}`' for v in made.config.objective.views)}; every setting: `config` below",
        ]
    else:
        training = ["- Imported: data and samples seen are not known here; see the card of the model it came from."]
    lines = [
        "---",
        f"library_name: {_LIBRARY[kind]}",
        f"pipeline_tag: {_TASK.get(kind, 'image-feature-extraction')}",
        "tags: [clip, clips]",
        "---",
        "",
        "# CLIPS model",
        "",
        "Trained or converted with clips_jax; the method is CLIPS ([arXiv 2411.16828](https://arxiv.org/abs/2411.16828)).",
        "",
        "## Use",
        "",
        _USE[kind],
        "",
        "## Model",
        "",
        f"- Pictures: {reading.size} px, {reading.resize}, {reading.interpolation}, mean {list(reading.mean)}, std "
        f"{list(reading.std)}; patches of {image.patch_size} px; width {image.transformer.width}, depth "
        f"{image.transformer.depth}, {image.transformer.heads} heads, {image.transformer.gelu} GELU, {image.positions} "
        "positions",
        f"- Texts{not_here}: {text.length} tokens, vocabulary {text.vocab_size:,} "
        f"({model.tokenizer.identity()['kind']}); width {text.transformer.width}, depth {text.transformer.depth}, "
        f"{text.transformer.heads} heads, {text.transformer.gelu} GELU",
        f"- Joint width {config.model.joint_dim}; parameters: {sizes}",
        "",
        "## Training",
        "",
        *training,
        "",
        "## Results",
        "",
    ]
    for part in results:
        seen = (
            f"After {part['samples_seen']:,} samples (step {part['checkpoint_step']:,})" if part["samples_seen"] else ""
        )
        lines += [f"{seen or 'Measured here'}, in percent:", "", "```", results_table(part["results"]), "```", ""]
    if not results:
        lines += ["None recorded.", ""]
    lines += ["## Config", "", "```json", json.dumps(to_dict(made.config), indent=2), "```", ""]
    return "\n".join(lines)
