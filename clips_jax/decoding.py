"""Writing a text token by token: greedy, beam search, nucleus sampling.

Pure functions of a `Step`, which says what comes next and knows nothing of the way a token is chosen. They write
[t t t EOS PAD PAD], at most T tokens; a row that reaches EOS is done, and the loop ends when all rows are.

Legend: B batch, K beams, T positions, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from clips_jax.config import ConfigError
from clips_jax.data.tokenizer import SpecialTokens

# (state, tokens_B before `position`, position) -> logits_BxV float32 of the token at `position`, state
Step = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
# (a state's leaf, its axis of rows) for every leaf; rows of all leaves correspond.
RowAxes = Any

_NEVER = -1e30  # stands for log 0: finite, so that sums and differences of it are no NaN


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a text is chosen.

    Attributes:
      strategy: "greedy", the likeliest token each time; "beam"; "nucleus", sampled from the likeliest tokens.
      beams: K, for "beam".
      length_penalty: for "beam": the log-probability is divided by ((5 + length) / 6) ** length_penalty (Wu et al.
        2016, equation 14); 0 favours short texts.
      temperature: for "nucleus": logits are divided by it.
      top_p: for "nucleus": the fewest tokens whose probabilities reach it are kept (Holtzman et al. 2020).
      seed: for "nucleus".
    """

    strategy: Literal["greedy", "beam", "nucleus"] = "greedy"
    beams: int = 4
    length_penalty: float = 0.6
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ConfigError(f"beams: {self.beams} is not a number of beams; use 1 or more.")
        if not self.temperature > 0:
            raise ConfigError(f"temperature: {self.temperature} is not above 0; greedy is the limit towards 0.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p} is not a probability above 0.")


def write(
    step: Step,
    state: Any,
    row_axes: RowAxes,
    identities_B: jax.Array,
    length: int,
    special: SpecialTokens,
    decoding: Decoding,
) -> jax.Array:
    """Writes one text per row.

    Args:
      step: see `Step`.
      state: before the first token.
      row_axes: for each leaf of `state` the axis of its rows; read by "beam" only.
      identities_B: int (B,); the randomness of a row is a function of the seed and of this number alone.
      length: T.
      special: PAD, BOS and CLS are never written.
      decoding: the way tokens are chosen.

    Returns:
      int32 (B, T), PAD after EOS.
    """
    if decoding.strategy == "beam":
        return _beam(step, state, row_axes, len(identities_B), length, special, decoding)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(decoding.seed), identities_B)

    def choose(logits_BxV: jax.Array, position: jax.Array) -> jax.Array:
        if decoding.strategy == "greedy":
            return logits_BxV.argmax(axis=-1)
        kept_BxV = nucleus(logits_BxV / decoding.temperature, decoding.top_p)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, position)
        return jax.vmap(jax.random.categorical)(keys, kept_BxV)

    def body(carry: Any) -> Any:
        position, tokens_B, done_B, written_BxT, state = carry
        logits_BxV, state = step(state, tokens_B, position)
        tokens_B = choose(without_specials(logits_BxV, special), position).astype(jnp.int32)
        tokens_B = jnp.where(done_B, special.pad, tokens_B)
        written_BxT = jax.lax.dynamic_update_slice_in_dim(written_BxT, tokens_B[:, None], position, axis=1)
        return position + 1, tokens_B, done_B | (tokens_B == special.eos), written_BxT, state

    rows = len(identities_B)
    start = (
        jnp.zeros((), jnp.int32),
        jnp.full(rows, special.bos, jnp.int32),
        jnp.zeros(rows, bool),
        jnp.full((rows, length), special.pad, jnp.int32),
        state,
    )
    return jax.lax.while_loop(lambda carry: (carry[0] < length) & ~carry[2].all(), body, start)[3]


def without_specials(logits_xV: jax.Array, special: SpecialTokens) -> jax.Array:
    """Logits (…, V) with PAD, BOS and CLS out of reach."""
    never = jnp.array([special.pad, special.bos, special.cls])
    index_V = jnp.arange(logits_xV.shape[-1])
    hidden_V = (index_V[:, None] == never[None]).any(axis=1)
    return jnp.where(hidden_V.reshape((1,) * (logits_xV.ndim - 1) + (-1,)), _NEVER, logits_xV)


def nucleus(logits_BxV: jax.Array, top_p: float) -> jax.Array:
    """Keeps the fewest likeliest tokens whose probabilities sum to at least `top_p`; the others become impossible."""
    probabilities_BxV = jax.nn.softmax(logits_BxV)
    sorted_BxV = -jnp.sort(-probabilities_BxV, axis=-1)
    before_BxV = jnp.cumsum(sorted_BxV, axis=-1) - sorted_BxV  # probability of the likelier ones
    # The least likely that is kept, rather than a second sort back; equals of it stay too.
    least_Bx1 = jnp.where(before_BxV < top_p, sorted_BxV, jnp.inf).min(axis=-1, keepdims=True)
    kept_BxV = probabilities_BxV >= least_Bx1
    return jnp.where(kept_BxV, logits_BxV, _NEVER)


def _beam(
    step: Step, state: Any, row_axes: RowAxes, rows: int, length: int, special: SpecialTokens, decoding: Decoding
) -> jax.Array:
    """The best text found by beam search.

    Live beams and finished texts are kept apart, K of each, so that a finished text, whose score is divided by its
    length's penalty, does not compete with unfinished ones. A text cut off at T competes as if it had finished there.
    """
    beams = decoding.beams

    def penalty(count: Any) -> jax.Array:
        return ((5.0 + count) / 6.0) ** decoding.length_penalty

    def pick(tree: Any, axes: Any, index_BxK: jax.Array) -> Any:
        """Of every example's rows those at `index_BxK`."""

        def one(leaf: jax.Array, axis: int) -> jax.Array:
            by_example = leaf.reshape(*leaf.shape[:axis], rows, -1, *leaf.shape[axis + 1 :])
            picked = jax.vmap(lambda part, index: jnp.take(part, index, axis=axis), in_axes=(axis, 0), out_axes=axis)(
                by_example, index_BxK
            )
            return picked.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 1 :])

        return jax.tree.map(one, tree, axes)

    def body(carry: Any) -> Any:
        position, live_BxK, texts_BxKxT, best_BxK, best_BxKxT, state = carry
        before_BxK = jnp.where(position == 0, special.bos, texts_BxKxT[:, :, jnp.maximum(position - 1, 0)])
        logits, state = step(state, before_BxK.reshape(-1), position)
        log_BxKxV = jax.nn.log_softmax(without_specials(logits, special)).reshape(rows, beams, -1)
        vocabulary = log_BxKxV.shape[-1]
        # Twice K candidates: at most K of them end here (EOS is one token per beam), so K go on.
        flat_BxN = (live_BxK[:, :, None] + log_BxKxV).reshape(rows, -1)
        found_Bx2K, place_Bx2K = jax.lax.top_k(flat_BxN, min(2 * beams, beams * vocabulary))
        beam_Bx2K, token_Bx2K = place_Bx2K // vocabulary, (place_Bx2K % vocabulary).astype(jnp.int32)
        texts = jnp.take_along_axis(texts_BxKxT, beam_Bx2K[:, :, None], axis=1)
        texts = jax.lax.dynamic_update_slice_in_dim(texts, token_Bx2K[:, :, None], position, axis=2)
        ends_Bx2K = token_Bx2K == special.eos
        ended = jnp.where(ends_Bx2K, found_Bx2K / penalty(position + 1), _NEVER)
        best_BxK, best_BxKxT = _best(
            jnp.concatenate([best_BxK, ended], 1), jnp.concatenate([best_BxKxT, texts], 1), beams
        )
        going = jnp.where(ends_Bx2K, _NEVER, found_Bx2K)
        live_BxK, chosen_BxK = jax.lax.top_k(going, beams)
        texts_BxKxT = jnp.take_along_axis(texts, chosen_BxK[:, :, None], axis=1)
        state = pick(state, row_axes, jnp.take_along_axis(beam_Bx2K, chosen_BxK, axis=1))
        return position + 1, live_BxK, texts_BxKxT, best_BxK, best_BxKxT, state

    def unfinished(carry: Any) -> jax.Array:
        position, live_BxK, _, best_BxK, _, _ = carry
        # Scores only fall, so a live beam can at best keep its own, under the mildest penalty it can still get.
        hope_B = live_BxK[:, 0] / jnp.maximum(penalty(length), penalty(position + 1))
        return (position < length) & (hope_B > best_BxK[:, -1]).any()

    first_BxK = jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER)
    texts = jnp.full((rows, beams, length), special.pad, jnp.int32)
    start = (
        jnp.zeros((), jnp.int32),
        jnp.broadcast_to(first_BxK[None], (rows, beams)),
        texts,
        jnp.full((rows, beams), _NEVER),
        texts,
        jax.tree.map(lambda leaf, axis: jnp.repeat(leaf, beams, axis=axis), state, row_axes),
    )
    position, live_BxK, texts_BxKxT, best_BxK, best_BxKxT, _ = jax.lax.while_loop(unfinished, body, start)
    cut_BxK = jnp.where(position == length, live_BxK / penalty(length), _NEVER)
    every, texts = jnp.concatenate([best_BxK, cut_BxK], 1), jnp.concatenate([best_BxKxT, texts_BxKxT], 1)
    return _best(every, texts, 1)[1][:, 0]


def _best(scores_BxN: jax.Array, texts_BxNxT: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    scores, index = jax.lax.top_k(scores_BxN, count)
    return scores, jnp.take_along_axis(texts_BxNxT, index[:, :, None], axis=1)
