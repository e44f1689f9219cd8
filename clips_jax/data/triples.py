"""Records with random access: a picture and its named texts, from a TFDS set in ArrayRecord files or from tars.

TensorFlow is not imported; TFDS itself only when a data set is opened.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from clips_jax.config import ConfigError, DataConfig, TextConfig, TokenizerConfig
from clips_jax.data.array_records import ArrayRecordFiles
from clips_jax.data.examples import BadRecord, Kind, parse_example
from clips_jax.data.splits import absolute_split
from clips_jax.data.tar_records import TarSource, is_tars

IMAGE = "image"
BUILT_IN = "emoji"
_TOKENIZER_FILE = "tokenizer.model"


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
    if name == BUILT_IN:
        from clips_jax.data import emoji

        return emoji.build(folder, config) if config else emoji.build(folder)
    # Reading from files leaves the data set's own code, which may need TensorFlow, alone.
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        builder = read_only_builder.builder_from_files(dataset, data_dir=folder)
    except registered.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"data.dataset: {dataset!r} is not prepared in {folder}. Set data.data_dir, or prepare it: your own files "
            f"with python -m clips_jax.data.prepare, a set of TFDS with "
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
    """The named texts of a record; one that is empty or white space is replaced along its chain of fallbacks.

    Of a list of texts the first that is not empty is taken; in training the pipeline has drawn one before.
    """

    def text(name: str) -> str:
        value = record[name]
        return value if isinstance(value, str) else next((one for one in value if one.strip()), "")

    found = {}
    for name in texts:
        source, seen = name, set()
        while not text(source).strip() and texts[source].fallback and source not in seen:
            seen.add(source)
            source = texts[source].fallback
        found[name] = text(source)
    return found


class Records:
    """The records of one split, by position. Picklable: an unpickled copy opens the files anew.

    A record is a dict: "image" is the undecoded file, texts are `str`, sequences lists, labels and numbers numbers.

    Attributes:
      features: names of the features.
      text_features: names of those that are a text, or a list of texts to choose from.
    """

    def __init__(self, dataset: str, split: str, data_dir: str = ""):
        """Opens a split, such as "train[:90%]" (`splits`), of a prepared data set or of tars ("/data/{000..012}.tar").

        Raises as `open_builder` and `TarSource`; `ConfigError` if there is no such split, `FileNotFoundError` if files
        of it are missing.
        """
        if is_tars(dataset):
            self._source = TarSource(dataset, split)
        else:
            self._source = _PreparedSource(open_builder(dataset, data_dir), split)
        self.features = self._source.features
        self.text_features = self._source.text_features

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The records at `indices`, in that order; one call is many times faster than single reads.

        Raises:
          IndexError: an index is outside 0 to len - 1.
          BadRecord: the first that cannot be read.
        """
        records = []
        for record in self.read_each(indices):
            if isinstance(record, BadRecord):
                raise record
            records.append(record)
        return records

    def read_each(
        self, indices: Sequence[int], features: Collection[str] | None = None
    ) -> list[dict[str, Any] | BadRecord]:
        """As `read`, but a record that cannot be read is the error that says why.

        Args:
          indices: positions.
          features: the features that are needed; None is all of them.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"Record {index} of {len(self)}.")
        return self._source.read_each(indices, self.features if features is None else features)


class _PreparedSource:
    """A split of a prepared TFDS data set; what TFDS knows of it is read once, here."""

    def __init__(self, builder: Any, split: str):
        try:
            splits = builder.info.splits
            files = splits[absolute_split(split, lambda name: splits[name].num_examples)].file_instructions
        except (KeyError, ValueError) as error:
            raise ConfigError(f"split {split!r} of data set {builder.info.full_name}: {error}") from error
        self._files = ArrayRecordFiles(
            str(builder.data_dir),
            [os.path.basename(file.filename) for file in files],
            [file.skip for file in files],
            [file.examples_in_shard if file.take == -1 else file.take for file in files],
        )
        self._kinds: dict[str, Kind] = {}
        for name, feature in sorted(builder.info.features.items()):
            kind = _kind(name, feature)
            if kind is not None:
                self._kinds[name] = kind
        self.features = tuple(self._kinds)
        self.text_features = tuple(n for n in self.features if _is_text(builder.info.features[n]))

    def __len__(self) -> int:
        return len(self._files)

    def read_each(self, indices: Sequence[int], features: Collection[str]) -> list[dict[str, Any] | BadRecord]:
        kinds: dict[str, Kind] = {name: self._kinds[name] for name in features}
        records: list[dict[str, Any] | BadRecord] = []
        for index, data in zip(indices, self._files.read_each(indices), strict=True):
            try:
                records.append(data if isinstance(data, BadRecord) else parse_example(data, kinds))
            except BadRecord as error:
                records.append(BadRecord(f"record {index} of {self._files.folder}: {error}"))
        return records


def _is_text(feature: Any) -> bool:
    """Whether it is a text or a list of texts: a ClassLabel is stored as a number, other strings are no captions."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    return type(feature) is tfds.features.Text


def _kind(name: str, feature: Any) -> Kind | None:
    """How a TFDS feature is read; None for what a record here does not hold (nested features, further pictures)."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return "image" if name == IMAGE else None
    if isinstance(feature, tfds.features.Sequence):
        lists: dict[str | None, Kind] = {"text": "texts", "integer": "integers", "number": "numbers"}
        return lists.get(_kind("", feature.feature))
    if not isinstance(feature, tfds.features.Tensor) or feature.shape:
        return None
    scalars: dict[str, Kind] = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "O": "text", "U": "text"}
    dtype: Any = feature.np_dtype
    return scalars.get(np.dtype(dtype).kind)
