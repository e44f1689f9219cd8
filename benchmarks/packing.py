"""How full packed rows are, and how much is cut, for texts of given mean lengths.

    python -m benchmarks.packing [--alt_text 17] [--sentence 20]

Lengths are drawn log-normal (coefficients of variation 0.6 and 0.45: assumptions), cut to what the full-size configs
keep, and three special tokens are added.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clips_jax.config import PackingConfig
from clips_jax.data.tokenizer import SPECIALS_PER_SEQUENCE, SpecialTokens
from clips_jax.packing import pack, packing_metrics

EXAMPLES = 4096
LONGEST = {"alt_text": 80, "sentence": 40}  # views of the full-size configs
BUDGET = {"alt_text": 77, "sentence": 32}


def drawn_lengths(rng: np.random.Generator, mean: float, variation: float, budget: int) -> np.ndarray:
    """Framed lengths: int (EXAMPLES,)."""
    sigma = np.sqrt(np.log1p(variation**2))
    tokens = np.exp(rng.normal(np.log(mean) - sigma**2 / 2, sigma, EXAMPLES)).round()
    return np.clip(tokens, 1, budget).astype(int) + SPECIALS_PER_SEQUENCE


def main() -> None:
    """Packs the same texts under several settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alt_text", type=float, default=17, help="mean tokens of an AltText")
    parser.add_argument("--sentence", type=float, default=20, help="mean tokens of a sub-caption")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    lengths = {
        "alt_text": drawn_lengths(rng, arguments.alt_text, 0.6, BUDGET["alt_text"]),
        "sentence": drawn_lengths(rng, arguments.sentence, 0.45, BUDGET["sentence"]),
    }
    views = []
    for name, lengths_B in lengths.items():
        real_BxS = np.arange(LONGEST[name])[None] < lengths_B[:, None]
        views.append((jnp.ones(real_BxS.shape, jnp.int32), jnp.asarray(real_BxS)))
    total = sum(x.sum() for x in lengths.values())
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    special = SpecialTokens(pad=0, bos=2, eos=3, cls=4)
    print(f"{total / EXAMPLES:.1f} tokens per example, special ones included")
    for group in (32, 64):
        for room in (44, 46, 48, 50, 52):
            config = PackingConfig(tokens_per_example=room, group=group, row_length=128)
            packed = jax.jit(lambda texts, config=config: pack(texts, config, 80, special, mesh))(views)
            fill, cut = (float(packing_metrics(packed)[key]) for key in ("text/fill", "text/cut"))
            lost = 1 - int(packed.lengths_BxV.sum()) / total
            print(f"group {group}  room {room}  fill {fill:6.1%}  cut {cut:7.2%}  tokens lost {lost:7.2%}")


if __name__ == "__main__":
    main()
