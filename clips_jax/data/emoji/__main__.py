"""Builds the built-in data and shows what is in it: `python -m clips_jax.data.emoji --help`."""

from __future__ import annotations

import argparse
import io
import time

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from clips_jax.data import emoji

_SPLITS = ("train", "unseen_drawings", "unseen_concepts")


def contact_sheet(builder: tfds.core.DatasetBuilder, columns: int = 40, rows_per_split: int = 12) -> Image.Image:
    """Pictures of every split, evenly picked, `rows_per_split` rows each."""
    rows = []
    for split in _SPLITS:
        source = emoji.source(builder, split)
        n = min(len(source) // columns, rows_per_split)
        picked = np.linspace(0, len(source) - 1, n * columns).astype(int)
        pictures = [np.array(Image.open(io.BytesIO(source[int(i)]["image"]))) for i in picked]
        rows += [np.concatenate(pictures[r * columns : (r + 1) * columns], axis=1) for r in range(n)]
        rows.append(np.zeros((8, rows[-1].shape[1], 3), np.uint8))
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m clips_jax.data.emoji", description=__doc__)
    parser.add_argument("--data_dir", help="where prepared data lives (default: TFDS' own, ~/tensorflow_datasets)")
    parser.add_argument(
        "--config",
        default="noto_color_held_out",
        help="or openmoji_held_out, for tuning; noisy_alt_text or opening_anywhere, to test claims",
    )
    parser.add_argument("--contact_sheet", metavar="FILE.png", help="write a sheet of pictures")
    args = parser.parse_args()

    start = time.monotonic()
    builder = emoji.build(args.data_dir, args.config)
    print(f"{builder.data_dir}, ready after {time.monotonic() - start:.1f} s\n\n{builder.info.description}")
    for split in _SPLITS:
        print(f"{split}: {builder.info.splits[split].num_examples} records")
    for split in _SPLITS:
        source = emoji.source(builder, split)
        for i in (0, 1):
            r = source[i]
            print(f"\n{split}, {r['id'].decode()} ({r['name'].decode()})")
            print(f"  AltText:   {r['alt_text'].decode()}\n  recaption: {r['recaption'].decode()}")
    if args.contact_sheet:
        contact_sheet(builder).save(args.contact_sheet)


if __name__ == "__main__":
    main()
