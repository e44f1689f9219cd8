"""Pictures and texts for the report: what the model retrieved and wrote, right or wrong."""

import base64
import contextlib
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from clips_jax.config import Config
from clips_jax.data.images import BadImage, Picture
from clips_jax.evaluators import Encoder
from clips_jax.evaluators.captioning import captioner_texts
from clips_jax.evaluators.retrieval import NoQueries, Queries, both_ranks, find_queries
from clips_jax.evaluators.run import headline_evaluators
from clips_jax.evaluators.split import Split, Splits

TOP = 5
# Examples drawn blindly, and examples drawn from the failures (nothing right among the first five).
AT_RANDOM, FAILURES = 8, 4
CAPTIONS = 8
# Longer side of a picture in the page, in pixels.
THUMBNAIL = 112


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small picture. Attributes: uri: data URI, "" if it cannot be read; name: text that stands in for it."""

    uri: str
    name: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """One of the five best. Attributes: score: cosine, NaN for an unreadable picture; right: belongs to the query."""

    score: float
    right: bool
    text: str = ""
    picture: Thumbnail | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """A query with its five best answers.

    Attributes:
      picture, text: the query, one of the two for retrieval.
      answers: best first.
      rank: of the best right answer; infinity if the picture cannot be read.
      expected: the right texts, where the answers are texts.
      expected_picture: the best right picture, where the answers are pictures.
      failure: whether it was drawn from the failures rather than blindly.
    """

    answers: list[Answer]
    rank: float
    failure: bool
    picture: Thumbnail | None = None
    text: str = ""
    expected: list[str] = dataclasses.field(default_factory=list)
    expected_picture: Thumbnail | None = None


@dataclasses.dataclass(frozen=True)
class Caption:
    """A generated text beside the true one, and the AltText the captioner was given."""

    picture: Thumbnail
    alt_text: str
    generated: str
    target: str


@dataclasses.dataclass(frozen=True)
class Examples:
    """What the page shows. Attributes: split: where the pictures come from; n_images, n_texts: the candidates."""

    split: str = ""
    n_images: int = 0
    n_texts: int = 0
    image_to_text: list[Example] = dataclasses.field(default_factory=list)
    text_to_image: list[Example] = dataclasses.field(default_factory=list)
    captions_split: str = ""
    captions: list[Caption] = dataclasses.field(default_factory=list)


def collect_examples(config: Config, encoder: Encoder, splits: Splits) -> Examples:
    """Examples from the first headline retrieval and the first caption-loss split; parts that a run lacks are empty.

    The choice is a function of `config.seed` and the results. All processes call it together.
    """
    found = Examples()
    names = headline_evaluators(config)
    split: Split | None = None
    if names:
        part = config.evaluation.retrieval[names[0].split("/", 1)[1]]
        split = splits.get(part.split, part.dataset, part.data_dir)
        with contextlib.suppress(NoQueries):
            found = _retrieval(split, find_queries(part, split), encoder, config.seed)
        found = dataclasses.replace(found, split=part.split, captions_split=part.split)
    if not (encoder.has_captioner and config.model.captioner):
        return found
    if config.evaluation.caption_loss:
        caption_part = next(iter(config.evaluation.caption_loss.values()))
        split = splits.get(caption_part.split, caption_part.dataset, caption_part.data_dir)
        found = dataclasses.replace(found, captions_split=caption_part.split)
    if split is None:
        return found
    return dataclasses.replace(found, captions=_captions(config, split, encoder))


def choose(ranks: np.ndarray, generator: np.random.Generator) -> list[tuple[int, bool]]:
    """Positions to show: some drawn blindly, then some of the remaining failures (True), each in the split's order."""
    blind = generator.choice(len(ranks), min(AT_RANDOM, len(ranks)), replace=False)
    rest = np.setdiff1d(np.flatnonzero(ranks > TOP), blind)
    failures = generator.choice(rest, min(FAILURES, len(rest)), replace=False)
    return [(int(i), False) for i in np.sort(blind)] + [(int(i), True) for i in np.sort(failures)]


def _retrieval(split: Split, queries: Queries, encoder: Encoder, seed: int) -> Examples:
    images = split.embeddings()[queries.images]
    texts = encoder.texts(queries.texts)
    ranks = both_ranks(images, texts, queries)
    captions_of = _group(queries.pairs, len(queries.images))
    pictures_of = _group(queries.pairs[:, ::-1], len(queries.texts))

    def picture(image: int) -> Thumbnail:
        name = queries.texts[captions_of[image][0]]
        return _thumbnail(split.encoded_image(int(queries.images[image])), name)

    # One stream per direction, so that the choice in one does not hang on the results of the other.
    streams = [np.random.default_rng([seed, direction]) for direction in (0, 1)]
    image_examples = []
    for image, failure in choose(ranks["image_to_text"], streams[0]):
        right = captions_of[image]
        answers = [
            Answer(score, text in right, text=queries.texts[text]) for text, score in _best(images[image], texts)
        ]
        rank = float(ranks["image_to_text"][image])
        expected = [queries.texts[text] for text in right]
        image_examples.append(Example(answers, rank, failure, picture=picture(image), expected=expected))
    text_examples = []
    for text, failure in choose(ranks["text_to_image"], streams[1]):
        right = pictures_of[text]
        answers = [Answer(score, image in right, picture=picture(image)) for image, score in _best(texts[text], images)]
        rank = float(ranks["text_to_image"][text])
        closest = _best(texts[text], images[right])[0][0]
        text_examples.append(
            Example(answers, rank, failure, text=queries.texts[text], expected_picture=picture(right[closest]))
        )
    return Examples(
        n_images=len(queries.images),
        n_texts=int(queries.counts.sum()),
        image_to_text=image_examples,
        text_to_image=text_examples,
    )


def _group(pairs: np.ndarray, count: int) -> list[list[int]]:
    """The second members of the pairs by their first."""
    groups: list[list[int]] = [[] for _ in range(count)]
    for first, second in pairs.tolist():
        groups[first].append(second)
    return groups


def _best(query: np.ndarray, candidates: np.ndarray) -> list[tuple[int, float]]:
    """The `TOP` best candidates and their scores, best first, NaN last; the first of equals comes first."""
    scores = candidates @ query
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")[:TOP]
    return [(int(index), float(scores[index])) for index in order]


def _captions(config: Config, split: Split, encoder: Encoder) -> list[Caption]:
    alt_texts, targets = captioner_texts(config, split)
    generator = np.random.default_rng([config.seed, 2])
    positions = np.sort(generator.choice(len(split), min(CAPTIONS, len(split)), replace=False)).tolist()
    given: Sequence[str] = [alt_texts[position] for position in positions]
    written = encoder.captions(split.subset(positions), len(positions), given)
    return [
        Caption(_thumbnail(split.encoded_image(position), alt), alt, text, targets[position])
        for position, alt, text in zip(positions, given, written, strict=True)
    ]


def _thumbnail(data: bytes, name: str) -> Thumbnail:
    try:
        image = Picture(data).decode()
    except BadImage:
        return Thumbnail("", name)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return Thumbnail("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii"), name)
