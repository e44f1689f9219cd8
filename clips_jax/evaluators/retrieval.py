"""Image-text retrieval: recall at 1, 5 and 10 both ways, and the median rank."""

import dataclasses

import numpy as np

from clips_jax.config import RetrievalConfig
from clips_jax.data.sentences import split_sentences
from clips_jax.evaluators import Encoder
from clips_jax.evaluators.bootstrap import interval_metrics
from clips_jax.evaluators.split import Split

RECALLS = (1, 5, 10)
# Scores held at once (float64: 32 MB), so that 100,000 pictures need no 80 GB matrix.
_SCORES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Queries:
    """Pictures and the texts that belong to them; every text is held once.

    I pictures, U different texts, P pairs.

    Attributes:
      images: int64 (I,) positions in the split.
      texts: the different texts (U).
      counts: int64 (U,), how many captions of the split read like this text.
      pairs: int64 (P, 2), rows (i, u): text u is a caption of picture i; sorted.
      without_text: pictures left out because they have no text.
    """

    images: np.ndarray
    texts: list[str]
    counts: np.ndarray
    pairs: np.ndarray
    without_text: int


class NoQueries(ValueError):
    """No record of the split has a text to search by."""


def find_queries(config: RetrievalConfig, split: Split) -> Queries:
    """The pictures and texts that `config` names; raises `NoQueries` if there are none."""
    column = split.column(config.text)
    images: list[int] = []
    counts: dict[str, int] = {}
    pairs: set[tuple[int, int]] = set()
    index: dict[str, int] = {}
    kept = split.kept(config.leave_out)
    for position in kept:
        value = column[position]
        captions = [_reduce(text, config.sentence) for text in ([value] if isinstance(value, str) else value)]
        captions = [text for text in captions if text]
        if not captions:
            continue
        for text in captions:
            counts[text] = counts.get(text, 0) + 1
            pairs.add((len(images), index.setdefault(text, len(index))))
        images.append(int(position))
    if not images:
        raise NoQueries(f"retrieval on {config.split!r}: no record has a text in {config.text!r}.")
    return Queries(
        images=np.asarray(images),
        texts=list(index),
        counts=np.asarray([counts[text] for text in index]),
        pairs=np.asarray(sorted(pairs)),
        without_text=len(kept) - len(images),
    )


def _reduce(text: str, sentence: int) -> str:
    """The whole text (-1) or its sentence of that index; "" if it has none."""
    if sentence < 0:
        return text.strip()
    spans = split_sentences(text)
    return text[slice(*spans[sentence])].strip() if sentence < len(spans) else ""


def ranks(queries: np.ndarray, candidates: np.ndarray, pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank of the best right candidate of each query, 1 being the best.

    The rank is 1 + the weight of the wrong candidates that score at least as much: a tie counts against the query, so
    an encoder that maps everything to one point is not rewarded. NaN scores lower than any number; a query whose right
    candidates all score NaN has rank infinity, so that it is wrong even among few candidates.

    Args:
      queries: float32 (Q, E).
      candidates: float32 (C, E).
      pairs: int64 (P, 2), rows (query, right candidate), sorted by query; at least one per query.
      weights: (C,), how many items a candidate stands for.

    Returns:
      float64 (Q,), whole numbers or infinity.
    """
    found = np.empty(len(queries))
    # Float32 products of equal candidates differ in their last bit by their places in BLAS's blocks, and would not tie.
    queries, candidates = (np.asarray(array, np.float64) for array in (queries, candidates))
    step = max(1, _SCORES // len(candidates))
    bounds = np.searchsorted(pairs[:, 0], np.arange(len(queries) + 1))
    for start in range(0, len(queries), step):
        stop = min(start + step, len(queries))
        rows, columns = pairs[bounds[start] : bounds[stop]].T
        rows = rows - start
        scores = (queries[start:stop] @ candidates.T).astype(np.float32)
        scores[np.isnan(scores)] = -np.inf
        best = np.full(stop - start, -np.inf, scores.dtype)
        np.maximum.at(best, rows, scores[rows, columns])
        scores[rows, columns] = np.nan  # compares false: right candidates never stand before the best of them
        found[start:stop] = 1 + (scores >= best[:, None]) @ np.asarray(weights, np.float64)
        found[start:stop][best == -np.inf] = np.inf
    return found


def both_ranks(image_embeddings: np.ndarray, text_embeddings: np.ndarray, queries: Queries) -> dict[str, np.ndarray]:
    """Ranks by direction: "image_to_text" (I,) and "text_to_image" (U,).

    Args:
      image_embeddings: float32 (I, E), of `queries.images`.
      text_embeddings: float32 (U, E), of `queries.texts`.
      queries: what belongs together.
    """
    turned = queries.pairs[:, ::-1]
    turned = turned[np.lexsort((turned[:, 1], turned[:, 0]))]
    ones = np.ones(len(queries.images))
    return {
        "image_to_text": ranks(image_embeddings, text_embeddings, queries.pairs, queries.counts),
        "text_to_image": ranks(text_embeddings, image_embeddings, turned, ones),
    }


def retrieval_metrics(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, queries: Queries, intervals: bool = False
) -> dict[str, float]:
    """Recalls in percent and median ranks, both ways.

    Image to text: the best rank among the picture's captions counts. Text to image: the rank of the picture that the
    caption belongs to. A text that several pictures share counts as right for each of them, in both directions, for
    nothing in it tells them apart; it is still one query per caption.

    Returns:
      "image_to_text/R@1", … "text_to_image/median_rank", "n_images", "n_texts". With `intervals` also the 95 %
      confidence intervals of the recalls over pictures: "image_to_text/R@1/low", "image_to_text/R@1/high", ….
    """
    by_direction = both_ranks(image_embeddings, text_embeddings, queries)
    bounds = _intervals(by_direction, queries) if intervals else {}
    by_direction["text_to_image"] = np.repeat(by_direction["text_to_image"], queries.counts)
    metrics: dict[str, float] = {}
    for direction, found in by_direction.items():
        for recall in RECALLS:
            metrics[f"{direction}/R@{recall}"] = 100 * float(np.mean(found <= recall))
        metrics[f"{direction}/median_rank"] = float(np.median(found))
    return metrics | bounds | {"n_images": len(queries.images), "n_texts": int(queries.counts.sum())}


def _intervals(by_direction: dict[str, np.ndarray], queries: Queries) -> dict[str, float]:
    """Of the recalls; a text that several pictures share is divided among them."""
    images, texts = queries.pairs.T
    share = queries.counts[texts] / np.bincount(texts, minlength=len(queries.texts))[texts]
    asked = np.bincount(images, share, minlength=len(queries.images))
    parts = {}
    for recall in RECALLS:
        hit = (by_direction["image_to_text"] <= recall).astype(np.float64)
        parts[f"image_to_text/R@{recall}"] = (hit, np.ones(len(hit)))
        hit = (by_direction["text_to_image"] <= recall)[texts] * share
        parts[f"text_to_image/R@{recall}"] = (np.bincount(images, hit, minlength=len(asked)), asked)
    return interval_metrics(parts)


def evaluate(config: RetrievalConfig, split: Split, encoder: Encoder, intervals: bool = False) -> dict[str, float]:
    """Retrieval on a split: `retrieval_metrics`, and how much of the split was unusable.

    "bad_images" is the number of pictures that cannot be read: they stay in and are wrong. "images_without_text" is the
    number of records that have no query at all: they are left out.
    """
    queries = find_queries(config, split)
    image_embeddings = split.embeddings()[queries.images]
    metrics = retrieval_metrics(image_embeddings, encoder.texts(queries.texts), queries, intervals)
    return metrics | {
        "bad_images": int(split.bad()[queries.images].sum()),
        "images_without_text": queries.without_text,
    }
