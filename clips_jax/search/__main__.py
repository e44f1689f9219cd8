"""Searches pictures by text or by picture.

  python -m clips_jax.search index photos/ 'shards/{000..009}.tar' --model runs/demo --index my_index
  python -m clips_jax.search query my_index "a red apple"
  python -m clips_jax.search query my_index --picture apple.jpg
  python -m clips_jax.search serve my_index

`index` embeds every picture once; run again, it embeds what is new or changed. `query` prints the best pictures.
`serve` opens a page with thumbnails on this machine only (http://127.0.0.1:8000). Both notice when the model or the
pictures have changed since the index was made.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

import numpy as np
from absl import logging

from clips_jax.config import ConfigError
from clips_jax.data.pictures import Pictures
from clips_jax.pretrained import Pretrained, load
from clips_jax.search.index import PictureIndex, fingerprint, make_index
from clips_jax.search.server import make_server

_BAD_SHOWN = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = _parse(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns that what was opened for reading is read-only
    try:
        arguments.command(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")  # the message says what to do; a traceback would bury it


def _index(arguments: argparse.Namespace) -> None:
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch_size {arguments.batch_size}: use 1 or more.")
    for path in arguments.pictures:  # before the model is read, which may take a while
        if not os.path.exists(path) and not path.endswith(".tar"):
            raise FileNotFoundError(f"{path}: no such picture, folder or tar.")
    model = load(
        arguments.model,
        step=arguments.step,
        data_dir=arguments.data_dir,
        positions=arguments.positions,
        exact=True,
    )
    made = make_index(arguments.index, arguments.pictures, model, arguments.batch_size, arguments.positions)
    bad = PictureIndex(arguments.index).bad
    for name, error in list(bad.items())[:_BAD_SHOWN]:
        print(f"left out: {name}: {error}", file=sys.stderr)
    if len(bad) > _BAD_SHOWN:
        print(f"left out: {len(bad) - _BAD_SHOWN:,} more", file=sys.stderr)
    print(f"{made.total:,} pictures in {arguments.index}: {made.embedded:,} embedded now, {made.bad:,} unreadable")


def _open(arguments: argparse.Namespace) -> tuple[PictureIndex, Pictures | None, Pretrained, list[str]]:
    """The index, its pictures (None if they are gone), its model, and what a user should know about them."""
    index = PictureIndex(arguments.folder)
    path = arguments.model or index.meta["model"]
    step = arguments.step
    warnings = []
    positions = index.meta.get("positions", "")
    model = load(path, step=step, data_dir=arguments.data_dir, positions=positions, exact=True)
    if fingerprint(model) != index.meta["fingerprint"]:
        raise ConfigError(
            f"{arguments.folder} was made with another model (step {index.meta['step']} of {index.meta['model']}; "
            f"this is step {model.step} of {model.path}): their embeddings do not compare. Run `index` again, or "
            f"give --model and --step as they were."
        )
    try:
        pictures = Pictures(index.meta["paths"])
    except (FileNotFoundError, ConfigError) as error:
        return index, None, model, [f"the pictures have moved: {error}"]
    if arguments.check:
        changes = index.changes(pictures)
        if changes.new or changes.changed or changes.gone:
            warnings.append(f"the pictures have changed since they were indexed ({changes}): run `index` again")
    return index, pictures, model, warnings


def _query(arguments: argparse.Namespace) -> None:
    if (arguments.text is None) == (arguments.picture is None):
        raise ConfigError("query: give a text or --picture FILE, one of them.")
    index, _, model, warnings = _open(arguments)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.text is not None:
        query = model.encoder.texts([arguments.text])[0]
    else:
        with open(arguments.picture, "rb") as file:
            query = embed_picture(model, file.read())
    found = index.search(query, arguments.count)
    if arguments.json:
        rows = [{"name": index.names[number], "score": round(score, 6)} for number, score in found]
        print(json.dumps(rows, ensure_ascii=False))
    else:
        for number, score in found:
            print(f"{score:6.3f}  {index.names[number]}")


def embed_picture(model: Pretrained, data: bytes) -> np.ndarray:
    """float32 (E,) of a picture file; raises `BadImage`."""
    pixels = model.preprocessing.pixels(data)
    return model.encoder.images(lambda rows: np.stack([pixels] * len(rows)), 1)[0]


def _serve(arguments: argparse.Namespace) -> None:
    index, pictures, model, warnings = _open(arguments)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    server = make_server(
        index,
        pictures,
        lambda text: model.encoder.texts([text])[0],
        lambda data: embed_picture(model, data),
        warnings,
        arguments.host,
        arguments.port,
    )
    embed_picture_now(model)
    host, port = server.server_address[:2]
    print(f"{len(index.names):,} pictures at http://{host}:{port} (stop with Ctrl-C)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def embed_picture_now(model: Pretrained) -> None:
    """Compiles what queries need, so that the first one does not wait."""
    model.encoder.texts([""])
    size = model.encoder.image_size
    model.encoder.images(lambda rows: np.zeros((len(rows), size, size, 3), np.uint8), 1)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m clips_jax.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="index|query|serve")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--step", type=int, help="of a workdir: checkpoint to use (default: the newest)")
    common.add_argument("--data_dir", default="", help="of a workdir: TFDS folder, if the data has moved since")
    index = commands.add_parser("index", parents=[common], help="embed pictures, once")
    index.add_argument("pictures", nargs="+", help="folders, tar shards, picture files")
    index.add_argument("--model", required=True, help="workdir of a run, or a model folder")
    index.add_argument("--index", default="search_index", help="folder to write (default: search_index)")
    index.add_argument("--batch_size", type=int, default=256, help="pictures at once (default 256)")
    index.add_argument(
        "--positions",
        default="",
        choices=("learned", "sincos"),
        help="how an imported model's image position table is held (default: sin-cos, an error if it is not)",
    )
    index.set_defaults(command=_index)
    opened = argparse.ArgumentParser(add_help=False, parents=[common])
    opened.add_argument("folder", metavar="INDEX", help="folder of the index")
    opened.add_argument("--model", help="the index's model, if it has moved")
    opened.add_argument("--no_check", dest="check", action="store_false", help="do not look for changed pictures")
    query = commands.add_parser("query", parents=[opened], help="print the best pictures")
    query.add_argument("text", nargs="?", help="what to look for")
    query.add_argument("--picture", metavar="FILE", help="look for pictures like this one")
    query.add_argument("-n", "--count", type=int, default=10, help="pictures shown (default 10)")
    query.add_argument("--json", action="store_true", help="one line of JSON")
    query.set_defaults(command=_query)
    serve = commands.add_parser("serve", parents=[opened], help="open a page on this machine")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.set_defaults(command=_serve)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
