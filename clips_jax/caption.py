"""Writes recaptions for pictures with a trained captioner.

  python -m clips_jax.caption --model runs/demo cat.jpg --alt "my cat"
  python -m clips_jax.caption --model runs/demo photos/ --out recaptions.jsonl
  python -m clips_jax.caption --model runs/demo 'shards/{00000..00099}.tar' --out recaptions.parquet --strategy beam

Pictures are files, folders or tar shards. The captioner is given each picture's AltText: `--alt` for all, or from
`--alt_csv`, or the text that lies beside the picture (a .txt of the same name; in tars the sample's .txt or JSON).

`--out` is a table with the columns key, re_caption, alt_text, image, sha256, which `python -m clips_jax.data.prepare`
joins to the pictures, so that one model's recaptions train the next. It is there whole or not at all. What is
finished is kept in OUT.partial; the same command again goes on from there. Pictures that cannot be read are left out,
counted, and listed with the reason in OUT.bad.jsonl.
"""

import argparse
import csv
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from clips_jax.config import ConfigError
from clips_jax.data.pictures import Chunk, Pictures, decoded_chunks
from clips_jax.decoding import Decoding
from clips_jax.encode import Encoder
from clips_jax.growing_table import GrowingTable
from clips_jax.pretrained import load
from clips_jax.progress import Progress

_BAD_SHOWN = 5


def caption_chunk(
    encoder: Encoder, chunk: Chunk, alt_texts: Sequence[str], decoding: Decoding, chunk_size: int
) -> list[str]:
    """Captions of a chunk's pictures. Sampling depends on a picture's key, not on its place.

    A chunk that is not full is filled up with its last picture, so that nothing compiles twice.
    """
    count = len(chunk.records)
    row = [min(i, count - 1) for i in range(chunk_size)]
    identities = [zlib.crc32(str(record["id"]).encode()) & 0x7FFFFFFF for record in chunk.records]
    captions = encoder.captions(
        lambda rows: chunk.images[[row[i] for i in rows]],
        chunk_size,
        [alt_texts[i] for i in row],
        decoding,
        [identities[i] for i in row],
    )
    return captions[:count]


def caption_pictures(
    encoder: Encoder,
    pictures: Pictures,
    decoding: Decoding,
    batch_size: int,
    alt: str | None = None,
    alt_by_key: Mapping[str, str] | None = None,
    start: int = 0,
) -> Iterator[list[dict[str, Any]]]:
    """Rows of recaptions, a batch at a time, in the pictures' order.

    Args:
      alt: the AltText of all pictures; None takes each its own.
      alt_by_key: AltTexts by key or by name; "" where a picture has none there.
      start: position to begin at.

    Returns:
      dicts of key, re_caption, alt_text, image (the name), sha256; "error" instead of a caption for a bad picture.
    """
    chunk_size = min(batch_size, len(pictures))
    for chunk in decoded_chunks(pictures, encoder.preprocessing, chunk_size, start):
        names = pictures.names[chunk.start : chunk.start + len(chunk.records)]
        alt_texts = [
            alt if alt is not None else _alt_text(record, name, alt_by_key)
            for record, name in zip(chunk.records, names, strict=True)
        ]
        captions = caption_chunk(encoder, chunk, alt_texts, decoding, chunk_size)
        rows = []
        for record, name, text, caption, error in zip(
            chunk.records, names, alt_texts, captions, chunk.errors, strict=True
        ):
            row = {"key": record["id"], "image": name}
            written = {"re_caption": caption, "alt_text": text, "sha256": record["sha256"]}
            rows.append(row | ({"error": error} if error else written))
        yield rows


def _alt_text(record: Mapping[str, Any], name: str, alt_by_key: Mapping[str, str] | None) -> str:
    if alt_by_key is None:
        return record["alt_text"]
    return next((alt_by_key[key] for key in (record["id"], name, os.path.basename(name)) if key in alt_by_key), "")


def read_alt_csv(path: str) -> dict[str, str]:
    """AltTexts by key: a CSV with a column "key" or "image" and a column "alt_text" or "caption".

    Raises `ConfigError` if it has no such columns.
    """
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        key = next((name for name in ("key", "image", "file_name") if name in columns), None)
        text = next((name for name in ("alt_text", "caption") if name in columns), None)
        if key is None or text is None:
            raise ConfigError(f"--alt_csv {path}: wants columns key (or image) and alt_text, has {list(columns)}.")
        return {row[key]: (row[text] or "") for row in rows if row[key]}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = _parse(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns that what was opened for reading is read-only
    try:
        _run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")  # the message says what to do; a traceback would bury it


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.caption", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="+", metavar="IMAGE", help="picture files, folders, tar shards")
    parser.add_argument("--model", required=True, help="workdir of a run with a captioner, or an export of one")
    parser.add_argument("--step", type=int, help="of a workdir: checkpoint to use (default: the newest)")
    parser.add_argument("--data_dir", default="", help="of a workdir: TFDS folder, if the data has moved since")
    parser.add_argument("--out", metavar="FILE", help="table to write, .jsonl or .parquet (default: the terminal)")
    alt = parser.add_mutually_exclusive_group()
    alt.add_argument("--alt", metavar="TEXT", help="AltText of all pictures (default: each its own)")
    alt.add_argument("--alt_csv", metavar="FILE", help="CSV with columns key (or image) and alt_text")
    default = Decoding()
    parser.add_argument("--strategy", choices=("greedy", "beam", "nucleus"), default=default.strategy)
    parser.add_argument("--beams", type=int, default=default.beams, help=f"beam: width (default {default.beams})")
    help_text = f"beam: 0 favours short captions (default {default.length_penalty})"
    parser.add_argument("--length_penalty", type=float, default=default.length_penalty, help=help_text)
    parser.add_argument("--temperature", type=float, default=default.temperature, help="nucleus (default 1)")
    help_text = f"nucleus: probability of what is sampled from (default {default.top_p})"
    parser.add_argument("--top_p", type=float, default=default.top_p, help=help_text)
    parser.add_argument("--seed", type=int, default=0, help="nucleus (default 0)")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures at once (default 64)")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch_size {arguments.batch_size}: use 1 or more.")
    decoding = Decoding(
        arguments.strategy,
        arguments.beams,
        arguments.length_penalty,
        arguments.temperature,
        arguments.top_p,
        arguments.seed,
    )
    pictures = Pictures(arguments.pictures)
    alt_by_key = read_alt_csv(arguments.alt_csv) if arguments.alt_csv else None
    table = GrowingTable(arguments.out) if arguments.out else None
    model = load(arguments.model, step=arguments.step, data_dir=arguments.data_dir)
    encoder = model.encoder
    encoder.check_decoding(decoding)
    start = 0
    if table is not None:
        settings = {name: getattr(arguments, name) for name in vars(arguments) if name not in ("out", "batch_size")}
        start = table.open(settings | {"step": model.step, "pictures": zlib.crc32("\n".join(pictures.names).encode())})
        if start:
            print(f"{table.partial} holds {start:,} of {len(pictures):,}: going on from there", file=sys.stderr)
    progress = Progress("pictures", len(pictures), start)
    done, bad, without_alt = start, [], 0
    batches = caption_pictures(encoder, pictures, decoding, arguments.batch_size, arguments.alt, alt_by_key, start)
    for rows in batches:
        done += len(rows)
        bad += [row for row in rows if "error" in row]
        without_alt += sum(not row["alt_text"].strip() for row in rows if "error" not in row)
        if table is not None:
            table.add(rows)
            progress.show(done, f", {len(bad):,} bad" if bad else "")
        else:
            for row in rows:
                if "error" not in row:
                    print(f"{row['image']}: {row['re_caption']}", flush=True)
    for row in bad[:_BAD_SHOWN]:
        print(f"left out: {row['image']}: {row['error']}", file=sys.stderr)
    if len(bad) > _BAD_SHOWN:
        print(f"left out: {len(bad) - _BAD_SHOWN:,} more", file=sys.stderr)
    if without_alt and encoder.reads_alt_text:
        print(f"{without_alt:,} pictures had no AltText: the captioner was given an empty one", file=sys.stderr)
    if table is not None:
        written, left_out = table.finish()
        listed = f"; {left_out:,} unreadable ones are in {table.bad}" if left_out else ""
        print(f"{written:,} recaptions in {arguments.out}{listed}")
    if done and len(bad) == done - start and start == 0:
        raise ConfigError("none of the pictures can be read.")


if __name__ == "__main__":
    main()
