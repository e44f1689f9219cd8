"""Token reduction and attention masks, inside the jitted step.

A reduction keeps at most `budget` of a text's tokens, in their order, and moves them to the front. All four are pure
functions of one example's (tokens, sentence ids, key) with static shapes; `make_view` vmaps them over a batch. They
use comparisons, sorts and sums: gathers and scatters compile poorly on a sharded batch.

Legend: B batch, S tokens shipped, K budget, L length of the sequence with its special tokens, P prefix, T targets.
"""

import flax.struct
import jax
import jax.numpy as jnp

from clips_jax.batch import TokenizedText
from clips_jax.config import Mask, ViewConfig
from clips_jax.data.tokenizer import SpecialTokens

# Stands in for hidden logits: finite, so that a row that sees nothing gets a mean and not NaN.
HIDDEN_LOGIT = -0.7 * float(jnp.finfo(jnp.float32).max)


def example_keys(seed_key: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """Keys (B,), one per example: a function of (seed, step, row of the global batch) and of nothing else."""
    step_key = jax.random.fold_in(seed_key, step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(batch_size))


def _rank(values_S: jax.Array, valid_S: jax.Array) -> jax.Array:
    """Rank 0, 1, … of each valid entry among the valid ones, by value then index; S or more for the others.

    Values are below 2**31, so invalid entries sort last as 2**32 - 1.
    """
    order = jnp.argsort(jnp.where(valid_S, values_S, jnp.uint32(0xFFFFFFFF)), stable=True)
    rank_S = jnp.argsort(order)
    return jnp.where(valid_S, rank_S, values_S.shape[0] + rank_S)


def _random_bits(key: jax.Array, count: int) -> jax.Array:
    return jax.random.bits(key, (count,), jnp.uint32) >> 1


def keep_truncation(sentence_ids_S: jax.Array, budget: int, key: jax.Array) -> jax.Array:
    """The first K tokens.   [x x x x . . . .]"""
    del key
    return (sentence_ids_S >= 0) & (jnp.arange(sentence_ids_S.shape[0]) < budget)


def keep_random(sentence_ids_S: jax.Array, budget: int, key: jax.Array) -> jax.Array:
    """K tokens at random positions.   [x . x . . x . x]"""
    valid_S = sentence_ids_S >= 0
    return valid_S & (_rank(_random_bits(key, valid_S.shape[0]), valid_S) < budget)


def keep_block(sentence_ids_S: jax.Array, budget: int, key: jax.Array) -> jax.Array:
    """K consecutive tokens from a random start, all starts equally likely.   [. . x x x x . .]"""
    valid_S = sentence_ids_S >= 0
    start = jax.random.randint(key, (), 0, jnp.maximum(valid_S.sum() - budget, 0) + 1)
    index_S = jnp.arange(valid_S.shape[0])
    return valid_S & (index_S >= start) & (index_S < start + budget)


def keep_sub_caption(sentence_ids_S: jax.Array, budget: int, key: jax.Array, sentences: int) -> jax.Array:
    """Random sentences until the budget is used up, at most `sentences` of them (0: no limit); the last one is cut.

    Sentences   0 0 0 1 1 2 2 2 ; drawn 2, 0 ; K = 5   ->   [x x . . . x x x]

    The drawn sentences stay in the order of the text, so what is kept is a subsequence of it.
    """
    count = sentence_ids_S.shape[0]
    member_NxS = sentence_ids_S[None, :] == jnp.arange(count)[:, None]  # a text has at most S sentences
    length_N = member_NxS.sum(axis=1)
    rank_N = _rank(_random_bits(key, count), length_N > 0)
    drawn_N = rank_N < (sentences or count)
    used_before_N = jnp.where(rank_N[None, :] < rank_N[:, None], length_N[None, :], 0).sum(axis=1)
    allowance_N = jnp.where(drawn_N, jnp.clip(budget - used_before_N, 0, length_N), 0)
    place_NxS = jnp.cumsum(member_NxS, axis=1) - 1  # of a token within its sentence
    return (member_NxS & (place_NxS < allowance_N[:, None])).any(axis=0)


def reduce_tokens(
    tokens_S: jax.Array, sentence_ids_S: jax.Array, key: jax.Array, mask: Mask, budget: int, sentences: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Keeps at most `budget` tokens of one text.

    Args:
      tokens_S: int (S,) pieces, padded.
      sentence_ids_S: int (S,) sentence of each token, -1 on padding.
      key: this example's key.
      mask: the strategy (CLIPS, section 3; `keep_*` above).
      budget: K.
      sentences: for "sub_caption", the number of sentences that may be drawn; 0 is no limit.

    Returns:
      tokens_K: int (K,) the kept tokens in their order, then zeros; count: int () how many were kept.
    """
    if mask == "truncation":
        keep_S = keep_truncation(sentence_ids_S, budget, key)
    elif mask == "random":
        keep_S = keep_random(sentence_ids_S, budget, key)
    elif mask == "block":
        keep_S = keep_block(sentence_ids_S, budget, key)
    else:
        keep_S = keep_sub_caption(sentence_ids_S, budget, key, sentences)
    place_S = jnp.cumsum(keep_S) - 1
    move_KxS = keep_S[None, :] & (place_S[None, :] == jnp.arange(budget)[:, None])
    return jnp.where(move_KxS, tokens_S[None, :], 0).sum(axis=1), keep_S.sum()


def frame(tokens_K: jax.Array, count: jax.Array, length: int, special: SpecialTokens) -> tuple[jax.Array, jax.Array]:
    """Lays kept tokens out as the text tower reads them:   [BOS t t t EOS PAD PAD CLS]

    Returns:
      tokens_L: int (L,); real_L: bool (L,), False on padding only.
    """
    index_L = jnp.arange(length)
    tokens_L = jnp.zeros(length, tokens_K.dtype).at[1 : 1 + tokens_K.shape[0]].set(tokens_K)
    tokens_L = jnp.where(index_L <= count, tokens_L, special.pad)
    tokens_L = jnp.where(index_L == 0, special.bos, tokens_L)
    tokens_L = jnp.where(index_L == count + 1, special.eos, tokens_L)
    tokens_L = jnp.where(index_L == length - 1, special.cls, tokens_L)
    return tokens_L, (index_L <= count + 1) | (index_L == length - 1)


def make_view(
    texts: dict[str, TokenizedText], view: ViewConfig, keys_B: jax.Array, special: SpecialTokens
) -> tuple[jax.Array, jax.Array]:
    """One text view of a batch: draws each example's source, reduces it and adds the special tokens.

    Returns:
      tokens_BxL: int (B, L); real_BxL: bool (B, L), False on padding.
    """
    names = list(view.sources)
    shipped = max(texts[name].tokens.shape[1] for name in names)

    def padded(array_BxS: jax.Array, value: int) -> jax.Array:
        return jnp.pad(array_BxS, ((0, 0), (0, shipped - array_BxS.shape[1])), constant_values=value)

    tokens_NxBxS = jnp.stack([padded(texts[name].tokens, special.pad) for name in names])
    sentence_ids_NxBxS = jnp.stack([padded(texts[name].sentence_ids, -1) for name in names])
    probabilities_N = jnp.array([view.sources[name] for name in names])

    def one_example(tokens_NxS: jax.Array, sentence_ids_NxS: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        source_key, mask_key = jax.random.split(key)
        tokens_S, sentence_ids_S = tokens_NxS[0], sentence_ids_NxS[0]
        if len(names) > 1:
            chosen_N = jnp.arange(len(names)) == jax.random.choice(source_key, len(names), p=probabilities_N)
            tokens_S = jnp.where(chosen_N[:, None], tokens_NxS, 0).sum(axis=0)
            sentence_ids_S = jnp.where(chosen_N[:, None], sentence_ids_NxS, 0).sum(axis=0)
        kept_K, count = reduce_tokens(tokens_S, sentence_ids_S, mask_key, view.mask, view.tokens_kept, view.sentences)
        return frame(kept_K, count, view.length, special)

    return jax.vmap(one_example, in_axes=(1, 1, 0))(tokens_NxBxS, sentence_ids_NxBxS, keys_B)


def caption_target(text: TokenizedText, length: int, special: SpecialTokens) -> tuple[jax.Array, jax.Array]:
    """The captioner's target:   [t t t EOS PAD PAD], cut at `length`.

    Returns:
      targets_BxT: int (B, T); weights_BxT: float32 (B, T), 1 where a position counts in the loss.
    """
    tokens_BxT = text.tokens[:, :length]
    tokens_BxT = jnp.pad(tokens_BxT, ((0, 0), (0, length - tokens_BxT.shape[1])), constant_values=special.pad)
    count_Bx1 = (text.sentence_ids >= 0).sum(axis=1, keepdims=True)
    index_T = jnp.arange(length)
    targets_BxT = jnp.where(index_T[None] < count_Bx1, tokens_BxT, special.pad)
    targets_BxT = jnp.where(index_T[None] == count_Bx1, special.eos, targets_BxT)
    return targets_BxT, (index_T[None] <= count_Bx1).astype(jnp.float32)


@flax.struct.dataclass
class SegmentMask:
    """Who sees whom without an L x L array: keys of the query's own segment, before `prefix` or not after the query.

    Attributes:
      segments_BxL: int; padding is a segment of its own, seen by nothing that counts.
      prefix: keys before it are seen by later queries and earlier ones alike; L is no causal part at all.
    """

    segments_BxL: jax.Array
    prefix: int = flax.struct.field(pytree_node=False)

    def dense(self) -> jax.Array:
        """The same as bool (B, 1, L, L)."""
        index_L = jnp.arange(self.segments_BxL.shape[1])
        pattern_LxL = (index_L[None, :] < self.prefix) | (index_L[None, :] <= index_L[:, None])
        same_BxLxL = self.segments_BxL[:, :, None] == self.segments_BxL[:, None, :]
        return (same_BxLxL & pattern_LxL[None])[:, None]


def combination_mask(prefix_real_BxP: jax.Array, targets: int) -> jax.Array:
    """Who sees whom in the captioner (True = query row may attend to key column).

                  prefix   target
        prefix  [   1        0       ]      prefix = image tokens, then AltText tokens
        target  [   1   lower triangle]

    Padding in the prefix is seen by nobody. Padded rows still see the real prefix, so no row is empty.

    Returns:
      bool (B, 1, P + T, P + T); the 1 broadcasts over heads.
    """
    prefix = prefix_real_BxP.shape[1]
    index = jnp.arange(prefix + targets)
    is_prefix_key = index[None, :] < prefix
    causal = (index[None, :] <= index[:, None]) & (index[:, None] >= prefix)
    pattern = is_prefix_key | causal
    real_key = jnp.pad(prefix_real_BxP, ((0, 0), (0, targets)), constant_values=True)
    return (pattern[None] & real_key[:, None, :])[:, None]
