"""What a run is judged by. Evaluators see pictures and texts through an encoder and know nothing of the trainer.

`run.evaluate_all` runs everything a config lists; `results` writes and prints what comes out.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from clips_jax.decoding import Decoding
from clips_jax.preprocessing import Preprocessing

# Positions in a split -> uint8 (n, S, S, 3).
Load = Callable[[Sequence[int]], np.ndarray]


class Encoder(Protocol):
    """A model as evaluators use it; batches, padding and the processes' shares are its own business.

    Every process calls every method with the same arguments and gets the same answer. E is the joint width, S the
    picture size.
    """

    image_size: int
    preprocessing: Preprocessing
    has_captioner: bool

    def images(self, load: Load, count: int) -> np.ndarray:
        """float32 (count, E), rows of length 1: pictures 0 … count - 1 of `load`."""
        ...

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (len(texts), E), rows of length 1."""
        ...

    def token_ids(self, texts: Sequence[str]) -> np.ndarray:
        """What the text tower reads: int32 (len(texts), L), CLS last, padding before it."""
        ...

    def caption_loss(
        self, load: Load, count: int, alt_texts: Sequence[str], targets: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Per picture: its target's summed cross-entropy in nats (count,), and the number of target tokens (count,)."""
        ...

    def captions(self, load: Load, count: int, alt_texts: Sequence[str], decoding: Decoding | None = None) -> list[str]:
        """A generated text per picture, greedily unless told otherwise."""
        ...
