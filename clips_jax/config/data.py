"""Settings of the data: where records, their texts and pictures come from, and the tokenizer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """One named text of a record, as the pipeline ships it to the devices.

    Attributes:
      length: tokens shipped per text, without special tokens; longer texts are cut, shorter ones padded.
      fallback: the text that stands in when this one is empty ("" = none: an empty text stays empty).
    """

    length: int
    fallback: str = ""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from and how pictures are read.

    Attributes:
      dataset: TFDS name, "name" or "name/config". "emoji" is the built-in one, built on first use.
      data_dir: TFDS folder; "" is `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      texts: the texts of a record by feature name.
      crop_area: smallest and largest share of the picture's area that a random-resized crop keeps.
      crop_ratio: smallest and largest width / height of that crop.
      jitter: strength s of the colour jitter (SimCLR: brightness, contrast, saturation within 0.8 s, hue within
        0.2 s, applied to `jitter_probability` of the pictures); 0 turns it off.
      grayscale_probability: share of the pictures turned grey.
      workers: worker processes that load batches; 0 loads in threads of this process.
      threads: threads per process that load batches.
      prefetch: batches kept ready per thread pool.
      max_bad_fraction: the run stops when more than this share of a batch's records cannot be read.
    """

    dataset: str
    texts: dict[str, TextConfig]
    split: str = "train"
    data_dir: str = ""
    crop_area: tuple[float, float] = (0.4, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    jitter: float = 0.4
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    workers: int = 0
    threads: int = 2
    prefetch: int = 4
    max_bad_fraction: float = 0.1


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Attributes: path: a SentencePiece model, a WordPiece `vocab.txt`, or a model folder; "" takes `tokenizer.model`
    from the prepared dataset's folder."""

    path: str = ""
