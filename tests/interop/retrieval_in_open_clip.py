"""Retrieval on the built-in data, computed by open_clip_torch alone from an exported folder.

    python -m clips_jax.export --workdir runs/demo_released --format open_clip --out demo-open-clip
    python -m tests.interop.retrieval_in_open_clip demo-open-clip

The numbers must be those of the run's `results.json` (`retrieval/unseen_drawings` by name). Only the records are read
by this project; pictures, texts and embeddings are open_clip's.
"""

import argparse
import io

import numpy as np
import open_clip
import torch
from PIL import Image

from clips_jax.data.triples import Records


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--split", default="unseen_drawings")
    arguments = parser.parse_args()
    records = Records("emoji", arguments.split, arguments.data_dir)
    found = records.read(range(len(records)))
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{arguments.folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{arguments.folder}")
    model.eval()
    names = [record["name"] for record in found]
    with torch.no_grad():
        pictures = torch.stack([preprocess(Image.open(io.BytesIO(record["image"]))) for record in found])
        images = torch.cat([model.encode_image(part, normalize=True) for part in pictures.split(256)])
        texts = torch.cat([model.encode_text(part, normalize=True) for part in tokenizer(names).split(256)])
    similarity = (images @ texts.T).numpy()
    same = np.array(names)[:, None] == np.array(names)[None]
    for direction, table in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        right = same[np.arange(len(names)), table.argmax(axis=1)]
        print(f"{arguments.split} {direction}/R@1 {100 * right.mean():.4f}  ({len(names)} pictures)")


if __name__ == "__main__":
    main()
