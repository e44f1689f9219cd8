"""A tiny model with random weights as `pretrained.load` returns one, for tests of the commands that use a model."""

import dataclasses
import functools
import tempfile

import jax

from clips_jax.data.tokenizer import SentencePieceTokenizer, train_sentencepiece
from clips_jax.encode import Encoder
from clips_jax.models.clips import Clips
from clips_jax.preprocessing import Preprocessing
from clips_jax.pretrained import Made, Pretrained
from clips_jax.sharding import make_mesh
from clips_jax.train_step import init_params
from tests import small

WORDS = "a red green blue round square thing cat dog picture of the small large on".split()


@functools.cache
def tokenizer() -> SentencePieceTokenizer:
    """Knows `WORDS`."""
    with tempfile.TemporaryDirectory() as folder:
        texts = [f"{a} {b} {c}." for a in WORDS for b in WORDS for c in WORDS[:3]]
        train_sentencepiece(texts, f"{folder}/tokenizer.model", small.VOCAB_SIZE)
        return SentencePieceTokenizer(f"{folder}/tokenizer.model")


@functools.cache
def pretrained(kind: str = "teacher_forced", seed: int = 0, batch_size: int = 4) -> Pretrained:
    """`kind` of captioner, "" for none; `batch_size` of its encoder, smaller than any list of a test."""
    config = small.config(depth=1, batch_size=jax.device_count())
    captioner = dataclasses.replace(config.model.captioner, kind=kind) if kind else None
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, captioner=captioner),
        evaluation=dataclasses.replace(config.evaluation, batch_size=batch_size),
    )
    model = Clips(config.model, config.objective, tokenizer().special.bos)
    params = jax.jit(lambda key: init_params(config, model, key))(jax.random.key(seed))
    if kind:  # sharp enough to write different things
        params["captioner"]["head"] = params["captioner"]["head"] * 8
        params["captioner"]["queries"] = params["captioner"]["queries"] * 20
    mesh = make_mesh(config)
    preprocessing = Preprocessing.of_training(config.model.image.image_size)
    encoder = Encoder(config, model, tokenizer(), mesh, params, preprocessing, "highest")
    made = Made(config, seed, 0)
    return Pretrained(f"tiny-{kind}", made, config, model, tokenizer(), preprocessing, mesh, params, encoder)
