"""Packing: short texts of several examples share the rows of the text tower.

AltTexts and single sentences fill a quarter of a sequence of 80. All views of a group of consecutive examples are laid
into a fixed number of rows instead; a token attends to its own text only, by segment ids:

    row 0   [ a a a a a a a a | b b b b b b | c c c . ]        a, b, c: texts; . padding
    row 1   [ d d d d d d | e e e e e | f f f f | g g ]        each text: BOS t t t EOS CLS

Placement is best fit, longest text first. It looks at its own group only and groups have a fixed size, so the result
does not depend on the number of devices. If a group holds more tokens than its rows, its longest texts are cut to the
greatest common length that fits; `Packed.cut_BxV` says which, and the metrics count them.

Legend: B batch, V views, G groups, N texts of a group, R rows of a group, L row length, S longest text, F = R x L.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from clips_jax.config import PackingConfig
from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE, SpecialTokens

View = tuple[jax.Array, jax.Array]  # tokens int (B, S), real bool (B, S); see `masks.frame`
SHORTEST = SPECIALS_PER_SEQUENCE + 1  # a text is never cut below one token of its own


@flax.struct.dataclass
class Packed:
    """The views of a batch, packed.

    Attributes:
      tokens_GxF: int32; R rows of L tokens, one after the other.
      positions_GxF: int32, a token's place in its own text; CLS has the last place of the position table.
      segments_GxF: int32, 1 … N for the text that a token belongs to, 0 on padding.
      starts_BxV: int32, where a text begins in its group's F tokens.
      lengths_BxV: int32, its tokens, CLS last.
      cut_BxV: bool, whether it lost tokens to make the group fit.
    """

    tokens_GxF: jax.Array
    positions_GxF: jax.Array
    segments_GxF: jax.Array
    starts_BxV: jax.Array
    lengths_BxV: jax.Array
    cut_BxV: jax.Array


def rows_per_group(config: PackingConfig) -> int:
    """R: rows of `row_length` that have room for `tokens_per_example` of every example of a group."""
    return -(-config.group * config.tokens_per_example // config.row_length)


def pack(
    views: list[View], config: PackingConfig, positions: int, special: SpecialTokens, mesh: Mesh | AbstractMesh
) -> Packed:
    """Packs the views of a batch; each device packs its own rows.

    Args:
      views: framed texts, of any lengths up to `config.row_length`.
      config: the size of a group must divide the examples of a device.
      positions: rows of the position table.
      special: ids of EOS and CLS.
      mesh: with axes `data` and `fsdp`.
    """
    rows = PartitionSpec(("data", "fsdp"))
    body = functools.partial(_pack_groups, config, positions, special)
    return jax.shard_map(body, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(views)


def _pack_groups(config: PackingConfig, positions: int, special: SpecialTokens, views: list[View]) -> Packed:
    longest = max(tokens_BxS.shape[1] for tokens_BxS, _ in views)
    padded = [jnp.pad(tokens_BxS, ((0, 0), (0, longest - tokens_BxS.shape[1]))) for tokens_BxS, _ in views]
    texts_GxNxS = jnp.stack(padded, axis=1).reshape(-1, config.group * len(views), longest)
    lengths_BxV = jnp.stack([real_BxS.sum(axis=1, dtype=jnp.int32) for _, real_BxS in views], axis=1)
    lengths_GxN = lengths_BxV.reshape(-1, config.group * len(views))
    one_group = functools.partial(_pack_group, config, positions, special)
    tokens_GxF, positions_GxF, segments_GxF, starts_GxN, cut_to_GxN = jax.vmap(one_group)(texts_GxNxS, lengths_GxN)
    starts_BxV, cut_to_BxV = (x.reshape(lengths_BxV.shape) for x in (starts_GxN, cut_to_GxN))
    cut_BxV = cut_to_BxV < lengths_BxV
    return Packed(tokens_GxF, positions_GxF, segments_GxF, starts_BxV, cut_to_BxV, cut_BxV)


def _pack_group(
    config: PackingConfig, positions: int, special: SpecialTokens, texts_NxS: jax.Array, lengths_N: jax.Array
) -> tuple[jax.Array, ...]:
    count = rows_per_group(config)
    order_N = jnp.argsort(-lengths_N, stable=True)

    def place(longest: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Starts of the texts, cut to `longest`, and whether all of them found room."""

        def place_next(free_R: jax.Array, text: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            length = jnp.minimum(lengths_N[text], longest)
            row = jnp.argmin(jnp.where(free_R >= length, free_R, config.row_length + 1))
            start = (row + 1) * config.row_length - free_R[row]
            taken_R = jnp.where(jnp.arange(count) == row, length, 0)
            return free_R - taken_R, (start, free_R[row] >= length)

        free_R = jnp.full(count, config.row_length, jnp.int32)
        _, (starts_N, fits_N) = jax.lax.scan(place_next, free_R, order_N)
        return starts_N, fits_N.all()

    # The longest length that fits. Texts are cut in the order of their lengths, so `order_N` holds for every cut.
    def cut_more(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        longest = state[0] - 1
        return longest, *place(longest)

    first = lengths_N.max()
    longest, sorted_starts_N, _ = jax.lax.while_loop(
        lambda state: ~state[2] & (state[0] > SHORTEST), cut_more, (first, *place(first))
    )
    starts_N = jnp.where(order_N[None, :] == jnp.arange(len(order_N))[:, None], sorted_starts_N[None, :], 0).sum(axis=1)
    cut_to_N = jnp.minimum(lengths_N, longest)

    place_F = jnp.arange(count * config.row_length)
    offset_FxN = place_F[:, None] - starts_N[None, :]
    covers_FxN = (offset_FxN >= 0) & (offset_FxN < cut_to_N[None, :])
    segments_F = jnp.where(covers_FxN, jnp.arange(1, len(starts_N) + 1)[None, :], 0).sum(axis=1)
    offset_F = jnp.where(covers_FxN, offset_FxN, 0).sum(axis=1)
    left_F = jnp.where(covers_FxN, cut_to_N[None, :], 0).sum(axis=1) - offset_F  # 1 at CLS, 2 at EOS, 0 on padding
    tokens_F = texts_NxS[jnp.maximum(segments_F - 1, 0), offset_F]
    for value, where in ((special.pad, 0), (special.cls, 1), (special.eos, 2)):
        tokens_F = jnp.where(left_F == where, value, tokens_F)
    positions_F = jnp.where(left_F == 1, positions - 1, offset_F)
    return tokens_F, positions_F, segments_F, starts_N, cut_to_N


def cls_places(packed: Packed) -> jax.Array:
    """Where each text's CLS is in its group's F tokens: int (B, V)."""
    return packed.starts_BxV + packed.lengths_BxV - 1


def token_places(starts_B: jax.Array, lengths_B: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Where the tokens of one text per example are: the first `length - 1` and CLS, or all if they are no more.

    Args:
      starts_B, lengths_B: a column of `Packed.starts_BxV` and `Packed.lengths_BxV`.

    Returns:
      places_BxC: int (B, length) in the group's F tokens; real_BxC: bool, False where the text has no such token.
    """
    start_Bx1, count_Bx1 = starts_B[:, None], lengths_B[:, None]
    index_1xC = jnp.arange(length)[None, :]
    kept_Bx1 = jnp.minimum(count_Bx1, length)
    offset_BxC = jnp.where(index_1xC == kept_Bx1 - 1, count_Bx1 - 1, index_1xC)
    real_BxC = index_1xC < kept_Bx1
    return jnp.where(real_BxC, start_Bx1 + offset_BxC, start_Bx1), real_BxC


def take(x_GxFxD: jax.Array, places_BxC: jax.Array) -> jax.Array:
    """Entries of packed outputs: (G, F, D) and places (B, C) in each example's group -> (B, C, D)."""
    groups, width = x_GxFxD.shape[0], x_GxFxD.shape[-1]
    places_GxMx1 = places_BxC.reshape(groups, -1, 1)
    return jnp.take_along_axis(x_GxFxD, places_GxMx1, axis=1, mode="clip").reshape(*places_BxC.shape, width)


def packing_metrics(packed: Packed) -> dict[str, Any]:
    """ "text/fill": share of the rows that holds tokens; "text/cut": share of the texts that lost tokens."""
    return {
        "text/fill": (packed.segments_GxF > 0).mean(),
        "text/cut": packed.cut_BxV.mean(),
    }
