"""Caption loss: how well the captioner predicts the target text of pictures it has not seen."""

import numpy as np

from clips_jax.config import Config
from clips_jax.data.triples import texts_of
from clips_jax.evaluators import Encoder
from clips_jax.evaluators.split import Split


def captioner_texts(config: Config, split: Split) -> tuple[list[str], list[str]]:
    """The text each picture's captioner is given and the one it should write, fallbacks applied.

    A view may draw from several texts; here it is given the most probable one that is not the target. "" where the
    captioner sees the picture only. The config must have a captioner.
    """
    captioner = config.model.captioner
    assert captioner is not None
    names = [name for name in captioner.condition_on if name != "image"]
    sources = config.objective.views[names[0]].sources if names else {}
    given = max((source for source in sources if source != captioner.target), key=lambda s: sources[s], default="")
    texts = [texts_of(record, config.data.texts) for record in split.features]
    return [text.get(given, "") for text in texts], [text[captioner.target] for text in texts]


def evaluate(config: Config, split: Split, encoder: Encoder) -> dict[str, float]:
    """Cross-entropy per target token over a split.

    A picture that cannot be read is replaced by a grey one, so its text still counts; "bad_images" is their number.

    Returns:
      "loss" (nats per token), "perplexity" (its exponential), "n_tokens", "n_images", "bad_images".
    """
    alt_texts, targets = captioner_texts(config, split)
    losses, tokens = encoder.caption_loss(split.load, len(split), alt_texts, targets)
    total = int(np.sum(tokens, dtype=np.float64))
    loss = float(np.sum(losses, dtype=np.float64)) / total if total else float("nan")
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(loss))
    return {
        "loss": loss,
        "perplexity": perplexity,
        "n_tokens": total,
        "n_images": len(split),
        "bad_images": int(split.bad().sum()),
    }
