"""Settings of the evaluators: what is measured, by name."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Image-text retrieval on a split.

    Attributes:
      text: feature that holds the query, a string or a list of strings (several captions per picture).
      sentence: index of the one sentence of the text that is used; -1 is the whole text.
      leave_out: boolean feature; records where it is true are left out ("" = none).
      dataset, data_dir: "" takes the training data's.
      headline: shown in the progress line and in the report's plot.
    """

    split: str
    text: str
    sentence: int = -1
    leave_out: str = ""
    dataset: str = ""
    data_dir: str = ""
    headline: bool = False


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """Zero-shot classification on a split.

    Attributes:
      label: a ClassLabel feature; its names are the class names.
      templates: prompts with one "{}"; a class embedding is the mean over them, as in CLIP.
    """

    split: str
    label: str
    templates: tuple[str, ...] = ("{}",)
    leave_out: str = ""
    dataset: str = ""
    data_dir: str = ""


@dataclasses.dataclass(frozen=True)
class CaptionLossConfig:
    """Caption cross-entropy per token on a split."""

    split: str
    dataset: str = ""
    data_dir: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, by name; results are called "retrieval/NAME" and so on.

    Attributes:
      every_steps: interval during training (0 = only at the end).
      batch_size: pictures or texts encoded at once; rounded up to the mesh.
      pixel_baseline: split whose pictures are also looked up among the training pictures by raw pixels ("" = none).
    """

    every_steps: int = 0
    batch_size: int = 256
    retrieval: dict[str, RetrievalConfig] = dataclasses.field(default_factory=dict)
    classification: dict[str, ClassificationConfig] = dataclasses.field(default_factory=dict)
    caption_loss: dict[str, CaptionLossConfig] = dataclasses.field(default_factory=dict)
    pixel_baseline: str = ""
