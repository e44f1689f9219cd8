"""The contract between host and device: what a step receives."""

from typing import Any

import flax.struct
import jax

# B batch, H/W image height/width, S tokens shipped per text.
Array = jax.Array | Any  # numpy on the host, jax on the device


@flax.struct.dataclass
class TokenizedText:
    """A text as pieces, without special tokens.

    Attributes:
      tokens: int32 (B, S), padded with the tokenizer's PAD.
      sentence_ids: int32 (B, S), 0, 1, 2, … for the sentence a token belongs to, -1 on padding.
    """

    tokens: Array
    sentence_ids: Array


@flax.struct.dataclass
class Batch:
    """One step's examples; row i is global position `step * batch_size + i`.

    Attributes:
      images: uint8 (B, H, W, 3), cropped and resized, RGB.
      texts: by text name.
    """

    images: Array
    texts: dict[str, TokenizedText]
