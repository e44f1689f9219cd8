"""The built-in data: emoji drawings from pip packages, prepared on first use.

Import is light: TFDS and the drawing packages are imported when data is built.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Assumption: the texts hold few different words (names, keywords and the programs' wordings).
VOCAB_SIZE = 2000
TOKENIZER_FILE = "tokenizer.model"


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock between the processes of this machine; it goes with the process, however that ends."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def source(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[dict[str, Any]]:
    """A split's records by position; pictures stay PNG bytes, texts are bytes, labels integers."""
    import tensorflow_datasets as tfds

    read: Any = builder.as_data_source  # a decorator of TFDS hides its parameters from type checkers
    return read(split, decoders={"image": tfds.decode.SkipDecoding()})


def texts(builder: tfds.core.DatasetBuilder) -> Iterator[str]:
    """AltText and recaption of every training record, in order."""
    for record in source(builder, "train"):
        for field in ("alt_text", "recaption"):
            yield record[field].decode()


def _prepare(builder: tfds.core.DatasetBuilder, folder: pathlib.Path) -> None:
    """Writes the records; the caller holds the lock."""
    import tensorflow_datasets as tfds

    for abandoned in folder.parent.glob(f"incomplete.*_{folder.name}"):  # TFDS' names; left by a killed process
        shutil.rmtree(abandoned)
    print(f"Preparing the built-in data in {folder} (about half a minute, once).", file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder.download_and_prepare()


def build(data_dir: str | None = None, config: str = "noto_color_held_out") -> tfds.core.DatasetBuilder:
    """The builder of prepared data; prepares it on first use (about half a minute), with the tokenizer's model.

    Several processes may call this at once: one prepares, the others wait. TFDS writes into a folder with another
    name and renames it when it is complete, the tokenizer's training likewise a file: nothing half-written passes for
    whole.

    Args:
      data_dir: where prepared data lives; TFDS' own default if None.
      config: 'noto_color_held_out', or 'openmoji_held_out' for tuning; `builder.py` has others.

    Returns:
      a builder; `as_data_source` reads it, `builder.data_dir` holds `tokenizer.model`.
    """
    from clips_jax.data.emoji.builder import Emoji

    builder = Emoji(data_dir=data_dir, config=config, file_format="array_record")
    folder = pathlib.Path(builder.data_dir)
    if _complete(folder):
        return builder
    with _locked(folder.parent / f".{folder.name}.lock"):
        # Another process may have prepared it meanwhile; a fresh builder reads what is there.
        builder = Emoji(data_dir=data_dir, config=config, file_format="array_record")
        if not (folder / "dataset_info.json").exists():
            _prepare(builder, folder)
        if not (folder / TOKENIZER_FILE).exists():
            from clips_jax.data.tokenizer import train_sentencepiece

            train_sentencepiece(texts(builder), str(folder / TOKENIZER_FILE), VOCAB_SIZE)
    return builder


def _complete(folder: pathlib.Path) -> bool:
    return (folder / "dataset_info.json").exists() and (folder / TOKENIZER_FILE).exists()
