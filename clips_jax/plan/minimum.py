"""The least matrix FLOPs that a step of a config needs, from the config alone.

Per stack of depth n, width W and MLP width F over rows of L tokens, forward, 2 FLOPs per multiply-add:

    tokens * n * (8 W^2 + 4 W F)      query, key, value, out; up, down
    rows * n * 4 L^2 W                scores and their product with the values, all L x L of them

Towers and captioner as the config lays them out: every view at its length, the captioner over image, text and target
positions. To this the patch embedding, heads and projections, the captioner's vocabulary head, and the B x B products
of each view. The backward pass is twice the forward (gradients to inputs and to weights), once for the patch
embedding (none to the pixels). Nothing is recomputed; embeddings, norms and softmax are free.
"""

import dataclasses

from clips_jax.config import Config, TransformerConfig, ViewConfig
from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE

# Tokens of a text without special ones, for the count without padding. AltText and one sentence: as assumed for
# packing in docs/scale.md; a recaption has 60 to 130 tokens (docs/method.md). Assumptions, to be checked on your data.
EXPECTED_ALT_TEXT, EXPECTED_SENTENCE, EXPECTED_RECAPTION = 17, 20, 95


@dataclasses.dataclass(frozen=True)
class Minimum:
    """FLOPs of one step over all chips.

    Attributes:
      layout: of the config as it is laid out, padding included.
      unpadded: if every text had its expected number of tokens and no position were padding.
      parts: forward and backward by part, of `layout`.
    """

    layout: float
    unpadded: float
    parts: dict[str, float]


def minimum(config: Config) -> Minimum:
    """The formula of the module's docstring for a config."""
    views = {name: [float(view.length)] for name, view in config.objective.views.items()}
    captioner = config.model.captioner
    parts = _parts(config, views, float(captioner.target_length) if captioner else 0.0)
    expected = {name: [expected_tokens(view)] for name, view in config.objective.views.items()}
    target = min(EXPECTED_RECAPTION + 1.0, captioner.target_length) if captioner else 0.0
    return Minimum(sum(parts.values()), sum(_parts(config, expected, target).values()), parts)


def expected_tokens(view: ViewConfig) -> float:
    """Expected length of a view without its padding."""
    mean = 0.0
    for source, probability in view.sources.items():
        whole = EXPECTED_ALT_TEXT if "alt" in source else EXPECTED_RECAPTION
        if view.mask == "sub_caption":
            whole = min(whole, view.sentences * EXPECTED_SENTENCE) if view.sentences else whole
        mean += probability * min(whole, view.tokens_kept)
    return mean + SPECIALS_PER_SEQUENCE


def stack_flops(stack: TransformerConfig, tokens: float, row: float) -> float:
    """Forward FLOPs of a stack over `tokens` tokens in rows of `row` tokens."""
    per_token = 8 * stack.width**2 + 4 * stack.width * stack.mlp_dim
    return stack.depth * (tokens * per_token + 4 * tokens * row * stack.width)


def _parts(config: Config, views: dict[str, list[float]], target: float) -> dict[str, float]:
    """Per step; `views` holds the lengths of each view's rows."""
    model, batch = config.model, config.batch_size
    image, text, captioner = model.image, model.text, model.captioner
    patches = (image.image_size // image.patch_size) ** 2
    image_tokens = float(patches + image.class_token)
    width = image.transformer.width
    pooled = width * (patches if image.pool == "concatenate" else 1)
    parts = {
        "image tower": batch * 3 * (stack_flops(image.transformer, image_tokens, image_tokens)),
        "patches": batch * 2 * (2 * image.patch_size**2 * 3 * width * patches),
    }
    if config.objective.contrastive != "none":
        heads = pooled + len(views) * text.transformer.width
        parts["joint heads"] = batch * 3 * 2.0 * heads * model.joint_dim
        parts["contrastive"] = 3 * len(views) * 2.0 * batch**2 * model.joint_dim
    if views:
        rows = [length for lengths in views.values() for length in lengths]
        parts["text tower"] = batch * 3 * sum(stack_flops(text.transformer, row, row) for row in rows)
    if captioner:
        examples = batch / captioner.every
        widths = {"image": width} | dict.fromkeys(views, text.transformer.width)
        lengths = {"image": image_tokens} | {name: sum(rows) for name, rows in views.items()}
        decoder = captioner.transformer
        prefix = sum(lengths[name] for name in captioner.condition_on)
        projected = sum(2 * lengths[name] * widths[name] * decoder.width for name in captioner.condition_on)
        row = prefix + target
        parts["captioner"] = examples * 3 * (stack_flops(decoder, row, row) + projected)
        parts["vocabulary head"] = examples * 3 * 2 * target * decoder.width * text.vocab_size
    return parts
