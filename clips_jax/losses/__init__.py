"""The losses over the global batch, on any mesh: value and gradient in one pass, nothing of the size of the problem.

Both are exact. Neither stores the array that its definition is written with: the contrastive loss no (B, B) logits, the
caption loss no (B, T, V) logits. Their gradients are written out and computed with the value (`jax.custom_vjp`), since
the derivative of a loop would store every pass of it.
"""

from clips_jax.losses.caption import caption_cross_entropy, caption_loss
from clips_jax.losses.contrastive import contrastive_loss

__all__ = ["caption_cross_entropy", "caption_loss", "contrastive_loss"]
