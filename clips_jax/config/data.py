"""Settings of the data: where records, their texts and pictures come from, and the tokenizer."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """One named text of a record, as the pipeline ships it to the devices.

    Attributes:
      length: tokens shipped per text, without special tokens; longer texts are cut, shorter ones padded.
      fallback: the text that stands in when this one is empty ("" = none: an empty text stays empty).
      among: other texts that join the draw: each example uses one of all of them and of this text's own, each text as
        likely, empty ones left out (LaCLIP: the AltText among its rewrites, however many a record has).
    """

    length: int
    fallback: str = ""
    among: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data set of a mixture; what is "" is that of `data`.

    Attributes:
      weight: its share of the examples, relative to the other data sets. Shares are exact over 4,096 positions.
      dataset, split, data_dir: as in `DataConfig`.
      texts: feature by text name, where they differ; "" for a text that this data set lacks (its fallback stands in).
    """

    weight: float = 1.0
    dataset: str = ""
    split: str = ""
    data_dir: str = ""
    texts: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from and how pictures are read.

    Attributes:
      dataset: TFDS name, "name" or "name/config". "emoji" is the built-in one, built on first use. Or tars, read in
        place: "/data/{00000..00003}.tar".
      split: as TFDS writes it, "train[:90%]"; also "train[min(1000,10%):]", the smaller of the two.
      data_dir: TFDS folder; "" is `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      texts: the texts of a record by feature name. Where the feature is a list (rewrites, as LaCLIP has them), each
        example uses one of them, drawn uniformly.
      mixture: data sets to mix instead of using `dataset` alone, by any names. `dataset` stays the one that the
        tokenizer and the evaluators take by default.
      crop_area: smallest and largest share of the picture's area that a random-resized crop keeps.
      crop_ratio: smallest and largest width / height of that crop.
      jitter: strength s of the colour jitter (SimCLR: brightness, contrast, saturation within 0.8 s, hue within
        0.2 s, applied to `jitter_probability` of the pictures); 0 turns it off.
      grayscale_probability: share of the pictures turned grey.
      workers: worker processes that load batches; -1 is one per core that this process may use (half of the memory is
        left alone), 0 loads in threads of this process.
      threads: threads per process that load; more than 1 in a worker helps where reading a file has to be waited for.
      prefetch: batches kept ready.
      max_bad_fraction: the run stops when, beyond chance, more than this share of all processes' records since the
        last logged step, or since the start, cannot be used. Until then others stand in.
    """

    dataset: str
    texts: dict[str, TextConfig]
    split: str = "train"
    data_dir: str = ""
    mixture: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    crop_area: tuple[float, float] = (0.4, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    jitter: float = 0.4
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    workers: int = -1
    threads: int = 1
    prefetch: int = 2
    max_bad_fraction: float = 0.1


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Attributes: path: a SentencePiece model, a WordPiece `vocab.txt`, or a model folder; "" takes `tokenizer.model`
    from the prepared dataset's folder."""

    path: str = ""
