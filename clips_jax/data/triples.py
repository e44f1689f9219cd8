"""Records with random access: a picture and its named texts, from a TFDS set in ArrayRecord files or from tars.

TensorFlow is not imported; TFDS itself only when a data set is opened.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from clips_jax.config import ConfigError, DataConfig, TextConfig, TokenizerConfig
from clips_jax.data.tar_records import TarSource, is_tars

IMAGE = "image"
_BUILT_IN = "emoji"
_TOKENIZER_FILE = "tokenizer.model"


class BadRecord(ValueError):
    """A record whose bytes cannot be read or parsed."""


def open_builder(dataset: str, data_dir: str) -> Any:
    """A TFDS builder for prepared data; the built-in data are prepared if they are not.

    Args:
      dataset: "name" or "name/config"; "emoji" is the built-in one.
      data_dir: TFDS folder; "" is `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
      FileNotFoundError: not prepared in this folder; names the data set and the command that prepares it.
      ValueError: prepared, but in a format without random access.
    """
    folder = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    name, _, config = dataset.partition("/")
    if name == _BUILT_IN:
        from clips_jax.data import emoji

        return emoji.build(folder, config) if config else emoji.build(folder)
    # Reading from files leaves the data set's own code, which may need TensorFlow, alone.
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        builder = read_only_builder.builder_from_files(dataset, data_dir=folder)
    except registered.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"data.dataset: {dataset!r} is not prepared in {folder}. Set data.data_dir, or prepare it with: "
            f"tfds build {dataset} --file_format=array_record --data_dir={folder}"
        ) from error
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise ValueError(
            f"data.dataset: {dataset!r} in {builder.data_dir} is stored as {file_format}, which has no random access. "
            f"Prepare it with: tfds build {dataset} --file_format=array_record --data_dir={folder}"
        )
    return builder


def tokenizer_path(config: DataConfig, tokenizer: TokenizerConfig) -> str:
    """The SentencePiece model to use: the one that is named, or the one in the prepared data set's folder."""
    if is_tars(config.dataset) and not tokenizer.path:
        raise ConfigError(f"tokenizer.path: name a SentencePiece model; the tars {config.dataset} come without one.")
    return tokenizer.path or os.path.join(str(open_builder(config.dataset, config.data_dir).data_dir), _TOKENIZER_FILE)


def texts_of(record: Mapping[str, Any], texts: Mapping[str, TextConfig]) -> dict[str, str]:
    """The named texts of a record; one that is empty or white space is replaced along its chain of fallbacks."""
    found = {}
    for name in texts:
        source, seen = name, set()
        while not record[source].strip() and texts[source].fallback and source not in seen:
            seen.add(source)
            source = texts[source].fallback
        found[name] = record[source]
    return found


class Records:
    """The records of one split, by position. Picklable: an unpickled copy opens the files anew.

    A record is a dict: "image" is the undecoded file, texts are `str`, sequences lists, labels `int`.

    Attributes:
      features: names of the features.
      text_features: names of those that are one text.
    """

    def __init__(self, dataset: str, split: str, data_dir: str = ""):
        """Opens a split, such as "train[:90%]", of a prepared data set or of tars ("/data/{000..012}.tar").

        Raises as `open_builder` and `TarSource`; `ConfigError` if there is no such split.
        """
        if is_tars(dataset):
            self._folder, self._split = dataset, split
            self._open_tars(TarSource(dataset, split))
            return
        self._folder = str(open_builder(dataset, data_dir).data_dir)
        self._split = split
        try:
            self._open()
        except ValueError as error:
            raise ConfigError(f"split {split!r} of data set {dataset}: {error}") from error

    def _open(self) -> None:
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(self._folder)  # its methods' types are lost in decorators
        features = builder.info.features
        self.features = tuple(sorted(features))
        # A ClassLabel is stored as a number; only `Text` is text.
        self.text_features = tuple(name for name in self.features if type(features[name]) is tfds.features.Text)
        decoders = {IMAGE: tfds.decode.SkipDecoding()} if IMAGE in features else None
        self._source = builder.as_data_source(self._split, decoders=decoders)

    def _open_tars(self, source: TarSource) -> None:
        self._source: Any = source
        self.features, self.text_features = source.features, source.text_features

    def __getstate__(self) -> dict[str, Any]:
        tars = self._source if isinstance(self._source, TarSource) else None
        return {"folder": self._folder, "split": self._split, "tars": tars}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._folder, self._split = state["folder"], state["split"]
        if state["tars"] is None:
            self._open()
        else:  # the headers are not read again
            self._open_tars(state["tars"])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The records at `indices`, in that order; one call is many times faster than single reads.

        Raises:
          IndexError: an index is outside 0 to len - 1.
          BadRecord: one of them cannot be read; reading them singly tells which.
        """
        wanted = [int(index) for index in indices]
        for index in wanted:
            if not 0 <= index < len(self):
                raise IndexError(f"Record {index} of {len(self)} in {self._folder}, split {self._split}.")
        try:
            records = self._source.__getitems__(wanted)
        except Exception as error:  # ArrayRecord and the parser raise many kinds on damaged bytes
            raise BadRecord(f"Records {_shortened(wanted)} of {self._folder}, {self._split}: {error}") from error
        return [{name: _plain(name, value) for name, value in record.items()} for record in records]


def _shortened(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:5])) + (", …" if len(indices) > 5 else "")


def _plain(name: str, value: Any) -> Any:
    if name == IMAGE:
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_plain("", item) for item in value]
    return value
