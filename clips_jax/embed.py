"""Embeds pictures and texts with a trained or imported model.

  python -m clips_jax.embed --model runs/demo --images photos/ --out photos.npz
  python -m clips_jax.embed --model openvision/ --images '/data/{00..12}.tar' --texts captions.txt --out all.parquet

`--model` is the workdir of a run or a model folder: an export, or an OpenCLIP-format CLIPS or OpenVision model.

An .npz holds, for pictures, `image_embeddings` (float32, rows of length 1, in the order of the sorted names) and
`image_names`; for texts, `text_embeddings`, `token_ids` (int32) and `texts`, in input order. A picture that cannot be
read has no row: it is reported, and listed in `bad_images` and `bad_image_reasons`. A .parquet, for large sets, is
written as it grows: `kind` (image, text, bad_image), `name` (the text itself for texts), `embedding`, `token_ids`,
`note` (why an image is bad).

Everything is computed in float32 at the highest matmul precision, spread over all devices.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import jax
from absl import logging

from clips_jax.checkpoint import CheckpointMismatch
from clips_jax.config import ConfigError, MeshConfig
from clips_jax.data.pictures import PICTURE_ENDINGS, Pictures, decoded_chunks
from clips_jax.embedding_files import ENDINGS, Npz, Parquet
from clips_jax.encode import Encoder
from clips_jax.interop.state_dict import WrongWeights
from clips_jax.metrics import duration
from clips_jax.pretrained import load
from clips_jax.sharding import join_processes

CHUNK_BATCHES = 16  # batches between two progress lines, and between two row groups of a parquet file
LISTED = 10  # bad pictures named on the terminal; the file lists all
_TEXT_KEYS = ("text", "caption")  # of a JSON line, in this order


class BadInput(ValueError):
    """A text file that cannot be read as one."""


def read_texts(path: str) -> list[str]:
    """The texts of a file: a line each (.txt; an empty line is an empty text), or a JSON line each (.jsonl).

    A JSON line is a string, or an object with "text" or "caption". Raises `BadInput` naming the line.
    """
    if not path.endswith((".txt", ".jsonl")):
        raise BadInput(f"{path}: texts are read from .txt (a text per line) or .jsonl.")
    texts = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                line = line.removesuffix("\n")
                texts.append(line if path.endswith(".txt") else _json_text(line, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: line {len(texts) + 1} or one soon after it is not UTF-8 ({error.reason}).") from error
    return texts


def _json_text(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BadInput(f"{where}: not JSON: {error}") from error
    if isinstance(value, dict):
        value = next((value[key] for key in _TEXT_KEYS if key in value), None)
    if not isinstance(value, str):
        raise BadInput(f"{where}: neither a string nor an object with {' or '.join(map(repr, _TEXT_KEYS))}.")
    return value


def embed_images(
    encoder: Encoder, pictures: Pictures, names: Sequence[str], sink: Npz | Parquet, chunk: int
) -> list[tuple[str, str]]:
    """Writes the embeddings of all readable pictures; returns the names of the others, and why.

    All processes call it together; each decodes everything, so that all know the same.
    """
    bad: list[tuple[str, str]] = []
    chunks = decoded_chunks(pictures, encoder.preprocessing, chunk)
    for (start, count), part in zip(_chunks(len(pictures), chunk, "images"), chunks, strict=True):
        good = [i for i in range(count) if not part.errors[i]]
        bad += [(names[start + i], part.errors[i]) for i in range(count) if part.errors[i]]
        if good:
            rows = encoder.images(lambda indices, part=part: part.images[list(indices)], count)
            sink.images([names[start + i] for i in good], rows[good])
    if bad:
        sink.bad_images([name for name, _ in bad], [reason for _, reason in bad])
    return bad


def open_pictures(path: str) -> tuple[Pictures, list[str]]:
    """Pictures, and what to call them: paths within the folder, keys of the tars, or the file's name.

    A folder of tars stands for these. Files that are no pictures by their endings are counted on the terminal.
    """
    pictures = Pictures([path])
    if not os.path.isdir(path):
        return pictures, [os.path.basename(path)] if pictures.names == [path] else pictures.keys
    if pictures.names[0].lower().endswith(f".tar#{pictures.keys[0].lower()}"):  # tars, as it has no picture
        return pictures, pictures.keys
    endings = Counter(ending for ending in _endings(path) if ending not in PICTURE_ENDINGS)
    if endings:
        listed = ", ".join(f"{ending or 'none'} {count}" for ending, count in sorted(endings.items()))
        _say(f"left out: {endings.total()} files that are no pictures by their endings ({listed})")
    return pictures, [os.path.relpath(name, path).replace(os.sep, "/") for name in pictures.names]


def _endings(folder: str) -> list[str]:
    found = [name for _, _, files in os.walk(folder) for name in files if not name.startswith(".")]
    return [os.path.splitext(name)[1].lower() for name in found]


def embed_texts(encoder: Encoder, texts: Sequence[str], sink: Npz | Parquet, chunk: int) -> None:
    """Writes the embeddings and token ids of all texts."""
    for start, count in _chunks(len(texts), chunk, "texts"):
        part = texts[start : start + count]
        sink.texts(part, encoder.texts(part), encoder.token_ids(part))


def _chunks(total: int, size: int, what: str) -> Iterator[tuple[int, int]]:
    """(start, count) of each chunk, one empty one if there is nothing; reports progress in between."""
    begun = time.monotonic()
    for start in range(0, max(total, 1), size):
        yield start, min(size, total - start)
        done = min(start + size, total)
        rate = done / max(time.monotonic() - begun, 1e-9)
        left = f"  {duration((total - done) / rate)} left" if done < total else ""
        _say(f"{what} {done:,}/{total:,}  {rate:,.0f}/s{left}")


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> None:
    """The command; see the module's docstring."""
    # Whatever can be wrong with the inputs is found before the model is opened.
    pictures, names = open_pictures(arguments.images) if arguments.images else (None, [])
    texts = read_texts(arguments.texts) if arguments.texts else None
    folder = os.path.dirname(os.path.abspath(arguments.out))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--out: there is no folder {folder}.")
    mesh = MeshConfig(fsdp=arguments.fsdp)
    logging.set_verbosity(logging.ERROR)  # Orbax warns that what was opened for reading is read-only
    model = load(
        arguments.model,
        step=arguments.step,
        data_dir=arguments.data_dir,
        mesh=mesh,
        positions=arguments.positions,
        exact=True,
        batch_size=arguments.batch_size,
    )
    if texts is not None and not model.config.objective.views:
        raise ConfigError(f"{arguments.model} has no text tower (objective.views is empty); leave --texts out.")
    first = jax.process_index() == 0
    sink = Parquet(arguments.out) if arguments.out.endswith(".parquet") else Npz(arguments.out)
    chunk = CHUNK_BATCHES * arguments.batch_size
    bad: list[tuple[str, str]] = []
    try:
        if pictures:
            bad = embed_images(model.encoder, pictures, names, sink, chunk)
            for name, reason in bad[:LISTED]:
                _say(f"no row: {name}: {reason}")
            if len(bad) > LISTED:
                _say(f"no row: {len(bad) - LISTED} more, listed in the file")
        if texts is not None:
            embed_texts(model.encoder, texts, sink, chunk)
        if pictures and len(bad) == len(pictures):
            raise BadInput(f"none of the {len(bad)} pictures can be read; {bad[0][0]}: {bad[0][1]}")
        sink.finish() if first else sink.abandon()
    except BaseException:
        sink.abandon()
        raise
    if first:
        parts = [f"{len(pictures) - len(bad)} images"] if pictures else []
        parts += [f"{len(texts)} texts"] if texts is not None else []
        note = f"; {len(bad)} pictures could not be read and have no row" if bad else ""
        print(f"{', '.join(parts)} of width {model.config.model.joint_dim} in {arguments.out}{note}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="WORKDIR|FOLDER", help="a run's workdir or a model folder")
    parser.add_argument("--images", metavar="DIR|TARS", help="folder (with all folders in it), tars, or a file")
    parser.add_argument("--texts", metavar="FILE", help=".txt, a text per line; .jsonl, strings or {'text': …}")
    parser.add_argument("--out", required=True, metavar="FILE", help="FILE.npz or FILE.parquet")
    parser.add_argument(
        "--positions",
        default="",
        choices=("learned", "sincos"),
        help="how an imported model's image position table is held (default: sin-cos, an error if it is not)",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="pictures or texts at once (default 64)")
    parser.add_argument("--step", type=int, help="of a workdir: checkpoint to use (default: the newest)")
    parser.add_argument("--data_dir", default="", help="of a workdir: TFDS folder, if the data has moved since")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share one copy of the parameters (default 1)")
    parser.add_argument("--distributed", action="store_true", help="join other processes, as in clips_jax.main")
    arguments = parser.parse_args(argv)
    if not (arguments.images or arguments.texts):
        parser.error("nothing to embed: give --images, --texts or both")
    if not arguments.out.endswith(ENDINGS):
        parser.error(f"--out {arguments.out}: the name must end in {' or '.join(ENDINGS)}")
    if arguments.batch_size < 1:
        parser.error(f"--batch_size {arguments.batch_size}: use 1 or more")
    if arguments.distributed:
        join_processes()
    try:
        run(arguments)
    except (BadInput, ConfigError, CheckpointMismatch, WrongWeights, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")  # the message says what to do; a traceback would bury it


if __name__ == "__main__":
    main()
