"""The least matrix FLOPs that a step of a config needs, from the config alone.

Per stack of depth n, width W and MLP width F over rows of L tokens, forward, 2 FLOPs per multiply-add:

    tokens * n * (8 W^2 + 4 W F)      query, key, value, out; up, down
    rows * n * 4 L^2 W                scores and their product with the values, all L x L of them

Towers and captioner as the config lays them out: every view at its length, or packed rows, which attend within a row;
the captioner over image, text and target positions, or, with cross-attention, over targets that read a prefix. To this
the patch embedding, heads and projections, the captioner's vocabulary head, and the B x B products of each view. The
backward pass is twice the forward (gradients to inputs and to weights), once for the patch embedding (none to the
pixels). Nothing is recomputed; embeddings, norms, softmax and the fetching of packed tokens are free.
"""

import dataclasses

from clips_jax.config import Config, TransformerConfig, ViewConfig
from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE
from clips_jax.models.token_dropping import count_kept
from clips_jax.packing import rows_per_group

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
    parts = _parts(config, _layout(config))
    return Minimum(sum(parts.values()), sum(_parts(config, _expected(config)).values()), parts)


@dataclasses.dataclass(frozen=True)
class _Lengths:
    """Of one example: texts are (tokens, tokens of the row they attend over); `condition` by view."""

    texts: list[tuple[float, float]]
    condition: dict[str, float]
    target: float


def _layout(config: Config) -> _Lengths:
    views, captioner, packing = config.objective.views, config.model.captioner, config.model.text.packing
    texts = [(float(view.length), float(view.length)) for view in views.values()]
    if packing and views:
        rows = rows_per_group(packing)
        texts = [(rows * packing.row_length / packing.group, float(packing.row_length))]
    condition = {name: float(view.length) for name, view in views.items()}
    return _Lengths(texts, _cut(config, condition), float(captioner.target_length) if captioner else 0.0)


def _expected(config: Config) -> _Lengths:
    captioner = config.model.captioner
    tokens = {name: expected_tokens(view) for name, view in config.objective.views.items()}
    target = min(EXPECTED_RECAPTION + 1.0, captioner.target_length) if captioner else 0.0
    return _Lengths([(length, length) for length in tokens.values()], _cut(config, tokens), target)


def _cut(config: Config, lengths: dict[str, float]) -> dict[str, float]:
    longest = config.model.captioner.condition_length if config.model.captioner else 0
    return {name: min(length, longest) if longest else length for name, length in lengths.items()}


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


def _parts(config: Config, lengths: _Lengths) -> dict[str, float]:
    """FLOPs per step by part."""
    model, batch, views = config.model, config.batch_size, config.objective.views
    image, text, captioner = model.image, model.text, model.captioner
    patches = (image.image_size // image.patch_size) ** 2
    if image.keep_tokens < 1:
        patches = count_kept(patches, image.keep_tokens)
    image_tokens, width = float(patches + image.class_token), image.transformer.width
    parts = {
        "image tower": batch * 3 * stack_flops(image.transformer, image_tokens, image_tokens),
        "patches": batch * 2 * (2 * image.patch_size**2 * 3 * width * patches),
    }
    if views:
        parts["text tower"] = batch * 3 * sum(stack_flops(text.transformer, *tokens) for tokens in lengths.texts)
    if config.objective.contrastive != "none":
        pooled = width * (patches if image.pool == "concatenate" else 1) + len(views) * text.transformer.width
        parts["joint heads"] = batch * 3 * 2.0 * pooled * model.joint_dim
        parts["contrastive"] = 3 * len(views) * 2.0 * batch**2 * model.joint_dim
    if captioner:
        examples, stack = batch / captioner.every, captioner.transformer
        if captioner.keep_image_tokens < 1:
            image_tokens = float(count_kept(int(image_tokens), captioner.keep_image_tokens))
        prefix, projected = 0.0, 0.0
        for name in captioner.condition_on:
            tokens = image_tokens if name == "image" else lengths.condition[name]
            prefix += tokens
            projected += 2 * tokens * (width if name == "image" else text.transformer.width) * stack.width
        if captioner.kind == "cross_attention":
            blocks = stack_flops(stack, lengths.target, lengths.target)
            # Query and out over targets, key and value over the prefix; every target sees the whole prefix.
            crossing = 4 * (lengths.target + prefix) * stack.width**2 + 4 * lengths.target * prefix * stack.width
            blocks += stack.depth * crossing
        else:
            row = prefix + lengths.target
            blocks = stack_flops(stack, row, row)
        parts["captioner"] = examples * 3 * (blocks + projected)
        parts["vocabulary head"] = examples * 3 * 2 * lengths.target * stack.width * text.vocab_size
    return parts
