"""Zero-shot classification: the class whose prompts lie nearest to the picture."""

from collections.abc import Sequence

import numpy as np

from clips_jax.config import ClassificationConfig, ConfigError
from clips_jax.evaluators import Encoder
from clips_jax.evaluators.bootstrap import interval_metrics
from clips_jax.evaluators.retrieval import ranks
from clips_jax.evaluators.split import Split


def class_embeddings(names: Sequence[str], templates: Sequence[str], encoder: Encoder) -> np.ndarray:
    """float32 (K, E): per class the normalised mean of its prompts' embeddings, as in CLIP (arXiv 2103.00020, 3.1.4).

    Underscores in names, which datasets use for spaces, become spaces. Raises `ConfigError` for a template without
    "{}".
    """
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"evaluation.classification: the template {template!r} has no {{}} for the class name.")
    prompts = [template.replace("{}", name.replace("_", " ")) for name in names for template in templates]
    means = encoder.texts(prompts).reshape(len(names), len(templates), -1).mean(axis=1)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def classification_metrics(
    image_embeddings: np.ndarray,
    classes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str] | None = None,
    intervals: bool = False,
) -> dict[str, float]:
    """Accuracies in percent; ties and NaN count as wrong (see `retrieval.ranks`).

    Args:
      image_embeddings: float32 (N, E).
      classes: float32 (K, E).
      labels: int (N,).
      names: of the classes. Of several classes with one name (ImageNet has two "missile" in CLIP's list) the first is
        predicted before the others, as by an argmax, and nobody loses to a tie between them.
      intervals: also 95 % confidence intervals over pictures: "top1/low", "top1/high", "top5/…".

    Returns:
      "top1", "top5", "per_class" (mean over the classes that occur of their top-1 accuracy), "n_images", "n_classes".
    """
    first, before = _same_names(names or [str(i) for i in range(len(classes))])
    pairs = np.stack([np.arange(len(labels)), first[labels]], axis=1)
    found = ranks(image_embeddings, classes, pairs, np.bincount(first, minlength=len(classes))) + before[labels]
    sizes = np.bincount(labels, minlength=len(classes))
    right = np.bincount(labels, found == 1, minlength=len(classes))
    metrics = {
        "top1": 100 * float(np.mean(found <= 1)),
        "top5": 100 * float(np.mean(found <= 5)),
        "per_class": 100 * float(np.mean(right[sizes > 0] / sizes[sizes > 0])),
        "n_images": len(labels),
        "n_classes": len(classes),
    }
    if intervals:
        one = np.ones(len(labels))
        metrics |= interval_metrics({"top1": ((found <= 1) * one, one), "top5": ((found <= 5) * one, one)})
    return metrics


def _same_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """By class: the first class of the same name, and how many of that name come before."""
    seen: dict[str, list[int]] = {}
    first, before = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    for index, name in enumerate(names):
        same = seen.setdefault(name, [])
        before[index] = len(same)
        same.append(index)
        first[index] = same[0]
    return first, before


def evaluate(config: ClassificationConfig, split: Split, encoder: Encoder, intervals: bool = False) -> dict[str, float]:
    """Classification of a split by the names of its ClassLabel feature.

    Pictures that cannot be read count as wrong; "bad_images" is their number. Raises `ValueError` if the split is empty
    or a label is no class (as in test splits without labels).
    """
    names = split.class_names(config.label)
    kept = split.kept(config.leave_out)
    labels = np.asarray(split.column(config.label), np.int64)[kept]
    if not len(labels) or labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"classification on {config.split!r}: {config.label!r} does not label every picture.")
    classes = class_embeddings(names, config.templates, encoder)
    metrics = classification_metrics(split.embeddings()[kept], classes, labels, names, intervals)
    return metrics | {"bad_images": int(split.bad()[kept].sum())}
