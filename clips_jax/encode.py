"""A trained model as functions from pictures and strings to numbers: all that evaluators and the report see of it.

Legend: B batch, S image size, E joint width, L text length, T target positions.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clips_jax import masks
from clips_jax.batch import TokenizedText
from clips_jax.config import Config, ConfigError, ViewConfig
from clips_jax.data.open_tokenizer import Tokenizer
from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE
from clips_jax.decoding import Decoding, without_specials, write
from clips_jax.losses import caption_cross_entropy
from clips_jax.models.captioner import ROW_AXES, Written
from clips_jax.models.clips import Clips
from clips_jax.preprocessing import Preprocessing
from clips_jax.sharding import process_rows, replicated, to_devices

LoadImages = Callable[[Sequence[int]], np.ndarray]  # indices -> uint8 (len(indices), S, S, 3)


class Encoder:
    """Encodes any number of pictures and texts over the mesh; the last batch is padded, nothing is dropped.

    Every process gets the same, whole result; each loads and tokenizes only its rows.

    Attributes:
      params: the model's parameters; set it to encode with others.
      image_size: pixels.
      preprocessing: how the model reads picture files; `preprocessing.pixels` makes what `images` loads.
      has_captioner: whether `caption_loss` and `captions` can be called.
      reads_alt_text: whether the captioner looks at the AltText.
      between_batches: called before each batch, on all processes alike; what it raises ends the evaluation.
    """

    def __init__(
        self,
        config: Config,
        model: Clips,
        tokenizer: Tokenizer,
        mesh: Mesh,
        params: Any,
        preprocessing: Preprocessing | None = None,
        precision: str | None = None,
    ) -> None:
        """`preprocessing` None is that of models trained here; `precision` is that of matrix products, None JAX's."""
        self.params = params
        self.preprocessing = preprocessing or Preprocessing.of_training(config.model.image.image_size)
        self._precision = precision
        self.image_size = config.model.image.image_size
        self.has_captioner = config.model.captioner is not None
        conditions = config.model.captioner.condition_on if config.model.captioner else ()
        self.reads_alt_text = any(name != "image" for name in conditions)
        self.between_batches: Callable[[], None] = lambda: None
        self._config, self._model, self._tokenizer, self._mesh = config, model, tokenizer, mesh
        compiled = functools.partial(jax.jit, out_shardings=replicated(mesh))
        self._encode_images = compiled(self._image_embeddings)
        self._encode_texts = compiled(self._text_embeddings)
        self._score_captions = compiled(self._caption_scores)
        self._write_captions: dict[Decoding, Any] = {}

    def images(self, load: LoadImages, count: int) -> np.ndarray:
        """Embeddings of `count` pictures: float32 (count, E), L2-normalised."""
        self._check_embeds()
        return self._run(lambda rows: (load(rows),), count, self._encode_images)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of strings: float32 (len(texts), E), L2-normalised."""
        self._check_embeds()
        return self._run(lambda rows: (self.token_ids([texts[i] for i in rows]),), len(texts), self._encode_texts)

    def _check_embeds(self) -> None:
        if self._config.objective.contrastive == "none":
            raise ConfigError(
                'this model was trained with objective.contrastive="none": it writes captions, but has no embeddings '
                "to search or classify with."
            )

    def token_ids(self, texts: Sequence[str]) -> np.ndarray:
        """What the text tower reads: int32 (len(texts), L)."""
        return self._tokenizer.encode(texts, self._config.model.text.length)

    def caption_loss(
        self, load: LoadImages, count: int, alt_texts: Sequence[str], targets: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Per example, the cross-entropy summed over target tokens (nats) and the number of them: float32 (count,)."""
        captioner = self._config.model.captioner
        assert captioner
        length = self._config.data.texts[captioner.target].length

        def arrays(rows: Sequence[int]) -> tuple[Any, ...]:
            tokens, sentence_ids = self._tokenizer.tokenize([targets[i] for i in rows], length)
            return load(rows), self._conditions(alt_texts, rows), TokenizedText(tokens, sentence_ids)

        scores = self._run(arrays, count, self._score_captions)
        return scores[:, 0], scores[:, 1]

    def captions(
        self,
        load: LoadImages,
        count: int,
        alt_texts: Sequence[str],
        decoding: Decoding | None = None,
        identities: Sequence[int] | None = None,
    ) -> list[str]:
        """Recaptions written from picture and AltText.

        Args:
          decoding: how; None is greedily.
          identities: a number per picture, below 2**31, that sampling depends on; None is 0 … count - 1.

        Raises:
          ConfigError: the model cannot write, or not in this way.
        """
        decoding = decoding or Decoding()
        self.check_decoding(decoding)
        if decoding not in self._write_captions:
            write = functools.partial(self._written_captions, decoding=decoding)
            self._write_captions[decoding] = jax.jit(write, out_shardings=replicated(self._mesh))

        def arrays(rows: Sequence[int]) -> tuple[Any, ...]:
            numbers = np.asarray([i if identities is None else identities[i] for i in rows], np.int32)
            return load(rows), self._conditions(alt_texts, rows), numbers

        tokens = self._run(arrays, count, self._write_captions[decoding])
        return [self._tokenizer.decode(row) for row in tokens]

    def check_decoding(self, decoding: Decoding) -> None:
        """Raises `ConfigError` if the model cannot write in this way."""
        captioner = self._config.model.captioner
        if captioner is None:
            raise ConfigError(
                "this model has no captioner: it cannot write. Train one with model.captioner set (the demo config has "
                "one); imported CLIPS and OpenVision weights come without it."
            )
        if captioner.kind == "learnable" and decoding.strategy != "greedy":
            raise ConfigError(
                f"strategy {decoding.strategy}: this model's captioner is learnable, it predicts all positions in one "
                "pass, so there is nothing to search or to sample. Use greedy, or train one that is teacher_forced."
            )

    def _conditions(self, alt_texts: Sequence[str], rows: Sequence[int]) -> dict[str, np.ndarray]:
        """AltTexts as the views that the captioner is conditioned on."""
        captioner, views = self._config.model.captioner, self._config.objective.views
        assert captioner
        texts = [alt_texts[i] for i in rows]
        names = [name for name in captioner.condition_on if name != "image"]
        return {name: self._framed(texts, views[name]) for name in names}

    def _framed(self, texts: Sequence[str], view: ViewConfig) -> np.ndarray:
        """int32 (len(texts), view.length): the first `view.tokens_kept` tokens, laid out as training does."""
        encoded = self._tokenizer.encode(texts, view.tokens_kept + SPECIALS_PER_SEQUENCE)
        padding = np.full((len(texts), view.length - encoded.shape[1]), self._tokenizer.special.pad, np.int32)
        return np.concatenate([encoded[:, :-1], padding, encoded[:, -1:]], axis=1)

    def _run(self, arrays: Callable[[Sequence[int]], tuple[Any, ...]], count: int, function: Any) -> np.ndarray:
        """`function(params, *arrays(rows))` for all rows 0 … count-1, a batch at a time."""
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        batch_size = -(-min(self._config.evaluation.batch_size, count) // shards) * shards
        own_rows = process_rows(self._mesh, batch_size) if count else np.zeros(0, int)
        results = [np.zeros((0, self._config.model.joint_dim), np.float32)]
        for start in range(0, count, batch_size):
            self.between_batches()
            # Rows past the end repeat the last one and are cut off below.
            rows = np.minimum(start + own_rows, count - 1)
            inputs = to_devices(arrays(rows.tolist()), self._mesh, batch_size)
            results.append(np.asarray(function(self.params, *inputs))[: count - start])
        return np.concatenate(results[1:] or results)

    def _apply(self, params: Any, *args: Any, method: str) -> Any:
        with jax.default_matmul_precision(self._precision) if self._precision else contextlib.nullcontext():
            return self._model.apply({"params": params}, *args, method=method)

    def _image_embeddings(self, params: Any, images_BxSxSx3: jax.Array) -> jax.Array:
        return self._apply(params, self.preprocessing.normalize(images_BxSxSx3), method="encode_image")

    def _view(self, tokens_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tokens_BxL, tokens_BxL != self._tokenizer.special.pad

    def _text_embeddings(self, params: Any, tokens_BxL: jax.Array) -> jax.Array:
        return self._apply(params, self._view(tokens_BxL), method="encode_text")

    def _tokens_and_views(self, params: Any, images: jax.Array, conditions: dict[str, jax.Array]) -> tuple[Any, Any]:
        views = {name: self._view(tokens_BxL) for name, tokens_BxL in conditions.items()}
        images = self.preprocessing.normalize(images)
        return self._apply(params, images, views, method="encode_tokens"), views

    def _caption_scores(
        self, params: Any, images: jax.Array, conditions: dict[str, jax.Array], target: TokenizedText
    ) -> jax.Array:
        captioner = self._config.model.captioner
        assert captioner
        tokens, views = self._tokens_and_views(params, images, conditions)
        targets_BxT, weights_BxT = masks.caption_target(target, captioner.target_length, self._tokenizer.special)
        hidden_BxTxD, head_DxV = self._apply(params, tokens, views, targets_BxT, method="decode")
        losses_BxT = caption_cross_entropy(hidden_BxTxD, head_DxV, targets_BxT)
        return jnp.stack([(losses_BxT * weights_BxT).sum(axis=1), weights_BxT.sum(axis=1)], axis=1)

    def _written_captions(
        self,
        params: Any,
        images: jax.Array,
        conditions: dict[str, jax.Array],
        identities_B: jax.Array,
        decoding: Decoding,
    ) -> jax.Array:
        captioner, special = self._config.model.captioner, self._tokenizer.special
        assert captioner
        tokens, views = self._tokens_and_views(params, images, conditions)
        if captioner.kind == "learnable":
            empty_BxT = jnp.full((len(images), captioner.target_length), special.pad, jnp.int32)
            hidden_BxTxD, head_DxV = self._apply(params, tokens, views, empty_BxT, method="decode")
            logits_BxTxV = jnp.einsum("btd,dv->btv", hidden_BxTxD.astype(jnp.float32), head_DxV)
            return without_specials(logits_BxTxV, special).argmax(axis=-1).astype(jnp.int32)

        def step(written: Written, tokens_B: jax.Array, position: jax.Array) -> tuple[jax.Array, Written]:
            return self._apply(params, written, tokens_B, position, method="next_token")

        start = self._apply(params, tokens, views, method="start_caption")
        return write(step, start, ROW_AXES, identities_B, captioner.target_length, special, decoding)
