"""Triples as step 0 sees them: the crop, and which tokens each view keeps."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from clips_jax import masks
from clips_jax.batch import TokenizedText
from clips_jax.config import Config
from clips_jax.data.open_tokenizer import Tokenizer
from clips_jax.data.pipeline import train_batches
from clips_jax.data.tokenizer import SpecialTokens
from clips_jax.train_step import VIEW_STREAM

_NO_TOKENS = SpecialTokens(pad=-1, bos=-2, eos=-3, cls=-4)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token. Attributes: text: with the space in front of it, if any; sentence: number; views: those that keep it."""

    text: str
    sentence: int
    views: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Triple:
    """One example. Attributes: row: of step 0; picture: the crop, a data URI; texts: pieces by text name."""

    row: int
    picture: str
    texts: dict[str, list[Piece]]


def kept_by_views(
    config: Config, texts: dict[str, TokenizedText], rows: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Which tokens each view keeps in step 0: bool (R, S) by view and text name.

    `masks.make_view` itself decides, with the keys of the step: it is given the tokens' places instead of tokens.

    Args:
      texts: of `rows` of the batch of step 0.
      rows: int (R,).
    """
    keys_B = masks.example_keys(jax.random.key(config.seed), jnp.asarray(0), config.batch_size)[rows]
    names = list(texts)
    longest = max(text.tokens.shape[1] for text in texts.values())
    places = {
        name: TokenizedText(
            jnp.broadcast_to(jnp.arange(text.tokens.shape[1]) + number * longest, text.tokens.shape), text.sentence_ids
        )
        for number, (name, text) in enumerate(texts.items())
    }
    kept: dict[str, dict[str, np.ndarray]] = {}
    for number, (view_name, view) in enumerate(config.objective.views.items()):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, VIEW_STREAM + number)
        found = np.asarray(masks.make_view(places, view, keys, _NO_TOKENS)[0])
        kept[view_name] = {
            name: np.stack([np.isin(np.arange(texts[name].tokens.shape[1]) + i * longest, row) for row in found])
            for i, name in enumerate(names)
        }
    return kept


def triples_of_step_0(config: Config, tokenizer: Tokenizer, count: int) -> list[Triple]:
    """The first `count` rows of the batch of step 0. The order is a shuffle, so they are records drawn at random."""
    rows = np.arange(min(count, config.batch_size))
    config_here = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))
    batches = train_batches(config_here, rows, 0, 1)
    batch, _ = next(batches)
    batches.close()
    kept = kept_by_views(config, batch.texts, rows)
    triples = []
    for row in rows.tolist():
        texts = {}
        for name, text in batch.texts.items():
            sentence_ids = text.sentence_ids[row]
            surfaces = spelled(tokenizer, text.tokens[row][sentence_ids >= 0].tolist())
            texts[name] = [
                Piece(surface, int(sentence_ids[i]), tuple(view for view in kept if kept[view][name][row, i]))
                for i, surface in enumerate(surfaces)
            ]
        triples.append(Triple(row, _data_uri(np.asarray(batch.images[row])), texts))
    return triples


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token as the text it adds to what the token before it spells, spaces included."""
    surfaces = []
    for i, token in enumerate(ids):
        before = tokenizer.decode(ids[i - 1 : i])
        both = tokenizer.decode([*ids[i - 1 : i], token])
        surfaces.append(both[len(before) :] if both.startswith(before) else " " + tokenizer.decode([token]))
    return surfaces


def _data_uri(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
